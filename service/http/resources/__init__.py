"""Thin HTTP routes: parse, call the engine, shape the answer."""
