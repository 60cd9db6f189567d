"""How what ships with Diptych was made: each module is run by a target of the Makefile."""
