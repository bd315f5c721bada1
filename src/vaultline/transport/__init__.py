"""Blocking sockets between places (docs/adr/0003): they move sealed bytes and hold no key."""
