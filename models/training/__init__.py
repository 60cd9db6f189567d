"""Training of any encoder pair. Knows nothing of indexes or HTTP."""
