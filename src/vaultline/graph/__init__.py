"""ONNX in, stage programs out: loading, cuts, extraction, rewriting, compilation.

The only package that imports onnx; it and ``enclave`` are the only ones that import onnxruntime.
"""
