"""Changes to what is indexed already: delete, roll back, purge, optimize."""
