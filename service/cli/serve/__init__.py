"""`diptych serve`."""
