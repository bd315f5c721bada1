"""Rewrites: the same function, in fewer or faster operators."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vaultline.graph.engine import run_plain
from vaultline.graph.model import Model, load_model
from vaultline.graph.rewrite import PASSES, rewrite


def lrn_model(channels: int, **attributes: float) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("LRN", ["x"], ["y"], **attributes)],
        "lrn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, 6, 5])],
        [onnx.ValueInfoProto(name="y")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=10)


LRNS = {
    "the usual one": {"size": 5, "alpha": 1e-4, "beta": 0.75, "bias": 1.0},
    "strong": {"size": 5, "alpha": 2.0, "beta": 0.75, "bias": 2.0},
    "the default beta and bias": {"size": 3},
    "a square root": {"size": 3, "alpha": 1.0, "beta": 0.5},
    "any power": {"size": 3, "alpha": 1.0, "beta": 0.61},
    "a window wider than the tensor": {"size": 99, "alpha": 3.0},
}


@pytest.mark.parametrize("case", LRNS, ids=str)
def test_lrn_as_convolution(case: str, write, feeds) -> None:
    model = load_model(write(lrn_model(19, **LRNS[case])))
    changed = rewrite(model)
    assert "LRN" not in {node.op for node in changed.nodes}
    fed = feeds(model)
    got, expected = run_plain(changed, fed)["y"], run_plain(model, fed)["y"]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_lrn_over_very_many_channels_stays(write) -> None:
    model = load_model(write(lrn_model(2048, size=5)))
    assert [node.op for node in rewrite(model).nodes] == ["LRN"]


def test_every_sample_keeps_its_outputs(sample: Model, feeds) -> None:
    fed = feeds(sample)
    expected = run_plain(sample, fed)
    got = run_plain(rewrite(sample), fed)
    for name, reference in expected.items():
        np.testing.assert_allclose(got[name], reference, rtol=1e-4, atol=1e-5)


def test_passes_can_be_skipped(samples, write) -> None:
    model = load_model(write(samples["a small convolutional network"]()))
    plain = [node.op for node in model.nodes]
    assert [node.op for node in rewrite(model, skip=frozenset(PASSES)).nodes] == plain
    only_lrn = [node.op for node in rewrite(model, skip=frozenset({"fold-affine"})).nodes]
    assert "LRN" not in only_lrn
    assert "BatchNormalization" in only_lrn


def affine_model(order: tuple[str, ...], shape: tuple[int, ...], extra: bool) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = {name: rng.random(4).astype(np.float32) + 0.5 for name in ("s", "o", "m", "v")}
    nodes = [helper.make_node("BatchNormalization", ["x", "s", "o", "m", "v"], ["n"])]
    name = "n"
    for index, op in enumerate(order):
        weights[f"f{index}"] = rng.standard_normal(shape).astype(np.float32)
        nodes.append(helper.make_node(op, [name, f"f{index}"], [f"a{index}"]))
        name = f"a{index}"
    nodes.append(helper.make_node("Relu", [name], ["y"]))
    if extra:
        nodes.append(helper.make_node("Neg", ["n"], ["z"]))
    outputs = [onnx.ValueInfoProto(name=out) for out in (["y", "z"] if extra else ["y"])]
    graph = helper.make_graph(
        nodes,
        "affine",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 3, 4])],
        outputs,
        [numpy_helper.from_array(array, key) for key, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=10)


AFFINES = {
    "scale and offset": (("Mul", "Add"), (4, 1, 1), False, 2),
    "offset and scale": (("Add", "Mul"), (4, 1, 1), False, 2),
    "full rank": (("Mul", "Add"), (1, 4, 1, 1), False, 2),
    "one value": (("Mul", "Add"), (1,), False, 2),
    "along the last axis, not the channels": (("Mul", "Add"), (4,), False, 4),
    "a normalisation that something else reads": (("Mul", "Add"), (4, 1, 1), True, 5),
}


@pytest.mark.parametrize("case", AFFINES, ids=str)
def test_affine_folding(case: str, write, feeds) -> None:
    *made, count = AFFINES[case]
    model = load_model(write(affine_model(*made)))
    changed = rewrite(model)
    assert len(changed.nodes) == count
    fed = feeds(model)
    got, expected = run_plain(changed, fed), run_plain(model, fed)
    for name, reference in expected.items():
        np.testing.assert_allclose(got[name], reference, rtol=1e-5, atol=1e-5)
