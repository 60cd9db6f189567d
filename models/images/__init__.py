"""The one decoder of pictures, in this process or in isolated ones."""
