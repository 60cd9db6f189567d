"""How well an encoder pair retrieves and classifies: metrics, and the runs that measure them."""
