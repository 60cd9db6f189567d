"""Pictures into folders, and back."""
