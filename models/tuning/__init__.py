"""Adapting a pair to a small data set with few numbers: low-rank updates of its towers, learned
prompts, an adapter on its features, and a linear head. Knows nothing of indexes or HTTP."""
