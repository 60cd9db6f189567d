"""Image-text sources, read once for everyone: training, evaluation and the index builder."""
