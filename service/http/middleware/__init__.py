"""Sockets and the layers around the routes: limits, keys, admission, errors."""
