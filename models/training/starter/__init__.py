"""Training the starter's heads over frozen towers. Knows nothing of indexes, HTTP or consoles."""
