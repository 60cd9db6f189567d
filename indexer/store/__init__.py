"""The one writer of an index: its lock, its drafts, its commits."""
