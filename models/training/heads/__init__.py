"""Class heads from labelled pictures of frozen pairs: linear, adapter, learned prompts."""
