"""What is done to an index that exists: edits, optimizing, purging, checking, repairing."""
