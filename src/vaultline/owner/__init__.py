"""The owner's side: sealing models, appraising evidence, releasing keys, sending frames."""
