"""One file per command; `main` is the entry point. Commands import what they run inside the command."""
