"""Files below everything: durable writing, the lock, looking for byte strings."""
