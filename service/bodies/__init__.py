"""What arrives: bodies, uploads, pictures by address, turned into queries."""
