"""Cuts: what crosses, and which positions a search needs."""

from __future__ import annotations

from itertools import pairwise

import onnx
from onnx import TensorProto, helper

from vaultline.graph.cuts import FREE_OPS, candidates, cuts
from vaultline.graph.model import Model, load_model


def crossing(model: Model) -> list[list[str]]:
    return [[spec.name for spec in cut.tensors] for cut in cuts(model)]


def test_first_and_last_are_the_models_own(sample: Model) -> None:
    found = cuts(sample)
    assert [cut.position for cut in found] == list(range(sample.node_count + 1))
    assert found[0].tensors == sample.inputs
    assert found[-1].tensors == sample.outputs
    assert all(cut.nbytes == sum(spec.nbytes for spec in cut.tensors) for cut in found)


def test_crossing_is_what_is_made_before_and_needed_after(sample: Model) -> None:
    """The definition, spelt out for each position."""
    made = {spec.name for spec in sample.inputs}
    for position, names in enumerate(crossing(sample)[1:-1], start=1):
        made.update(sample.nodes[position - 1].writes)
        needed = {name for node in sample.nodes[position:] for name in node.reads}
        needed.update(spec.name for spec in sample.outputs)
        assert set(names) == made & needed
        assert len(names) == len(set(names))


def test_inputs_and_outputs_cross_as_long_as_they_are_needed(samples, write) -> None:
    model = load_model(write(samples["tensors that pass through"]()))
    assert crossing(model) == [
        ["x", "late", "straight"],
        ["late", "straight", "a"],
        ["late", "straight", "b"],
        ["straight", "c"],
        ["y", "straight"],
    ]


def test_a_weight_never_crosses(sample: Model) -> None:
    assert not {name for names in crossing(sample) for name in names} & set(sample.weights)


def test_a_capture_keeps_a_tensor_alive(samples, write) -> None:
    model = load_model(write(samples["If with captures and a nested If"]()))
    position = [node.op for node in model.nodes].index("If")
    assert {"h", "flag2"} <= set(crossing(model)[position])


def test_a_data_dependent_shape_makes_a_cut_unusable(write) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("NonZero", ["a"], ["n"]),
        helper.make_node("Cast", ["n"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["f"], ["y"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [onnx.ValueInfoProto(name="y")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    model = load_model(write(proto))
    assert [cut.unusable is None for cut in cuts(model)] == [True, True, False, False, True]
    assert candidates(model) == (0, 1, 4)


def test_no_candidate_is_dominated_and_every_other_position_is(sample: Model) -> None:
    found, chosen = cuts(sample), candidates(sample)
    assert chosen[0] == 0
    assert chosen[-1] == sample.node_count
    groups: list[list[int]] = [[0]]
    for position, node in enumerate(sample.nodes, start=1):
        if node.op in FREE_OPS:
            groups[-1].append(position)
        else:
            groups.append([position])
    for group in groups:
        inner = [p for p in group if p in chosen and p not in (0, sample.node_count)]
        least = min(found[p].nbytes for p in group)
        assert all(found[p].nbytes == least for p in inner)
        assert set(group) & set(chosen)


def test_a_fused_tail_is_cut_after_it(samples, write) -> None:
    model = load_model(write(samples["a small convolutional network"]()))
    ops = [model.nodes[position - 1].op for position in candidates(model)[1:]]
    assert ops == ["Relu", "LRN", "MaxPool", "Relu", "Flatten", "Gemm"]
    assert all(a < b for a, b in pairwise(candidates(model)))
