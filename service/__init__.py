"""HTTP and the command line. Knows both other packages; holds no vector maths."""
