"""`diptych data`."""
