"""A deployed plan that is fed on demand, so that it can take turns with what it is compared to."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

from vaultline.bench.noise import frames_of
from vaultline.bench.rig import Rig
from vaultline.core.tensors import TensorSpec
from vaultline.owner.frames import OwnerFrame, ResultFrame
from vaultline.owner.session import SessionSettings
from vaultline.owner.starting import Place

#: Frames before and after the timed ones, so that the pipeline is full at both ends.
MARGIN_FRAMES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class StageWork:
    """Where a stage's time went: milliseconds per frame."""

    compute_ms: float
    open_ms: float
    seal_ms: float
    socket_ms: float


class LivePipeline:
    """A session over seeded noise: a context manager; frames go in when ``run`` asks for them."""

    def __init__(
        self,
        rig: Rig,
        specs: tuple[TensorSpec, ...],
        settings: SessionSettings | None = None,
        places: Mapping[str, Place] | None = None,
    ) -> None:
        self._session = rig.session(settings, dict(places or {}))
        self.inputs = frames_of(specs, 4)
        self._wanted: SimpleQueue[int] = SimpleQueue()
        self._sent = 0

    def __enter__(self) -> LivePipeline:
        self._session.__enter__()
        self._stream = self._session.stream(self._feed())
        return self

    def __exit__(self, *exc: object) -> None:
        self._wanted.put(0)
        if exc[0] is None:
            for _ in self._stream:
                pass
        self._session.__exit__(*exc)

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """Processes of the workers on this machine, in the order of the stages."""
        endpoints = self._session.endpoints
        return () if endpoints is None else endpoints.pids

    def _feed(self) -> Iterator[OwnerFrame]:
        while wanted := self._wanted.get():
            for _ in range(wanted):
                tensors = self.inputs[self._sent % len(self.inputs)]
                yield OwnerFrame(self._sent, 0.0, tensors)
                self._sent += 1

    def run(self, frames: int) -> list[ResultFrame]:
        """Send frames and wait for all of their results."""
        self._wanted.put(frames)
        return [next(self._stream) for _ in range(frames)]

    def full(self, frames: int) -> list[ResultFrame]:
        """Results of ``frames`` frames from the middle of a longer run, and the one before them."""
        results = self.run(frames + 2 * MARGIN_FRAMES)
        return results[MARGIN_FRAMES : MARGIN_FRAMES + frames + 1]

    def chunk_s(self, frames: int) -> float:
        """Seconds from the first frame's departure to the last one's result, of an idle pipeline
        that is given a whole chunk at once."""
        before_s = time.perf_counter()
        self.run(frames)
        return time.perf_counter() - before_s


def period_s(results: Sequence[ResultFrame]) -> float:
    """Seconds between results of a full pipeline."""
    return (results[-1].received_ns - results[0].received_ns) / 1e9 / (len(results) - 1)


def stage_work(results: Sequence[ResultFrame], stage: int) -> StageWork:
    """What a stage did for these frames, as its enclave wrote it into each."""
    times = [result.times[stage] for result in results]
    return StageWork(
        compute_ms=_mean_ms([t.compute_ns for t in times]),
        open_ms=_median_ms([t.open_ns for t in times]),
        seal_ms=_median_ms([t.seal_ns for t in times]),
        socket_ms=_median_ms([t.send_ns for t in times]),
    )


def _mean_ms(values_ns: Sequence[int]) -> float:
    """Of times that differ by how many frames were stacked, only the mean adds up; the tenth at
    either end, where another program had the core, is left out."""
    cut = len(values_ns) // 10
    return statistics.fmean(sorted(values_ns)[cut : len(values_ns) - cut]) / 1e6


def _median_ms(values_ns: Sequence[int]) -> float:
    return statistics.median(values_ns) / 1e6
