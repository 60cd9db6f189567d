"""`diptych train`."""
