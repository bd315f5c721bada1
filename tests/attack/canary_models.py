"""Models whose every weight is known."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper, numpy_helper

from vaultline.graph.model import load_model
from vaultline.graph.structure import Model
from vaultline.testing.canaries import WIDTH, pattern


def saved(folder: Path, nodes: list[onnx.NodeProto], *, weights: int) -> Path:
    """The file of a model whose weights are known."""
    graph = helper.make_graph(
        nodes,
        "canary",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, WIDTH])],
        [numpy_helper.from_array(pattern(n, WIDTH, WIDTH), f"w{n}") for n in range(weights)],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    path = folder / "canary.onnx"
    onnx.save_model(made, path)
    return path


def canary_file(folder: Path) -> Path:
    """Two products, one on either side of the cut; the frame itself crosses it too."""
    nodes = [
        helper.make_node("Gemm", ["x", "w0"], ["a"]),
        helper.make_node("Relu", ["a"], ["h"]),
        helper.make_node("Gemm", ["h", "w1"], ["b"]),
        helper.make_node("Add", ["b", "x"], ["y"]),
    ]
    return saved(folder, nodes, weights=2)


def canary_model(folder: Path) -> Model:
    """The model of that file, which is gone."""
    return _loaded(canary_file(folder))


def chain_model(folder: Path) -> Model:
    """Three products in a row; at the cuts between them nothing else crosses."""
    nodes = [
        helper.make_node("Gemm", ["x", "w0"], ["a"]),
        helper.make_node("Relu", ["a"], ["g"]),
        helper.make_node("Gemm", ["g", "w1"], ["b"]),
        helper.make_node("Relu", ["b"], ["h"]),
        helper.make_node("Gemm", ["h", "w2"], ["y"]),
    ]
    return saved_model(folder, nodes, weights=3)


def saved_model(folder: Path, nodes: list[onnx.NodeProto], *, weights: int) -> Model:
    """A model with known weights, of which no file is left."""
    return _loaded(saved(folder, nodes, weights=weights))


def _loaded(path: Path) -> Model:
    model = load_model(path)
    path.unlink()
    return model
