"""Stages with any numbers of replicas, in one process: results in order, exactly once, and every
failure told. Real pipelines over real connections; a stage passes its input through."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultline.channel.messages import StreamAbortedError
from vaultline.core.errors import MachineError, VaultlineError
from vaultline.core.frame_meta import FrameMeta, read_meta, read_times, write_meta
from vaultline.core.frames import FrameLayout
from vaultline.core.replicas import neighbours
from vaultline.enclave.executor import Executor, FrameBuffer
from vaultline.enclave.ledger import Ledger
from vaultline.enclave.pipeline import Pipeline, Progress, StageBuffers
from vaultline.testing.vaults import small_stage
from vaultline.transport.sockets import ConnectionLostError, hang_up
from vaultline.transport.streams import FanIn, FanOut, Hop

WAIT_S = 10.0
#: The least that the kernel grants: senders block early, so that a wrong order would show.
SOCKET_BYTES = 2048
ENDLESS = 100_000


class NoWeights:
    """A stage without steps asks for none."""

    def read_weight_into(self, index: int, buffer: memoryview) -> None:
        raise IndexError(index)


@dataclass
class Failing:
    """An executor that fails at its ``fails_at``-th frame."""

    inner: Executor
    fails_at: int
    done: int = 0
    ends_stacked: bool = False

    def run_pass(
        self, inputs: Sequence[FrameBuffer], outputs: Sequence[FrameBuffer]
    ) -> Iterator[int]:
        for position in self.inner.run_pass(inputs, outputs):
            if self.done == self.fails_at:
                raise MachineError("the engine failed")
            self.done += 1
            yield position


@dataclass
class Deployment:
    """The owner's ends of a row of stages whose replicas run in threads.

    ``fails`` is (stage, replica, at which of its frames).
    """

    counts: tuple[int, ...]
    fails: tuple[int, int, int] | None = None
    stack: ExitStack = field(default_factory=ExitStack)
    threads: list[threading.Thread] = field(default_factory=list)
    errors: list[tuple[int, int, VaultlineError]] = field(default_factory=list)
    progress: dict[tuple[int, int], Progress] = field(default_factory=dict)

    def __post_init__(self) -> None:
        program = small_stage((), stages=len(self.counts)).program
        self.layout = FrameLayout(program.specs(program.inputs), len(self.counts))
        everyone = (1, *self.counts, 1)
        self.hops = [
            Hop(
                number=number,
                epoch=4,
                secret=bytes([number]) * 32,
                message_bytes=self.layout.message_bytes,
                sources=before,
                targets=after,
            )
            for number, (before, after) in enumerate(pairwise(everyone))
        ]
        self.ends = {
            (hop.number, source, target): self._pair()
            for hop in self.hops
            for source in range(hop.sources)
            for target in neighbours(source, hop.sources, hop.targets)
        }
        for stage, count in enumerate(self.counts):
            for replica in range(count):
                self._start(stage, replica)
        self.sender, self.receiver = self._out(0, 0), self._into(len(self.counts), 0)

    def _pair(self) -> tuple[socket.socket, socket.socket]:
        ends = socket.socketpair()
        for sock in ends:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
            sock.settimeout(WAIT_S)  # a test that would hang fails instead
            self.stack.enter_context(sock)
        return ends

    def _out(self, number: int, source: int) -> FanOut:
        hop = self.hops[number]
        targets = neighbours(source, hop.sources, hop.targets)
        return FanOut(hop, source, [self.ends[number, source, target][0] for target in targets])

    def _into(self, number: int, target: int) -> FanIn:
        hop = self.hops[number]
        sources = neighbours(target, hop.targets, hop.sources)
        socks = [self.ends[number, source, target][1] for source in sources]
        return FanIn(hop, target, [lambda sock=sock: sock for sock in socks])  # type: ignore[misc]

    def _start(self, stage: int, replica: int) -> None:
        around = (1, *self.counts, 1)[stage : stage + 3]
        program = small_stage(
            (), stage=stage, stages=len(self.counts), replicas=(around[0], around[1], around[2])
        ).program
        ledger = Ledger(8 << 20)
        buffers = StageBuffers(program, ledger)
        executor: Executor | Failing = Executor(program, NoWeights(), ledger)
        if self.fails is not None and self.fails[:2] == (stage, replica):
            executor = Failing(executor, self.fails[2])
        progress = self.progress[stage, replica] = Progress()
        into, out = self._into(stage, replica), self._out(stage + 1, replica)
        made = Pipeline(program, executor, buffers, into, out, progress, replica)  # type: ignore[arg-type]

        def run() -> None:
            try:
                made.run()
            except VaultlineError as error:
                self.errors.append((stage, replica, error))
            finally:
                self.hang_up(stage, replica)

        self.threads.append(threading.Thread(target=run, daemon=True))
        self.threads[-1].start()

    def hang_up(self, stage: int, replica: int) -> None:
        """What a process leaves when it ends: nothing, also of connections it never looked at."""
        for (number, source, target), (out, into) in self.ends.items():
            if (number, target) == (stage, replica):
                hang_up(into)
            if (number, source) == (stage + 1, replica):
                hang_up(out)

    def stop(self, feeding: threading.Thread) -> None:
        """The owner goes; then every replica has ended."""
        self.hang_up(-1, 0)
        self.hang_up(len(self.counts), 0)
        for thread in (feeding, *self.threads):
            thread.join(WAIT_S)
            assert not thread.is_alive()

    def feed(self, frames: int) -> threading.Thread:
        """Send frames and the end, as the owner does, while its results are read."""

        def run() -> None:
            message = memoryview(bytearray(self.layout.message_bytes))
            try:
                for index in range(frames):
                    meta = FrameMeta(index=index, timestamp_s=0.0, sent_ns=1)
                    write_meta(self.layout, message, meta)
                    self.sender.send(message)
                self.sender.end()
            except ConnectionLostError:
                return

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def results(self) -> Iterator[int]:
        """Frame numbers as they come, until the end."""
        message = memoryview(bytearray(self.layout.message_bytes))
        while self.receiver.receive(message):
            assert all(times.finished_ns for times in read_times(self.layout, message))
            yield read_meta(message).index


replicas = st.integers(1, 4)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(counts=st.tuples(replicas, replicas, replicas), frames=st.integers(0, 30))
def test_results_come_in_order_and_exactly_once(counts: tuple[int, int, int], frames: int) -> None:
    made = Deployment(counts)
    with made.stack:
        feeding = made.feed(frames)
        assert list(made.results()) == list(range(frames))
        made.stop(feeding)
    assert made.errors == []
    for (stage, replica), progress in made.progress.items():
        assert progress.frames == len(range(replica, frames, counts[stage]))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(counts=st.tuples(replicas, replicas, replicas), data=st.data())
def test_a_replica_that_fails_ends_everything_after_the_frames_before_its_own(
    counts: tuple[int, int, int], data: st.DataObject
) -> None:
    stage = data.draw(st.integers(0, 2), "stage")
    replica = data.draw(st.integers(0, counts[stage] - 1), "replica")
    nth = data.draw(st.integers(0, 5), "nth")
    failed = replica + nth * counts[stage]
    made = Deployment(counts, fails=(stage, replica, nth))
    with made.stack:
        feeding = made.feed(failed + data.draw(st.integers(1, 30), "more"))
        seen = []
        with pytest.raises(VaultlineError) as caught:
            for index in made.results():
                seen.append(index)
        made.stop(feeding)
    assert seen == list(range(failed))
    assert isinstance(caught.value, StreamAbortedError)
    which = f" (replica {replica})" if counts[stage] > 1 else ""
    assert caught.value.got == f"stage {stage}{which}: the engine failed"
    assert "MachineError" in {type(error).__name__ for *_, error in made.errors}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(counts=st.tuples(replicas, replicas, replicas), data=st.data())
def test_a_cut_connection_ends_everything_and_changes_no_result(
    counts: tuple[int, int, int], data: st.DataObject
) -> None:
    """Whichever it is, whatever still waits in it: nobody waits for ever, nothing is skipped."""
    made = Deployment(counts)
    with made.stack:
        place = data.draw(st.sampled_from(sorted(made.ends)), "connection")
        stop = data.draw(st.integers(0, 8), "results before")
        feeding = made.feed(ENDLESS)
        seen = []
        with pytest.raises(VaultlineError):
            for index in made.results():
                seen.append(index)
                if index == stop:
                    made.ends[place][0].shutdown(socket.SHUT_RDWR)
        made.stop(feeding)
    assert seen == list(range(len(seen)))
    assert stop < len(seen) < ENDLESS
    assert made.errors
