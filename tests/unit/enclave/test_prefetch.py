"""Weights that are decrypted ahead: in order, at the right time, and never after a pass."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from onnx import helper
from program_cases import (
    Array,
    Stage,
    WatchedLedger,
    Weights,
    chain,
    graph,
    program,
    random_frames,
    run,
    spec,
)

from vaultline.channel.chunks import VaultTamperedError
from vaultline.core.errors import MachineError
from vaultline.core.program import Step, StepWeight
from vaultline.enclave import executor as executor_module
from vaultline.enclave.executor import _LoadedStep

#: Only reached by a pass that is wrong.
WAIT_S = 10.0


@dataclass(slots=True)
class Meeting:
    """A source, and steps, that say what they do and wait for one another."""

    arrays: list[Array]
    log: list[str] = field(default_factory=list)
    #: By weight, what its decryption waits for.
    gates: dict[int, threading.Event] = field(default_factory=dict)
    begun: list[threading.Event] = field(default_factory=list)
    written: list[threading.Event] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.begun, self.written = ([threading.Event() for _ in self.arrays] for _ in range(2))

    def read_weight_into(self, index: int, buffer: memoryview) -> None:
        self.threads.add(threading.current_thread().name)
        self.log.append(f"decrypt {index}")
        self.begun[index].set()
        if index in self.gates and not self.gates[index].wait(WAIT_S):
            raise TimeoutError(f"weight {index} waited in vain")
        buffer[:] = self.arrays[index].tobytes()
        self.written[index].set()


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[int], None]]]:
    """Functions that are called before each call of the engine, with its number."""
    hooks: list[Callable[[int], None]] = []
    plain, calls = _LoadedStep.run, iter(range(1000))

    def hooked(self: _LoadedStep, binding: Any) -> None:
        number = next(calls)
        for hook in hooks:
            hook(number)
        plain(self, binding)

    monkeypatch.setattr(_LoadedStep, "run", hooked)
    yield hooks


def expected(frames: Sequence[Sequence[Array]], weights: Sequence[Array]) -> list[Array]:
    made = []
    for (frame,) in frames:
        for weight in weights:
            frame = frame @ weight
        made.append(frame)
    return made


@pytest.mark.parametrize("how", ["apart", "packed"])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_outputs_are_those_without_prefetch(count: int, how: Any) -> None:
    found = []
    for prefetch in (False, True):
        made, weights = chain(count, prefetch=prefetch, how=how)
        source = Weights(weights)
        stage = Stage(made, source)
        for seed in range(3):
            frames = random_frames(made, 3 - seed, seed)
            outputs = stage.passed(frames)
            found.append(outputs)
            for output, right in zip(outputs, expected(frames, weights), strict=True):
                values = np.frombuffer(output[0], np.float32)
                np.testing.assert_allclose(values, right[0], rtol=1e-5, atol=1e-6)
        assert source.reads == list(range(count)) * 3
        assert stage.executor.metrics.passes == 3
        assert stage.executor.metrics.streamed_bytes == 3 * sum(each.nbytes for each in weights)
        stage.executor.close()
    assert found[:3] == found[3:]


def test_the_next_weights_are_decrypted_while_a_step_runs(
    steps: list[Callable[[int], None]],
) -> None:
    """Each waits for the other to have begun: one after the other they would wait for ever."""
    made, weights = chain(4, frames=1, prefetch=True)
    computing = [threading.Event() for _ in weights]
    meeting = Meeting(weights, gates={k + 1: computing[k] for k in range(3)})

    def compute(number: int) -> None:
        computing[number].set()
        assert number == 3 or meeting.begun[number + 1].wait(WAIT_S)

    steps.append(compute)
    stage = Stage(made, meeting)
    frames = random_frames(made, 1)
    (output,) = stage.passed(frames)
    np.testing.assert_allclose(
        np.frombuffer(output[0], np.float32), expected(frames, weights)[0][0], rtol=1e-5
    )
    assert meeting.log == [f"decrypt {k}" for k in range(4)]
    assert threading.current_thread().name not in meeting.threads
    stage.executor.close()


def test_without_prefetch_a_step_has_ended_before_the_next_weights_come(
    steps: list[Callable[[int], None]],
) -> None:
    made, weights = chain(3, frames=2, prefetch=False)
    meeting = Meeting(weights)
    steps.append(lambda number: meeting.log.append(f"compute {number}"))
    Stage(made, meeting).passed(random_frames(made, 2))
    assert meeting.log == [
        line
        for k in range(3)
        for line in (f"decrypt {k}", f"compute {2 * k}", f"compute {2 * k + 1}")
    ]
    assert meeting.threads == {threading.current_thread().name}


@dataclass(slots=True)
class Tampered:
    """A source one of whose weights does not verify, from some reading of it on."""

    arrays: list[Array]
    index: int
    after: int = 0

    def read_weight_into(self, index: int, buffer: memoryview) -> None:
        if index == self.index:
            self.after -= 1
            if self.after < 0:
                buffer[:] = bytes(len(buffer))
                raise VaultTamperedError("a weight was altered")
        buffer[:] = self.arrays[index].tobytes()


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("index", range(4))
def test_an_altered_weight_ends_a_pass_before_any_of_its_frames_is_out(
    index: int, prefetch: bool
) -> None:
    made, weights = chain(4, prefetch=prefetch)
    stage = Stage(made, Tampered(weights, index, after=1))
    frames = random_frames(made, 3)
    right = stage.passed(frames)
    for _ in range(2):
        released = []
        with pytest.raises(VaultTamperedError):
            released.extend(stage.passing(frames))
        assert released == []
        assert isinstance(stage.ledger, WatchedLedger)
        assert stage.ledger.at_rest()
    assert stage.executor.metrics.passes == 1
    stage.executor._source = Weights(weights)
    assert stage.passed(frames) == right
    stage.executor.close()


@pytest.mark.parametrize("fails_at", range(4))
def test_after_a_pass_that_fails_nothing_is_decrypted_any_more(
    fails_at: int, steps: list[Callable[[int], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decryption ahead is held up until the pass waits for it, which it must."""
    made, weights = chain(4, frames=1, prefetch=True)
    gate = threading.Event()
    meeting = Meeting(weights, gates={fails_at + 1: gate})

    def fail(number: int) -> None:
        if number == fails_at:
            if fails_at < 3:
                assert meeting.begun[fails_at + 1].wait(WAIT_S)
            raise MachineError("the engine failed on a frame")

    def waited(pending: Any) -> Any:
        gate.set()
        return futures.wait(pending)

    monkeypatch.setattr(executor_module, "wait", waited)
    steps.append(fail)
    stage = Stage(made, meeting)
    frames = random_frames(made, 1)
    with pytest.raises(MachineError, match="failed"):
        stage.passed(frames)
    last = min(fails_at + 1, 3)
    assert [event.is_set() for event in meeting.written] == [k <= last for k in range(4)]
    assert isinstance(stage.ledger, WatchedLedger)
    assert stage.ledger.at_rest()
    steps.clear()
    stage.executor._source = Weights(weights)
    assert stage.passed(frames) == run(made, frames, Weights(weights))
    stage.executor.close()


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("taken", range(4))
def test_a_pass_that_nobody_wants_to_its_end_leaves_nothing_lent(
    taken: int, prefetch: bool
) -> None:
    made, weights = chain(3, prefetch=prefetch)
    stage = Stage(made, Weights(weights))
    frames = random_frames(made, 3)
    passing = stage.passing(frames)
    assert [next(passing) for _ in range(taken)] == list(range(taken))
    passing.close()  # type: ignore[attr-defined]
    assert isinstance(stage.ledger, WatchedLedger)
    assert stage.ledger.at_rest()
    assert stage.passed(frames) == run(made, frames, Weights(weights))
    stage.executor.close()


def test_the_engines_own_failure_leaves_the_stage_usable() -> None:
    """An index out of bounds, which only the frame decides; the weight before has been streamed."""
    table, index, y = spec("table", (3, 2)), spec("i", (1,), "int64"), spec("y", (1, 2))
    gather = graph(
        [helper.make_node("Gather", ["table", "i"], ["o"])], {"table": table, "i": index}, {"o": y}
    )
    step = Step(
        graph=0,
        feeds=(("i", 0),),
        weights=(StepWeight(input="table", weight=0),),
        fetches=(("o", 1),),
    )
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    made = program([index, y], ((0,), (1,)), [gather], [step], [rows], mode="streamed", frames=2)
    stage = Stage(made, Weights([rows]))
    good, bad = ([np.array([k], np.int64)] for k in (2, 7))
    passing = stage.passing([good, bad])
    assert next(passing) == 0
    with pytest.raises(MachineError, match="engine failed"):
        next(passing)
    assert isinstance(stage.ledger, WatchedLedger)
    assert stage.ledger.at_rest()
    assert stage.passed([good]) == [[rows[2:].tobytes()]]


def test_a_closed_stage_has_no_thread() -> None:
    before = threading.active_count()
    made, weights = chain(3, prefetch=True)
    stage = Stage(made, Weights(weights))
    stage.passed(random_frames(made, 1))
    assert threading.active_count() == before + 1
    stage.executor.close()
    assert threading.active_count() == before
