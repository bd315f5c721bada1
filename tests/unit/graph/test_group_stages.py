"""Compiled step groups: nothing resident, the workspace within its limit, the model's outputs."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vaultline.core.errors import InfeasibleError, InputError
from vaultline.core.limits import MIB
from vaultline.core.paged import PAGE_BYTES, step_pages
from vaultline.cost.footprint import footprint
from vaultline.graph.compile import CompiledStage
from vaultline.graph.engine import run_plain
from vaultline.graph.group_stages import GroupTarget, compile_group, compile_paged
from vaultline.graph.groups import GroupRule, StepGroup, step_groups, whole
from vaultline.graph.model import Model, load_model
from vaultline.graph.reference import run_program
from vaultline.graph.zoo import build

#: Divides even the samples.
EAGER = GroupRule(run_s_max=1e-9, cut_s=0.0, tensor_s=0.0, carried_bytes_per_s=1e15)


def compiled(model: Model, groups: tuple[StepGroup, ...], most: int) -> list[CompiledStage]:
    target = GroupTarget(workspace_bytes=most)
    return [
        compile_group(model, group, target, number=number, groups=len(groups))
        for number, group in enumerate(groups)
    ]


def is_endless(model: Model) -> bool:
    return any(node.op == "Loop" for node in model.nodes)


@pytest.mark.parametrize("rule", [GroupRule(), EAGER], ids=["as a rule", "many groups"])
def test_groups_one_after_another_are_the_model(rule: GroupRule, sample: Model, feeds) -> None:
    if is_endless(sample):
        with pytest.raises(InfeasibleError, match="no bound"):
            compiled(sample, step_groups(sample, rule), MIB)
        return
    fed = feeds(sample)
    expected = run_plain(sample, fed)
    stages = compiled(sample, step_groups(sample, rule), MIB)
    for number, stage in enumerate(stages):
        settings = stage.program.settings
        assert (settings.stage, settings.stages) == (number, len(stages))
        fed = run_program(stage, fed)
    for name, reference in expected.items():
        np.testing.assert_allclose(fed[name], reference, rtol=1e-4, atol=1e-4)


def test_no_weight_is_resident_and_the_budget_is_what_the_ledger_holds(samples, write) -> None:
    model = load_model(write(samples["a wide perceptron"]()))
    (stage,) = compiled(model, (whole(model),), MIB)
    program = stage.program
    assert program.resident_bytes == 0
    assert all(weight.resident_at is None for weight in program.weights)
    assert program.workspace_bytes <= MIB
    assert sum(footprint(program).values()) <= program.settings.budget_bytes


def pictures() -> onnx.ModelProto:
    """Three convolutions of pictures much larger than the engine's share, and a small result."""
    shape, rng = [1, 16, 128, 128], np.random.default_rng(0)
    weights = {f"w{index}": rng.standard_normal((16, 16, 3, 3)) * 0.1 for index in range(3)}
    names = ["x", "a", "b", "c"]
    nodes = [
        helper.make_node(
            "Conv", [before, f"w{index}"], [after], pads=[1, 1, 1, 1], kernel_shape=[3, 3]
        )
        for index, (before, after) in enumerate(pairwise(names))
    ]
    nodes.append(helper.make_node("MaxPool", ["c"], ["y"], kernel_shape=[8, 8], strides=[8, 8]))
    graph = helper.make_graph(
        nodes,
        "pictures",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [onnx.ValueInfoProto(name="y")],
        [
            numpy_helper.from_array(array.astype(np.float32), name)
            for name, array in weights.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


@pytest.mark.parametrize("most", [64 << 10, 3 * MIB // 2, 5 * MIB // 2, 4 * MIB])
def test_the_workspace_keeps_to_any_limit_or_the_group_is_refused(most: int, write, feeds) -> None:
    model = load_model(write(pictures()))
    try:
        (stage,) = compiled(model, (replace(whole(model), frames=4),), most)
    except InfeasibleError as error:
        assert most < MIB
        assert "workspace" in error.message
        assert error.expected
        return
    assert most > MIB
    assert stage.program.workspace_bytes <= most
    fed = feeds(model)
    for name, reference in run_plain(model, fed).items():
        np.testing.assert_allclose(run_program(stage, fed)[name], reference, rtol=1e-3, atol=1e-3)


def test_frames_are_halved_before_anything_is_split(write) -> None:
    """Bands of rows are for a group that has one frame already."""
    model = load_model(write(pictures()))
    alone = compiled(model, (whole(model),), 16 * MIB)[0].program
    group = replace(whole(model), frames=4)
    fits = compiled(model, (group,), alone.workspace_bytes)[0].program
    assert fits.settings.frames_per_pass == 4
    tight = compiled(model, (group,), alone.workspace_bytes - MIB // 4)[0].program
    assert tight.settings.frames_per_pass == 1
    assert len(tight.tensors) > len(alone.tensors)


def test_workspaces_that_can_not_be_are_refused() -> None:
    for size in (0, -1, 1 << 50):
        with pytest.raises(InputError, match="workspace"):
            GroupTarget(workspace_bytes=size)


def test_tiles_grow_with_the_workspace_up_to_a_limit() -> None:
    sizes = [GroupTarget(workspace_bytes=size * MIB).tile_bytes for size in (1, 9, 12, 64)]
    assert sizes == [4 * MIB, 6 * MIB, 8 * MIB, 8 * MIB]


def test_foreign_instruction_sets_are_refused(samples, write) -> None:
    model = load_model(write(samples["a wide perceptron"]()))
    other = "aarch64" if GroupTarget(workspace_bytes=MIB).target != "aarch64" else "x86-64-avx2"
    with pytest.raises(InputError):
        compile_group(
            model,
            whole(model),
            GroupTarget(workspace_bytes=MIB, isa=other),
            number=0,
            groups=1,
        )


def test_a_paged_model_is_one_group_under_its_cache(samples, write, feeds) -> None:
    model = load_model(write(samples["a wide perceptron"]()))
    stage = compile_paged(model, GroupTarget(workspace_bytes=2 * MIB), "crypto")
    settings = stage.program.settings
    assert (settings.mode, settings.page_mode, settings.frames_per_pass) == ("paged", "crypto", 1)
    assert max(step_pages(stage.program)) * PAGE_BYTES <= 2 * MIB
    assert 0.9 * 2 * MIB <= footprint(stage.program)["idle"] <= 2 * MIB
    fed = feeds(model)
    for name, reference in run_plain(model, fed).items():
        np.testing.assert_allclose(run_program(stage, fed)[name], reference, rtol=1e-4, atol=1e-4)
    with pytest.raises(InfeasibleError):
        compile_paged(model, GroupTarget(workspace_bytes=64 << 10), "crypto")


@pytest.mark.full
@pytest.mark.parametrize("name", ["squeezenet", "googlenet"])
def test_networks_of_the_zoo_run_in_eight_mebibytes(name: str, tmp_path: Path, feeds) -> None:
    model = load_model(build(name, tmp_path))
    stages = compiled(model, step_groups(model), 8 * MIB)
    fed = feeds(model)
    expected = run_plain(model, fed)
    for stage in stages:
        assert stage.program.workspace_bytes <= 8 * MIB
        fed = run_program(stage, fed)
    for name_of, reference in expected.items():
        scale = np.abs(reference).max()
        np.testing.assert_allclose(fed[name_of], reference, rtol=1e-3, atol=1e-5 * scale)
