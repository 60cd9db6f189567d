"""The one commit path: the writer and its lock, what a commit makes, the versions that are kept."""
