"""Benchmarks: measured numbers with the host, date and command that produced them."""
