"""Training an encoder pair on captioned pictures. Knows nothing of indexes, HTTP or consoles."""
