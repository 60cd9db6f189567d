"""One module a resource: its request, its answer, how both are read and made, its routes."""
