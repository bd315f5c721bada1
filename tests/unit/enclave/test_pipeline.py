"""A stage between two hops that are fakes: order, passes, back-pressure, and how it ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace

from vaultline.core.errors import MachineError, PeerError, VaultlineError
from vaultline.core.frame_meta import (
    FrameMeta,
    hop_buffers_bytes,
    read_meta,
    read_times,
    write_meta,
)
from vaultline.core.frames import OUTPUT_FRAMES_EXTRA, FrameLayout, HopClock, StageTimes
from vaultline.core.program import StageProgram
from vaultline.core.tensors import TensorSpec
from vaultline.enclave.executor import FrameBuffer
from vaultline.enclave.ledger import BudgetExceededError, Ledger
from vaultline.enclave.pipeline import Pipeline, Progress, StageBuffers
from vaultline.testing.vaults import small_stage

#: Queue, frames a pass, floats of the frame: messages shorter and longer than one record; replicas
#: before, of the stage and after, and how many connections they make.
SHAPES = {
    "one small frame": (1, 1, 3, (1, 1, 1), (1, 1)),
    "a queue and a pass": (8, 4, 1000, (1, 1, 1), (1, 1)),
    "frames of several records": (5, 2, 700_000, (1, 1, 1), (1, 1)),
    "two of two between three and four": (5, 2, 700_000, (3, 2, 4), (3, 2)),
    "one between many": (2, 1, 1000, (3, 1, 4), (3, 4)),
    "as many before and after": (2, 1, 1000, (4, 4, 4), (1, 1)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_stage_takes_what_the_owner_plans_for_its_hops(shape: str) -> None:
    queue, frames, floats, counts, connections = SHAPES[shape]
    program = small_stage(()).program
    program = replace(
        program,
        settings=replace(
            program.settings,
            queue_frames=queue,
            frames_per_pass=frames,
            sources=counts[0],
            replicas=counts[1],
            targets=counts[2],
        ),
        tensors=(TensorSpec(name="frame", dtype="float32", shape=(1, floats)),),
    )
    ledger = Ledger(1 << 30)
    buffers = StageBuffers(program, ledger)
    planned = hop_buffers_bytes(
        queue_frames=queue,
        frames_per_pass=frames,
        input_bytes=buffers.input_layout.message_bytes,
        output_bytes=buffers.output_layout.message_bytes,
        connections=connections,
    )
    assert ledger.held["io"] == planned == (1 << 30) - ledger.free_bytes
    with pytest.raises(BudgetExceededError):
        StageBuffers(program, Ledger(planned - 1))


QUEUE, FRAMES = 5, 3
WAIT_S = 10.0
_PROGRAM = small_stage(()).program
LAYOUT = FrameLayout(_PROGRAM.specs(_PROGRAM.inputs), _PROGRAM.settings.stages)


@dataclass(slots=True)
class Receiver:
    """A hop that hands out frames 0, 1, 2, ... and then ends or fails."""

    frames: int
    error: VaultlineError | None = None
    clock: HopClock = field(default_factory=HopClock)
    received: int = 0
    #: Set once the frame of that number has been asked for.
    asked: dict[int, threading.Event] = field(default_factory=dict)
    sender: Sender | None = None
    most_waiting: int = 0
    closed: bool = False

    def receive(self, target: memoryview) -> bool:
        if self.received in self.asked:
            self.asked[self.received].set()
        if self.received == self.frames:
            if self.error is not None:
                raise self.error
            return False
        meta = FrameMeta(index=self.received, timestamp_s=0.5, sent_ns=7)
        write_meta(LAYOUT, target, meta)
        self.received += 1
        if self.sender is not None:
            waiting = self.received - len(self.sender.sent)
            self.most_waiting = max(self.most_waiting, waiting)
        return True

    def close(self) -> None:
        self.closed = True


@dataclass(slots=True)
class Sender:
    """A hop that keeps the order of frames; it waits at a gate, and fails at a frame if told."""

    fails_at: int | None = None
    gate: threading.Event | None = None
    clock: HopClock = field(default_factory=HopClock)
    sent: list[int] = field(default_factory=list)
    times: list[StageTimes] = field(default_factory=list)
    ended: bool = False
    aborted: str | None = None
    closed: bool = False

    def send(self, message: memoryview) -> None:
        if self.gate is not None:
            assert self.gate.wait(WAIT_S)
        if len(self.sent) == self.fails_at:
            raise PeerError("the next hop broke")
        self.sent.append(read_meta(message).index)
        self.times += read_times(LAYOUT, message)

    def end(self) -> None:
        self.ended = True

    def abort(self, reason: str) -> None:
        self.aborted = reason

    def close(self) -> None:
        self.closed = True


@dataclass(slots=True)
class Engine:
    """An executor that computes nothing: it notes its passes and fails at a frame if told."""

    fails_at: int | None = None
    gate: threading.Event | None = None
    passes: list[int] = field(default_factory=list)
    ends_stacked: bool = False

    def run_pass(
        self, inputs: Sequence[FrameBuffer], outputs: Sequence[FrameBuffer]
    ) -> Iterator[int]:
        if self.gate is not None:
            assert self.gate.wait(WAIT_S)
        self.passes.append(len(inputs))
        for position in range(len(outputs)):
            if sum(self.passes[:-1]) + position == self.fails_at:
                raise MachineError("the engine failed on a frame")
            yield position


def stage(replicas: int) -> StageProgram:
    program = small_stage((), replicas=(1, replicas, 1)).program
    how = replace(program.settings, queue_frames=QUEUE, frames_per_pass=FRAMES)
    return replace(program, settings=how)


def pipeline(
    receiver: Receiver, sender: Sender, engine: Engine, replicas: int = 1
) -> tuple[Pipeline, Progress]:
    """The last of so many replicas."""
    program, progress = stage(replicas), Progress()
    buffers = StageBuffers(program, Ledger(1 << 20))
    parts = (program, engine, buffers, receiver, sender, progress, replicas - 1)
    return Pipeline(*parts), progress  # type: ignore[arg-type]


def test_all_frames_leave_in_order_and_the_end_is_passed_on() -> None:
    receiver, sender, engine = Receiver(50), Sender(), Engine()
    made, progress = pipeline(receiver, sender, engine)
    made.run()
    assert sender.sent == list(range(50))
    assert (sender.ended, sender.aborted, sender.closed, receiver.closed) == (
        True,
        None,
        True,
        True,
    )
    assert sum(engine.passes) == progress.frames == 50
    assert max(engine.passes) <= FRAMES
    assert progress.busy_since_s is None


def test_a_pass_takes_all_that_waits_up_to_its_size() -> None:
    """The engine starts when the queue is full: then two passes take all of it."""
    full = threading.Event()
    receiver = Receiver(QUEUE, asked={QUEUE - 1: full})
    engine = Engine(gate=full)
    made, _ = pipeline(receiver, Sender(), engine)
    made.run()
    assert sum(engine.passes) == QUEUE
    # The first pass began with what was there; whatever it left over was one or two passes more.
    assert len(engine.passes) <= QUEUE - 1
    assert max(engine.passes) > 1


def test_a_receiver_waits_while_all_buffers_are_full() -> None:
    """However long the next hop takes, no more frames are on their way than have buffers."""
    gate = threading.Event()
    sender = Sender(gate=gate)
    # One pass is computed behind the closed gate, so this many frames are asked for at least.
    receiver = Receiver(100, asked={QUEUE + FRAMES - 1: gate}, sender=sender)
    made, _ = pipeline(receiver, sender, Engine())
    made.run()
    assert sender.sent == list(range(100))
    assert QUEUE + FRAMES - 1 <= receiver.most_waiting <= QUEUE + FRAMES + OUTPUT_FRAMES_EXTRA


def test_a_broken_hop_before_ends_the_stage_after_what_had_arrived() -> None:
    receiver = Receiver(4, error=PeerError("the hop before broke"))
    sender = Sender()
    made, _ = pipeline(receiver, sender, Engine())
    with pytest.raises(PeerError, match="before broke"):
        made.run()
    assert sender.sent == [0, 1, 2, 3]
    assert (sender.ended, sender.aborted) == (False, "stage 0: the hop before broke")
    assert sender.closed
    assert receiver.closed


@pytest.mark.parametrize("frame", [0, 1, 4])
def test_a_failing_engine_ends_the_stage_and_the_next_hop_learns_why(frame: int) -> None:
    sender = Sender()
    made, _ = pipeline(Receiver(9), sender, Engine(fails_at=frame))
    with pytest.raises(MachineError):
        made.run()
    assert sender.sent == list(range(frame))
    assert sender.aborted == "stage 0: the engine failed on a frame"


def test_a_broken_connection_behind_is_told_to_the_replicas_that_still_listen() -> None:
    sender = Sender(fails_at=1)
    made, _ = pipeline(Receiver(9), sender, Engine(), replicas=2)
    with pytest.raises(PeerError):
        made.run()
    assert sender.aborted == "stage 0 (replica 1): the next hop broke"


@pytest.mark.parametrize("frames", [2, 9, 50])
def test_a_broken_hop_behind_ends_the_stage_even_if_all_frames_had_arrived(frames: int) -> None:
    receiver, sender = Receiver(frames), Sender(fails_at=1)
    made, _ = pipeline(receiver, sender, Engine())
    with pytest.raises(PeerError, match="next hop broke"):
        made.run()
    assert sender.sent == [0]
    assert not sender.ended
    assert sender.closed
    assert receiver.closed


def test_the_times_of_a_frame_are_in_its_message() -> None:
    sender = Sender()
    made, _ = pipeline(Receiver(3), sender, Engine())
    made.run()
    assert len(sender.times) == 3
    assert all(0 < times.started_ns <= times.finished_ns for times in sender.times)
    finished = [times.finished_ns for times in sender.times]
    assert finished == sorted(finished)
