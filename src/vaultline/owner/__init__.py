"""The owner's side: sealing a model, appraising evidence, releasing keys, sending frames.

Trusted by itself; everything it launches is not, until its evidence has been appraised.
"""
