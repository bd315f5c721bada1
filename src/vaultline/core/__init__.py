"""The vocabulary every layer shares: errors, limits, units, tensors, programs, plans.

Nothing here reads a clock, a socket, a file or a random source.
"""
