"""The vocabulary every layer shares; no clock, socket, file or random source."""
