"""An opened version, and how it is searched."""
