"""What is on disk: versions, segments and their parts; sums checked before use."""
