"""The layers around the routes: frame, limits, origins, keys, admission, repetition, errors."""
