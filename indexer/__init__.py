"""Pictures and captions to an index on disk, and queries to hits.

Knows `models.encoder`, nothing of HTTP.
"""
