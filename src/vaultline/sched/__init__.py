"""Serving many models on servers with little protected memory: events in, actions out.

No clock, no I/O: time stands in the events. The same objects run a real server and a simulated one.
"""
