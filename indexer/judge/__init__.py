"""What queries without an answer look like in an index, and how far a hit stands above them."""
