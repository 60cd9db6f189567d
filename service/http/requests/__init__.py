"""How requests are read: bodies, common fields, and what the application holds for routes."""
