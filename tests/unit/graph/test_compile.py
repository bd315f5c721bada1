"""Stage programs: same numbers, no weight inside, steps and tiles of bounded size."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from vaultline.core.errors import InfeasibleError, InputError
from vaultline.core.limits import MIB
from vaultline.core.program import StageProgram, StageSettings, streamed_bytes
from vaultline.core.serde import from_msgpack, to_msgpack
from vaultline.cost.footprint import footprint
from vaultline.graph.compile import CompiledStage, compile_segment
from vaultline.graph.engine import run_plain
from vaultline.graph.isa import local_isa
from vaultline.graph.model import Model, load_model
from vaultline.graph.reference import ReferenceRunner, run_program
from vaultline.graph.structure import CONSTANT_BYTES_MAX


def settings(mode: str = "resident", budget_bytes: int = 1 << 30) -> StageSettings:
    return StageSettings(
        stage=0,
        stages=1,
        threads=1,
        budget_bytes=budget_bytes,
        mode=mode,
        frames_per_pass=4,
        queue_frames=4,
    )


def compiled(
    model: Model,
    first: int = 0,
    last: int | None = None,
    *,
    mode: str = "resident",
    budget_bytes: int = 1 << 30,
    **more: object,
) -> CompiledStage:
    end = model.node_count if last is None else last
    more = {"step_bytes": 1 << 16, **more}
    try:
        return compile_segment(model, first, end, settings=settings(mode, budget_bytes), **more)
    except InfeasibleError as error:
        # What a Loop collects has no known size: such a stage is resident or not at all.
        if "no bound" not in str(error) or not any(node.op == "Loop" for node in model.nodes):
            raise
        chosen = settings("resident", budget_bytes)
        return compile_segment(model, first, end, settings=chosen, **more)


def close(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(got) == list(expected)
    for name, reference in expected.items():
        scale = np.abs(reference).max() or 1
        assert np.abs(got[name] - reference).max() <= 1e-4 * scale, name


VARIANTS = {
    "resident": {"mode": "resident"},
    "streamed": {"mode": "streamed"},
    "streamed in tiny steps": {"mode": "streamed", "step_bytes": 256},
    "paged": {"mode": "paged"},
    "portable": {"portable": True},
    "without rewrites": {"rewrites": False},
}


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_programs_of_two_stages_equal_the_model(variant: str, sample: Model, feeds) -> None:
    fed = feeds(sample)
    expected = run_plain(sample, fed)
    for position in {1, sample.node_count // 2, sample.node_count - 1} - {0, sample.node_count}:
        before = compiled(sample, 0, position, **VARIANTS[variant])
        after = compiled(sample, position, sample.node_count, **VARIANTS[variant])
        close(run_program(after, run_program(before, fed)), expected)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_no_weight_is_inside_a_graph(variant: str, sample: Model) -> None:
    stage = compiled(sample, **VARIANTS[variant])
    for graph in stage.program.graphs:
        model = onnx.load_model_from_string(graph)
        for tensor in model.graph.initializer:
            array = onnx.numpy_helper.to_array(tensor)
            assert array.size <= 1 or array.nbytes <= CONSTANT_BYTES_MAX
            if array.size > 1 and array.dtype not in (np.int64, np.bool_):
                readers = [n.op_type for n in model.graph.node if tensor.name in n.input]
                assert set(readers) <= {"Resize", "Upsample"}
        assert not [n for n in model.graph.node if n.op_type == "Constant"]
    sizes = [weight.spec.nbytes for weight in stage.program.weights]
    assert [len(data) for data in stage.weights] == sizes


def test_programs_survive_the_wire(sample: Model) -> None:
    program = compiled(sample, mode="streamed").program
    wire = to_msgpack(program)
    assert from_msgpack(wire, StageProgram, what="program", bytes_max=1 << 24) == program
    assert program.isa == local_isa()


def test_compiling_is_deterministic(sample: Model) -> None:
    one, two = compiled(sample, mode="streamed"), compiled(sample, mode="streamed")
    assert one.program == two.program
    assert [bytes(data) for data in one.weights] == [bytes(data) for data in two.weights]


BUDGETS = {"ample": 4 * MIB, "less than the weights": 2 * MIB, "scarce": 1_700_000}


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_streamed_stages_hold_no_more_than_their_budget(budget: str, samples, write) -> None:
    model = load_model(write(samples["a wide perceptron"]()))
    memory = BUDGETS[budget]
    program = compiled(model, mode="streamed", step_bytes=200_000, budget_bytes=memory).program
    assert sum(footprint(program).values()) <= memory
    streams = sum(streamed_bytes(program, step) for step in program.steps)
    assert (streams > 0) == (memory < model.weight_bytes)


def test_tiles_are_steps_of_their_own(samples, write) -> None:
    model = load_model(write(samples["a wide perceptron"]()))
    program = compiled(model, mode="streamed", step_bytes=200_000, budget_bytes=1_700_000).program
    for step in program.steps:
        read = {each.weight for each in step.weights}
        assert sum(program.weights[index].spec.nbytes for index in read) <= 200_000


def test_too_little_memory_is_refused_with_the_node_that_needs_most(samples, write) -> None:
    model = load_model(write(samples["a wide perceptron"]()))
    with pytest.raises(InfeasibleError) as error:
        compiled(model, mode="streamed", step_bytes=200_000, budget_bytes=100_000)
    assert "Gemm" in error.value.expected
    assert error.value.remedy


def test_memory_without_a_bound_is_refused_when_weights_are_streamed(samples, write) -> None:
    model = load_model(write(samples["Loop with captures"]()))
    chosen = settings("streamed")
    with pytest.raises(InfeasibleError, match="no bound") as error:
        compile_segment(model, 0, model.node_count, settings=chosen, step_bytes=1 << 16)
    assert "totals" in error.value.got


def test_tiles_of_one_shape_share_a_graph(samples, write) -> None:
    model = load_model(write(samples["a wide perceptron"]()))
    program = compiled(model, mode="streamed", step_bytes=200_000, budget_bytes=1_700_000).program
    tiles = [step for step in program.steps if step.weights]
    assert len(tiles) > 8
    assert len({step.graph for step in tiles}) <= 5


def test_resident_stages_have_few_steps(samples, write) -> None:
    net = load_model(write(samples["a small convolutional network"]()))
    assert len(compiled(net).program.steps) == 1
    wide = load_model(write(samples["a wide perceptron"]()))
    steps = compiled(wide).program.steps
    assert [step.stackable for step in steps] == [True]


@pytest.mark.parametrize("variant", ["resident", "streamed", "portable"])
def test_stacked_frames_equal_single_frames(variant: str, samples, write, feeds) -> None:
    model = load_model(write(samples["a wide perceptron"]()))
    stage = compiled(model, **VARIANTS[variant])
    assert all(step.stackable for step in stage.program.steps)
    runner = ReferenceRunner(stage)
    frames = [feeds(model, seed)["x"] for seed in range(5)]
    stacked = runner.run({"x": np.concatenate(frames)})["y"]
    single = np.concatenate([runner.run({"x": frame})["y"] for frame in frames])
    np.testing.assert_allclose(stacked, single, rtol=1e-5, atol=1e-7)


def test_only_row_independent_steps_are_stackable(sample: Model, feeds) -> None:
    """Rolling the frames of a stackable step's inputs must roll its outputs."""
    stage = compiled(sample, mode="streamed", step_bytes=1 << 12)
    runner, rng = ReferenceRunner(stage), np.random.default_rng(1)
    weights = dict(enumerate(stage.weights))
    for step in stage.program.steps:
        if not step.stackable:
            continue
        specs = stage.program.tensors
        frames = {
            name: rng.standard_normal((3, *specs[index].shape[1:])).astype(np.float32)
            for name, index in step.feeds
        }
        fed = {
            each.input: np.frombuffer(weights[each.weight], np.float32).reshape(
                stage.program.weights[each.weight].spec.shape
            )
            for each in step.weights
        }
        session = runner.session(step)
        plain = session.run(None, {**frames, **fed})
        rolled = session.run(None, {**{k: np.roll(v, 1, 0) for k, v in frames.items()}, **fed})
        for one, two in zip(plain, rolled, strict=True):
            np.testing.assert_allclose(np.roll(one, 1, 0), two, rtol=1e-5, atol=1e-7)


def test_activations_are_the_peak_of_a_frames_tensors(samples, write) -> None:
    model = load_model(write(samples["a small convolutional network"]()))
    (step,) = compiled(model, 0, 2, portable=True).program.steps
    assert step.activation_bytes == 20 * 16 * 16 * 4  # Conv's result, before Relu makes the output


def test_a_foreign_instruction_set_is_refused(samples, write) -> None:
    model = load_model(write(samples["opset 9"]()))
    foreign = "aarch64" if local_isa() != "aarch64" else "x86-64-avx512"
    with pytest.raises(InputError, match="instruction set"):
        compiled(model, isa=foreign)
    assert compiled(model, isa="portable").program.isa == "portable"


def test_portable_programs_use_standard_operators_only(sample: Model) -> None:
    for graph in compiled(sample, portable=True).program.graphs:
        model = onnx.load_model_from_string(graph)
        assert {item.domain for item in model.opset_import} == {""}
