"""The starter pair: the default model, which needs no hub."""
