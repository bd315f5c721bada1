"""ONNX in, stage programs out: the only place that reads or writes ONNX.

Loading, cuts, extraction, rewriting, compilation. It and ``enclave`` are the only ones that run
ONNX Runtime.
"""
