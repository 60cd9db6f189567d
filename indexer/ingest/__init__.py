"""Sources into rows of an index, and what a build takes and tells."""
