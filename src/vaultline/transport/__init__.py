"""Blocking sockets between places: one contract over Unix sockets and TCP, no event loop.

Shared by the owner and the enclaves (docs/adr/0007), hence part of the trusted computing base and
kept small. It moves sealed bytes; the keys are the channel's.
"""
