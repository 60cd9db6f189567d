"""The encoder pair: load, train, evaluate, embed. Knows nothing of indexes or HTTP."""
