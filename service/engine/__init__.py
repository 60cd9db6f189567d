"""The use cases and their batches. Knows neither HTTP nor the command line."""
