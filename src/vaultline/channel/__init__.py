"""Bytes in, events out: sealed records between two places, sealed chunks at rest; no I/O."""
