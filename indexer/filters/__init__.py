"""Declared fields and the language of filters over them."""
