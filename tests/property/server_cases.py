"""Small models for serving workers."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vaultline.graph.model import Model, load_model


def perceptron(folder: Path, name: str, *widths: int) -> Model:
    """Products of rows by matrices, each followed by a Tanh: two nodes for each, one tensor on
    every cut, weights from a generator seeded with their number."""
    random = np.random.default_rng(len(widths))
    nodes, weights, last = [], [], "x"
    for number, (before, after) in enumerate(pairwise(widths)):
        array = random.standard_normal((before, after)).astype(np.float32) / before**0.5
        weights.append(numpy_helper.from_array(array, f"w{number}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{number}"], [f"h{number}"]))
        nodes.append(helper.make_node("Tanh", [f"h{number}"], [f"t{number}"]))
        last = f"t{number}"
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, widths[0]])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, [1, widths[-1]])],
        weights,
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save_model(
        helper.make_model(graph, opset_imports=opsets, ir_version=9), folder / f"{name}.onnx"
    )
    return load_model(folder / f"{name}.onnx")
