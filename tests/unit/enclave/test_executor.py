"""Programs made by hand: stacking, tensors that pass through, and every kind of tensor."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from onnx import helper
from program_cases import Array, Weights, graph, program, run, spec

from vaultline.core.errors import MachineError
from vaultline.core.program import StageProgram, Step, StepWeight
from vaultline.core.tensors import TensorSpec
from vaultline.enclave.executor import Executor, ProgramRefusedError, check_engine
from vaultline.enclave.ledger import BudgetExceededError, Ledger
from vaultline.testing.programs import Arrangement


def perceptron(
    mode: str, how: Arrangement = "apart", **options: Any
) -> tuple[StageProgram, list[Array]]:
    """Stage input -> stackable product -> plain step -> stackable product -> stage output.

    The first and last steps stack tensors that live in messages; what is between lives in slots.
    """
    random = np.random.default_rng(3)
    first = random.standard_normal((6, 5)).astype(np.float32)
    second = random.standard_normal((5, 3)).astype(np.float32)
    x, h, r, y = spec("x", (1, 6)), spec("h", (1, 5)), spec("r", (1, 5)), spec("y", (1, 3))

    def product(left: TensorSpec, right: Array, out: TensorSpec) -> bytes:
        node = helper.make_node("MatMul", ["a", "w"], ["o"])
        return graph([node], {"a": left, "w": spec("w", right.shape)}, {"o": out}, stacked="ao")

    def step(number: int, reads: int, writes: int, weight: int | None) -> Step:
        names = ("a", "o")
        return Step(
            graph=number,
            feeds=((names[0], reads),),
            weights=() if weight is None else (StepWeight(input="w", weight=weight),),
            fetches=((names[1], writes),),
            stackable=weight is not None,
        )

    relu = graph([helper.make_node("Relu", ["a"], ["o"])], {"a": h}, {"o": r})
    graphs = [product(x, first, h), relu, product(r, second, y)]
    steps = [step(0, 0, 1, 0), step(1, 1, 2, None), step(2, 2, 3, 1)]
    weights = [first, second]
    ends = ((0,), (3,))
    made = program([x, h, r, y], ends, graphs, steps, weights, mode=mode, how=how, **options)
    return made, weights


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("how", get_args(Arrangement))
@pytest.mark.parametrize("mode", ["resident", "streamed"])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_stacked_frames_come_out_as_one_by_one(
    mode: str, count: int, how: Arrangement, prefetch: bool
) -> None:
    made, weights = perceptron(mode, how, prefetch=prefetch)
    random = np.random.default_rng(count)
    frames = [[random.standard_normal((1, 6)).astype(np.float32)] for _ in range(count)]
    together = run(made, frames, Weights(weights))
    for frame, outputs in zip(frames, together, strict=True):
        expected = np.maximum(frame[0] @ weights[0], 0) @ weights[1]
        found = np.frombuffer(outputs[0], np.float32)
        alone = np.frombuffer(run(made, [frame], Weights(weights))[0][0], np.float32)
        np.testing.assert_allclose(found, expected[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found, alone, rtol=1e-5, atol=1e-6)


def test_a_pass_decrypts_each_streamed_weight_once_and_resident_ones_only_at_loading() -> None:
    frames = [[np.ones((1, 6), np.float32)]] * 4
    for mode, reads in (("resident", [0, 1]), ("streamed", [0, 1])):
        made, arrays = perceptron(mode)
        weights = Weights(arrays)
        run(made, frames, weights)
        assert weights.reads == reads


def test_a_tensor_that_is_input_and_output_passes_through() -> None:
    x, y = spec("x", (1, 3)), spec("y", (1, 3))
    relu = graph([helper.make_node("Relu", ["a"], ["o"])], {"a": x}, {"o": y})
    step = Step(graph=0, feeds=(("a", 0),), weights=(), fetches=(("o", 1),))
    made = program([x, y], ((0,), (0, 1)), [relu], [step])
    frames = [[np.full((1, 3), value, np.float32)] for value in (-1.0, 2.0)]
    found = [[np.frombuffer(o, np.float32).tolist() for o in frame] for frame in run(made, frames)]
    assert found == [[[-1.0] * 3, [0.0] * 3], [[2.0] * 3, [2.0] * 3]]


def test_a_stage_without_steps_passes_everything_through() -> None:
    made = program([spec("x", (1, 3))], ((0,), (0,)), [], [])
    frame = np.arange(3, dtype=np.float32).reshape(1, 3)
    assert run(made, [[frame], [frame + 1]]) == [[frame.tobytes()], [(frame + 1).tobytes()]]


KINDS = {
    "bfloat16": (spec("x", (1, 4), "bfloat16"), np.array([[0x3F80, 0xC000, 0, 1]], np.uint16)),
    "float16": (spec("x", (1, 4), "float16"), np.array([[1, -2, 0.5, 0]], np.float16)),
    "bool": (spec("x", (1, 3), "bool"), np.array([[True, False, True]])),
    "int64": (spec("x", (1, 2), "int64"), np.array([[1 << 40, -5]], np.int64)),
    "uint8": (spec("x", (1, 5), "uint8"), np.array([[0, 1, 2, 254, 255]], np.uint8)),
    "a scalar": (spec("x", ()), np.array(2.5, np.float32)),
    "nothing at all": (spec("x", (1, 0, 3)), np.empty((1, 0, 3), np.float32)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tensor_enters_waits_between_steps_and_leaves(kind: str) -> None:
    x, value = KINDS[kind]
    between, y = spec("t", x.shape, x.dtype), spec("y", x.shape, x.dtype)
    copies = [
        graph([helper.make_node("Identity", ["a"], ["o"])], {"a": a}, {"o": b})
        for a, b in ((x, between), (between, y))
    ]
    steps = [
        Step(graph=number, feeds=(("a", number),), weights=(), fetches=(("o", number + 1),))
        for number in range(2)
    ]
    made = program([x, between, y], ((0,), (2,)), copies, steps, frames=2)
    assert run(made, [[value], [value]]) == [[value.tobytes()]] * 2


def test_a_stage_beyond_its_budget_is_refused_before_a_weight_is_read() -> None:
    made, arrays = perceptron("resident")
    weights = Weights(arrays)
    with pytest.raises(BudgetExceededError) as caught:
        Executor(made, weights, Ledger(64))
    assert caught.value.remedy
    assert weights.reads == []


def test_a_graph_that_the_engine_refuses_is_an_error_with_a_reason() -> None:
    x = spec("x", (1, 3))
    step = Step(graph=0, feeds=(("a", 0),), weights=(), fetches=(("o", 1),))
    made = program([x, spec("y", (1, 3))], ((0,), (1,)), [b"no graph"], [step])
    with pytest.raises(MachineError, match="refuses"):
        Executor(made, Weights([]), Ledger(1 << 20))


def test_a_program_for_another_engine_is_refused_unless_portable() -> None:
    x = spec("x", (1, 3))
    check_engine(program([x], ((0,), (0,)), [], []), "x86-64-avx2")
    with pytest.raises(ProgramRefusedError) as caught:
        check_engine(program([x], ((0,), (0,)), [], [], isa="x86-64-avx512"), "x86-64-avx2")
    assert caught.value.got
    assert caught.value.expected
    assert caught.value.remedy
