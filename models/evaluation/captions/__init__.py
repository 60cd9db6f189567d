"""How well pictures and captions fit, by an encoder pair: scores, filters, near-duplicates."""
