"""`diptych evaluate`."""
