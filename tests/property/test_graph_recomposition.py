"""Random graphs: segments put together again are the model, bit for bit; programs are close."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from vaultline.core.program import StageSettings
from vaultline.graph.compile import compile_segment
from vaultline.graph.cuts import cuts
from vaultline.graph.engine import run_plain
from vaultline.graph.extract import segment
from vaultline.graph.model import Model, load_model
from vaultline.graph.reference import run_program

SIDE = 6
UNARY = ("Relu", "Sigmoid", "Tanh", "Neg", "Identity", "Softmax")
BINARY = ("Add", "Mul", "Sub", "Max")


@st.composite
def graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """DAGs of matrices [1, SIDE] in which any node may read anything made before it."""
    inputs = [f"x{index}" for index in range(draw(st.integers(1, 3)))]
    weights: dict[str, np.ndarray] = {}
    for index in range(draw(st.integers(1, 3))):
        seed = draw(st.integers(0, 2**16))
        weights[f"w{index}"] = (
            np.random.default_rng(seed).standard_normal((SIDE, SIDE)).astype(np.float32) * 0.4
        )
        weights[f"b{index}"] = weights[f"w{index}"][:1].copy()
    values, nodes = list(inputs), []
    for index in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(("unary", "binary", "matmul", "gemm", "bias", "split", "if")))
        source = draw(st.sampled_from(values))
        weight = draw(st.integers(0, len(weights) // 2 - 1))
        made = [f"t{index}"]
        if kind == "unary":
            nodes.append(helper.make_node(draw(st.sampled_from(UNARY)), [source], made))
        elif kind == "binary":
            other = draw(st.sampled_from(values))
            nodes.append(helper.make_node(draw(st.sampled_from(BINARY)), [source, other], made))
        elif kind == "matmul":
            nodes.append(helper.make_node("MatMul", [source, f"w{weight}"], made))
        elif kind == "gemm":
            reads = [source, f"w{weight}", f"b{weight}"]
            flag = draw(st.integers(0, 1))
            nodes.append(helper.make_node("Gemm", reads, made, transB=flag))
        elif kind == "bias":
            nodes.append(helper.make_node("Add", [source, f"b{weight}"], made))
        elif kind == "split":
            halves = [f"t{index}l", f"t{index}r"]
            nodes.append(helper.make_node("Split", [source], halves, axis=1, num_outputs=2))
            nodes.append(helper.make_node("Concat", halves[::-1], made, axis=1))
        else:
            nodes += _branching(index, source, draw(st.sampled_from(values)), f"w{weight}")
        values += made
    ends = draw(st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True))
    graph = helper.make_graph(
        nodes,
        "random",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, SIDE]) for name in inputs],
        [onnx.ValueInfoProto(name=name) for name in ends],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _branching(index: int, source: str, captured: str, weight: str) -> list[onnx.NodeProto]:
    """If the sum of one tensor is positive, multiply another one by a weight, else negate it."""
    branches = {}
    for name, op, reads in (
        ("then_branch", "MatMul", [captured, weight]),
        ("else_branch", "Neg", [captured]),
    ):
        result = f"t{index}{name}"
        branches[name] = helper.make_graph(
            [helper.make_node(op, reads, [result])],
            name,
            [],
            [helper.make_tensor_value_info(result, TensorProto.FLOAT, [1, SIDE])],
        )
    return [
        helper.make_node("ReduceSum", [source], [f"t{index}s"], keepdims=0),
        helper.make_node("Cast", [f"t{index}s"], [f"t{index}c"], to=TensorProto.BOOL),
        helper.make_node("If", [f"t{index}c"], [f"t{index}"], **branches),
    ]


def loaded(proto: onnx.ModelProto) -> Model:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "random.onnx"
        onnx.save_model(proto, path)
        return load_model(path)


def feeds_of(model: Model) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {spec.name: rng.standard_normal(spec.shape, np.float32) for spec in model.inputs}


@given(graphs())
@settings(derandomize=True, deadline=None, max_examples=60)
def test_recomposed_at_every_cut_is_the_original_bit_for_bit(proto: onnx.ModelProto) -> None:
    model = loaded(proto)
    fed = feeds_of(model)
    expected = run_plain(model, fed)
    places = cuts(model)
    for place in places[1:-1]:
        crossing = run_plain(segment(model, places, 0, place.position), fed)
        rest = segment(model, places, place.position, model.node_count)
        got = run_plain(rest, crossing)
        assert list(got) == list(expected)
        for name, reference in expected.items():
            np.testing.assert_array_equal(got[name], reference)


@given(graphs(), st.data())
@settings(derandomize=True, deadline=None, max_examples=40)
def test_programs_of_any_two_stages_equal_the_original(
    proto: onnx.ModelProto, data: st.DataObject
) -> None:
    model = loaded(proto)
    fed = feeds_of(model)
    position = data.draw(st.integers(0, model.node_count))
    chosen = StageSettings(
        stage=0,
        stages=1,
        threads=1,
        budget_bytes=1 << 20,
        mode=data.draw(st.sampled_from(("resident", "streamed"))),
        frames_per_pass=1,
        queue_frames=1,
    )
    portable, step_bytes = data.draw(st.booleans()), data.draw(st.sampled_from((64, 200, 4096)))
    values = fed
    for first, last in ((0, position), (position, model.node_count)):
        if first < last:
            stage = compile_segment(
                model, first, last, settings=chosen, step_bytes=step_bytes, portable=portable
            )
            values = run_program(stage, values)
    for name, reference in run_plain(model, fed).items():
        np.testing.assert_allclose(values[name], reference, rtol=1e-4, atol=1e-5)
