"""The HTTP service: sockets, the layers around the resources, the resources, the application."""
