"""Every open_clip architecture as an `Encoder`."""
