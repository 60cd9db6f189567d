"""The starter pair: the default model, which needs no hub."""

DESCRIPTION_NAME = "diptych_starter.json"
"""The file that marks a directory as a starter pair with heads of its own."""
