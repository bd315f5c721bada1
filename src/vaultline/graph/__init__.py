"""ONNX models in, stage programs out: the only place that reads or writes ONNX."""
