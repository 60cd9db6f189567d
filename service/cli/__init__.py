"""One file per command; `main` is the entry point. A command imports what it runs when it runs."""
