"""Step groups: they cover the model, their boundaries are usable, and they follow the rule."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from vaultline.core.errors import InputError
from vaultline.core.limits import STAGES_MAX
from vaultline.graph.cuts import candidates, cuts
from vaultline.graph.groups import (
    GroupRule,
    NodeCost,
    StepGroup,
    _Division,
    estimated,
    from_times,
    step_groups,
    whole,
)
from vaultline.graph.model import Model, load_model


def chain(count: int) -> onnx.ModelProto:
    """Matrix products one after another."""
    names = ["x", *(f"t{index}" for index in range(count))]
    nodes = [helper.make_node("MatMul", [a, "w"], [b]) for a, b in pairwise(names)]
    made = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [onnx.ValueInfoProto(name=names[-1])],
        [numpy_helper.from_array(np.eye(8, dtype=np.float32), "w")],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("chain") / "chain.onnx"
    onnx.save_model(chain(12), path)
    return load_model(path)


def frame(seconds: float, weight_bytes: int = 0, once_s: float = 0.0) -> NodeCost:
    return NodeCost(frame_s=seconds, once_s=once_s, weight_bytes=weight_bytes)


def spans(groups: tuple[StepGroup, ...]) -> list[tuple[int, int]]:
    return [(group.first, group.last) for group in groups]


def assert_covered(model: Model, groups: tuple[StepGroup, ...]) -> None:
    assert groups[0].first == 0
    assert groups[-1].last == model.node_count
    assert all(before.last == after.first for before, after in pairwise(groups))
    every = cuts(model)
    for group in groups:
        assert group.first < group.last
        assert every[group.first].unusable is None
        assert group.first in candidates(model)
        assert 1 <= group.frames <= 16


def test_groups_cover_every_sample_at_usable_cuts(sample: Model) -> None:
    assert_covered(sample, step_groups(sample))
    assert_covered(sample, step_groups(sample, GroupRule(run_s_max=1e-9, cut_s=0.0)))


@given(
    st.lists(
        st.tuples(st.floats(0, 0.05), st.floats(0, 0.05), st.integers(0, 1 << 28)),
        min_size=12,
        max_size=12,
    ),
    st.floats(0.001, 0.2),
    st.sampled_from((1, 3, 4, 16)),
)
@settings(derandomize=True, deadline=None, max_examples=60)
def test_no_division_is_cheaper(
    twelve: Model, drawn: list[tuple[float, float, int]], run_s_max: float, frames_max: int
) -> None:
    """Against every choice of boundaries among the candidates."""
    costs = [frame(a, weights, once) for a, once, weights in drawn]
    rule = GroupRule(run_s_max=run_s_max, frames_max=frames_max)
    groups = step_groups(twelve, rule, costs)
    assert_covered(twelve, groups)
    division = _Division(twelve, rule, costs)
    places = candidates(twelve)

    def spent_s(chosen: list[int]) -> float:
        return sum(division._seconds(a, b) for a, b in pairwise(chosen))

    last = len(places) - 1
    inner = range(1, last)
    least = min(
        spent_s([0, *some, last]) for count in range(last) for some in combinations(inner, count)
    )
    found = [places.index(group.first) for group in groups]
    assert spent_s([*found, last]) == pytest.approx(least)


def test_long_models_are_cut_into_pieces_of_about_the_longest_run(twelve: Model) -> None:
    groups = step_groups(twelve, costs=[frame(0.015)] * 12)
    assert spans(groups) == [(0, 4), (4, 8), (8, 12)]
    assert all(group.frames == 1 for group in groups)


def test_short_models_are_one_group(twelve: Model) -> None:
    assert spans(step_groups(twelve, costs=[frame(0.001)] * 12)) == [(0, 12)]


def test_weights_for_little_work_are_a_group_of_many_frames(twelve: Model) -> None:
    costs = [frame(0.005)] * 10 + [frame(0.0005, 100 << 20, 0.004)] * 2
    assert spans(step_groups(twelve, costs=costs)) == [(0, 10), (10, 12)]
    front, tail = step_groups(twelve, costs=costs)
    assert (front.frames, tail.frames) == (1, 16)


def test_frames_are_no_more_than_pay(twelve: Model) -> None:
    """Decryption is a tenth of a frame's time: four frames leave 2.5 % of it."""
    costs = [frame(0.0005, 500_000)] * 12
    (group,) = step_groups(twelve, costs=costs)
    assert group.load_s == pytest.approx(0.0006)
    assert group.frames == 4
    (group,) = step_groups(twelve, GroupRule(frames_max=2), costs)
    assert group.frames == 2
    (group,) = step_groups(twelve, GroupRule(near=1.2), costs)
    assert group.frames == 1


def test_boundaries_that_cost_more_than_they_gain_are_not_taken(twelve: Model) -> None:
    rule = GroupRule(carried_bytes_per_s=100.0)
    assert spans(step_groups(twelve, rule, [frame(0.015)] * 12)) == [(0, 12)]


def test_endless_models_have_longer_runs_not_more_groups(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("long") / "long.onnx"
    onnx.save_model(chain(3 * STAGES_MAX), path)
    model = load_model(path)
    groups = step_groups(model, costs=[frame(1.0)] * model.node_count)
    assert_covered(model, groups)
    assert len(groups) <= STAGES_MAX


def test_a_model_without_nodes_is_refused(twelve: Model) -> None:
    with pytest.raises(InputError, match="computes nothing"):
        step_groups(replace(twelve, nodes=()))


def test_a_rule_that_can_not_be_is_refused() -> None:
    for wrong in ({"run_s_max": 0.0}, {"frames_max": 0}, {"near": 0.9}):
        with pytest.raises(InputError):
            GroupRule(**wrong)


def test_multiplications_are_counted_as_the_operators_define_them(samples, write) -> None:
    model = load_model(write(samples["a small convolutional network"]()))
    by_name = dict(zip([node.name for node in model.nodes], estimated(model), strict=True))
    second = next(
        cost
        for node, cost in zip(model.nodes, estimated(model), strict=True)
        if "c2" in node.writes
    )
    assert second.frame_s == pytest.approx(20 * 8 * 8 * 20 * 9 / 1e11)
    assert second.weight_bytes == 4 * 20 * 20 * 9
    product = [cost for cost in by_name.values() if cost.once_s]
    assert len(product) == 1
    assert product[0].frame_s == pytest.approx(10 * 20 / 1e11)


def test_measured_times_replace_the_estimates(twelve: Model) -> None:
    seconds = np.linspace(0.001, 0.012, 12)
    costs = from_times(twelve, list(seconds))
    total = sum(cost.frame_s + cost.once_s for cost in costs)
    assert total == pytest.approx(seconds.sum())
    assert sum(group.frame_s + group.once_s for group in step_groups(twelve, costs=costs)) == (
        pytest.approx(seconds.sum())
    )


def test_the_whole_is_one_group_of_one_frame(twelve: Model) -> None:
    group = whole(twelve)
    assert (group.first, group.last, group.frames) == (0, 12, 1)
    assert group.run_s(1) > 0
