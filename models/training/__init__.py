"""Training any open_clip pair. Knows nothing of indexes, HTTP or consoles."""
