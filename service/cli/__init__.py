"""The command line: `main` is the entry point, a folder a command group.

A command imports what it runs when it runs, so that `--help` stays fast.
"""
