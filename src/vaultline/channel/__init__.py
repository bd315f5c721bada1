"""Records between two places, sans-I/O: bytes in, events out."""
