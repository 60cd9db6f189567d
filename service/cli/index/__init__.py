"""`diptych index`."""
