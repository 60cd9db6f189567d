"""`diptych classify`."""
