"""The owner's side: sealing a model, appraising evidence, releasing keys, sending frames."""
