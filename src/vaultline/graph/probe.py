"""A model that computes next to nothing: what is left of a stage's time is the way of a frame."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

_SMALL = 16


def save_hop_probe(path: Path, elements: int) -> None:
    """Three nodes in a line over float32: large to large, large to small, small to small.

    Args:
        path: where to write the model.
        elements: of the large tensors.
    """
    shapes = {"x": elements, "a": elements, "b": _SMALL, "y": _SMALL}
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size])
        for name, size in shapes.items()
    }
    ends = {
        name: helper.make_tensor(name, TensorProto.INT64, [1], [value])
        for name, value in (("zero", 0), ("small", _SMALL), ("axis", 1))
    }
    nodes = [
        helper.make_node("Abs", ["x"], ["a"]),
        helper.make_node("Slice", ["a", "zero", "small", "axis"], ["b"]),
        helper.make_node("Abs", ["b"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "hop-probe",
        [values["x"]],
        [values["y"]],
        initializer=list(ends.values()),
        value_info=[values["a"], values["b"]],
    )
    opset = helper.make_opsetid("", 13)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
