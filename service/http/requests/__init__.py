"""What resources read requests with: bodies, common fields, the state of the application."""
