"""Features of frozen towers: what the starter learns from, see `models.training.features.pairs`."""
