"""Durable file operations: the abstract file system, locks, sums, space."""
