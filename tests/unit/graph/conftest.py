"""Small models with every feature that a loader has to cope with, by an English name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vaultline.graph.model import Model, load_model

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
#: The newest operator set of the engine in use.
NEWEST_OPSET = 26


def info(name: str, shape: list[int | str] | None, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def values(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def init(name: str, array: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(array, name)


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[str],
    weights: dict[str, np.ndarray] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    made = [init(name, array) for name, array in (weights or {}).items()]
    ends = [onnx.ValueInfoProto(name=name) for name in outputs]
    graph = helper.make_graph(nodes, "sample", inputs, ends, made)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def node(op: str, reads: str, writes: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, reads.split(), writes.split(), **attributes)


def branches() -> onnx.ModelProto:
    """If: captures an activation and a weight, has its own initializer, constant and nested If."""
    inner_yes = helper.make_graph(
        [node("Mul", "h w", "iy")], "inner_yes", [], [info("iy", None)], []
    )
    inner_no = helper.make_graph(
        [
            helper.make_node("Constant", [], ["three"], value=init("", np.float32([3.0] * 6))),
            node("Add", "h three", "in"),
        ],
        "inner_no",
        [],
        [info("in", None)],
    )
    yes = helper.make_graph(
        [
            node("Add", "h own", "a"),
            helper.make_node("If", ["flag2"], ["b"], then_branch=inner_yes, else_branch=inner_no),
            node("Add", "a b", "yes"),
        ],
        "yes",
        [],
        [info("yes", None)],
        [init("own", values(3, 6))],
    )
    no = helper.make_graph(
        [helper.make_node("Constant", [], ["no"], value=init("", values(4, 1, 6)))],
        "no",
        [],
        [info("no", None)],
    )
    nodes = [
        node("MatMul", "x m", "h"),
        node("ReduceSum", "h", "s", keepdims=0),
        node("Greater", "s zero", "flag"),
        node("Less", "s zero", "flag2"),
        helper.make_node("If", ["flag"], ["r"], then_branch=yes, else_branch=no),
        node("Add", "r h", "y"),
    ]
    weights = {"m": values(1, 6, 6), "w": values(2, 6), "zero": np.float32(0)}
    return model_of(nodes, [info("x", [1, 6])], ["y"], weights)


def loop() -> onnx.ModelProto:
    """Loop: carries a tensor, captures a weight and an activation, collects a scan output."""
    body = helper.make_graph(
        [
            node("MatMul", "state w", "p"),
            node("Add", "p h", "q"),
            node("Tanh", "q", "next"),
            node("Identity", "go", "go_on"),
            node("ReduceSum", "next", "total", keepdims=0),
        ],
        "body",
        [info("i", [], INT64), info("go", [], BOOL), info("state", [1, 5])],
        [info("go_on", [], BOOL), info("next", [1, 5]), info("total", [])],
    )
    nodes = [
        node("Add", "x b", "h"),
        helper.make_node("Loop", ["trips", "", "h"], ["last", "totals"], body=body),
        node("Relu", "last", "y"),
    ]
    weights = {"w": values(5, 5, 5), "b": values(6, 1, 5), "trips": np.int64(4)}
    return model_of(nodes, [info("x", [1, 5])], ["y", "last"], weights)


def scan() -> onnx.ModelProto:
    """Scan over time with a captured weight."""
    body = helper.make_graph(
        [node("MatMul", "xt u", "a"), node("Add", "a s", "b"), node("Tanh", "b", "n"),
         node("Identity", "n", "o")],
        "body",
        [info("s", [1, 4]), info("xt", [1, 3])],
        [info("n", [1, 4]), info("o", [1, 4])],
    )  # fmt: skip
    nodes = [
        node("Transpose", "x", "t", perm=[1, 0, 2]),
        helper.make_node("Scan", ["s0", "t"], ["sn", "seq"], body=body, num_scan_inputs=1),
        node("Concat", "seq seq", "y", axis=2),
    ]
    weights = {"u": values(7, 3, 4), "s0": values(8, 1, 4)}
    return model_of(nodes, [info("x", [1, 6, 3])], ["y", "sn"], weights)


def shared() -> onnx.ModelProto:
    """One weight in three nodes, two of them far apart."""
    nodes = [
        node("MatMul", "x w", "a"),
        node("Relu", "a", "b"),
        node("MatMul", "b w", "c"),
        node("Add", "c x", "d"),
        node("Gemm", "d w", "y", transB=1),
    ]
    return model_of(nodes, [info("x", [1, 7])], ["y"], {"w": values(9, 7, 7)})


def many() -> onnx.ModelProto:
    """Two inputs of different types, three outputs, one of them early and used again."""
    nodes = [
        node("Gather", "table ids", "e"),
        node("Add", "e x", "early"),
        node("Sigmoid", "early", "s"),
        node("Mul", "s x", "m"),
        node("ReduceMean", "m", "mean", keepdims=1),
        node("Sub", "m mean", "late"),
    ]
    inputs = [info("ids", [1, 4], INT64), info("x", [1, 4, 3])]
    return model_of(nodes, inputs, ["late", "early", "mean"], {"table": values(10, 11, 3)}, 13)


def passing() -> onnx.ModelProto:
    """An input needed only at the end, and an input that is an output as it stands."""
    nodes = [
        node("Relu", "x", "a"),
        node("Add", "a w", "b"),
        node("Mul", "b late", "c"),
        node("Neg", "c", "y"),
    ]
    inputs = [info("x", [1, 3]), info("late", [1, 3]), info("straight", [1, 2])]
    return model_of(nodes, inputs, ["y", "straight"], {"w": values(11, 1, 3)})


def unused() -> onnx.ModelProto:
    """An input that nothing reads, an initializer that nothing reads, one listed as an input."""
    nodes = [node("Add", "x w", "a"), node("Relu", "a", "y")]
    inputs = [info("x", [1, 3]), info("idle", [1, 9]), info("w", [1, 3])]
    weights = {"w": values(12, 1, 3), "dead": values(13, 64)}
    return model_of(nodes, inputs, ["y"], weights, 9)


def constants() -> onnx.ModelProto:
    """Shape arithmetic of an exporter, a constant subexpression, a weight as an output."""
    nodes = [
        helper.make_node("Constant", [], ["two"], value=init("", np.int64([2]))),
        node("Shape", "x", "dims"),
        node("Gather", "dims zero", "n"),
        node("Unsqueeze", "n axis", "n1"),
        node("Concat", "n1 two two", "target", axis=0),
        node("Reshape", "x target", "r"),
        node("Transpose", "w", "wt", perm=[1, 0]),
        node("Add", "wt wt", "w2"),
        node("MatMul", "r w2", "y"),
    ]
    weights = {
        "zero": np.int64(0),
        "axis": np.int64([0]),
        "w": values(14, 2, 2),
        "k": values(15, 3),
    }
    return model_of(nodes, [info("x", ["batch", 4])], ["y", "k"], weights)


def opset9() -> onnx.ModelProto:
    """Operators whose form changed after opset 9."""
    nodes = [
        node("Conv", "x w b", "c", pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        node("Clip", "c", "d", min=0.0, max=6.0),
        node("Upsample", "d scales", "u", mode="nearest"),
        node("Dropout", "u", "v", ratio=0.3),
        node("AveragePool", "v", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", "p", "f"),
        node("Softmax", "f", "y", axis=1),
    ]
    weights = {
        "w": values(16, 8, 3, 3, 3),
        "b": values(17, 8),
        "scales": np.float32([1, 1, 2, 2]),
    }
    return model_of(nodes, [info("x", ["N", 3, 8, 8])], ["y"], weights, 9)


def newest() -> onnx.ModelProto:
    nodes = [
        node("LayerNormalization", "x g b", "n", axis=-1),
        node("MatMul", "n w", "m"),
        node("Gelu", "m", "y"),
    ]
    weights = {"g": values(18, 16), "b": values(19, 16), "w": values(20, 16, 8)}
    return model_of(nodes, [info("x", ["B", 5, 16])], ["y"], weights, NEWEST_OPSET)


def convnet() -> onnx.ModelProto:
    """Blocked convolutions whose channels need padding, LRN, a residual, a foldable affine."""
    w: dict[str, np.ndarray] = {
        "w1": values(21, 20, 3, 3, 3) * 0.2,
        "b1": values(22, 20),
        "w2": values(23, 20, 20, 3, 3) * 0.1,
        "scale": values(24, 20, 1, 1),
        "shift": values(25, 20, 1, 1),
        "fw": values(26, 10, 20) * 0.2,
        "fb": values(27, 10),
    }
    for index, name in enumerate(("s", "o", "m")):
        w[name] = values(28 + index, 20)
    w["v"] = np.abs(values(31, 20)) + 0.5
    conv = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    nodes = [
        node("Conv", "x w1 b1", "c1", **conv),
        node("Relu", "c1", "r1"),
        node("LRN", "r1", "l1", size=5, alpha=0.1, beta=0.75, bias=1.0),
        node("MaxPool", "l1", "p1", kernel_shape=[2, 2], strides=[2, 2]),
        node("BatchNormalization", "p1 s o m v", "n"),
        node("Mul", "n scale", "n2"),
        node("Add", "n2 shift", "n3"),
        node("Relu", "n3", "r2"),
        node("Conv", "r2 w2", "c2", **conv),
        node("Add", "c2 p1", "sum"),
        node("Relu", "sum", "r3"),
        node("GlobalAveragePool", "r3", "g"),
        node("Flatten", "g", "f"),
        node("Gemm", "f fw fb", "y", transB=1),
    ]
    return model_of(nodes, [info("x", ["N", 3, 16, 16])], ["y"], w, 11)


def perceptron() -> onnx.ModelProto:
    """Weights above 1 MiB in rows: worth stacking frames for, and worth cutting into tiles."""
    w = {
        "w1": values(32, 700, 480) * 0.05,
        "b1": values(33, 700),
        "w2": values(34, 700, 300) * 0.05,
        "b2": values(35, 300),
    }
    nodes = [
        node("Relu", "x", "r"),
        node("Flatten", "r", "f"),
        node("Gemm", "f w1 b1", "h", transB=1),
        node("Relu", "h", "hr"),
        node("MatMul", "hr w2", "m"),
        node("Add", "m b2", "a"),
        node("Softmax", "a", "y", axis=-1),
    ]
    return model_of(nodes, [info("x", ["N", 30, 4, 4])], ["y"], w)


SAMPLES: dict[str, Callable[[], onnx.ModelProto]] = {
    "If with captures and a nested If": branches,
    "Loop with captures": loop,
    "Scan with a captured weight": scan,
    "a weight shared by three nodes": shared,
    "several inputs and outputs": many,
    "tensors that pass through": passing,
    "unused inputs and initializers": unused,
    "constants and shape arithmetic": constants,
    "opset 9": opset9,
    "the newest opset": newest,
    "a small convolutional network": convnet,
    "a wide perceptron": perceptron,
}


def feeds_of(model: Model, seed: int = 0) -> dict[str, np.ndarray]:
    """Seeded values for the inputs of a model."""
    rng = np.random.default_rng(seed)
    fed = {}
    for spec in model.inputs:
        if spec.dtype == "int64":
            fed[spec.name] = rng.integers(0, 4, spec.shape)
        else:
            fed[spec.name] = rng.standard_normal(spec.shape).astype(spec.dtype)
    return fed


Write = Callable[[onnx.ModelProto], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(model: onnx.ModelProto) -> Path:
        path = tmp_path / "sample.onnx"
        onnx.save_model(model, path)
        return path

    return to_file


@pytest.fixture(params=list(SAMPLES), ids=str)
def sample_proto(request: pytest.FixtureRequest) -> onnx.ModelProto:
    """Each sample model in turn."""
    return SAMPLES[request.param]()


@pytest.fixture
def sample(sample_proto: onnx.ModelProto, write: Write) -> Model:
    """Each sample model in turn, loaded."""
    return load_model(write(sample_proto))


@pytest.fixture
def samples() -> dict[str, Callable[[], onnx.ModelProto]]:
    return SAMPLES


@pytest.fixture
def feeds() -> Callable[..., dict[str, np.ndarray]]:
    return feeds_of
