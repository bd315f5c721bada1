"""Which worker is dead or stuck: a state machine over what workers say and when, without I/O."""

from __future__ import annotations

from dataclasses import dataclass, field

from vaultline.core.control import (
    BeatLine,
    FailedLine,
    ReadyLine,
    StageMetrics,
    WorkerLine,
)
from vaultline.core.hostline import LaunchWorker

#: Silence after which a worker counts as stuck; it beats four times a second.
SILENCE_S_MAX = 1.5
#: How long a worker that merely lost its neighbour waits for the neighbour's own end to be told.
FOLLOWING_S = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A worker that will not come back, by its place in the launch request, and why."""

    worker: int
    code: str
    message: str
    refused: bool = False
    remedy: str | None = None


@dataclass(slots=True)
class _Watch:
    worker: LaunchWorker
    started_s: float
    heard_s: float | None = None
    ready: ReadyLine | None = None
    busy_s: float = 0.0
    frames: int = 0
    metrics: StageMetrics = field(default_factory=StageMetrics)
    failed: FailedLine | None = None
    failed_s: float = 0.0
    exit_code: int | None = None


class Supervisor:
    """Watches the workers of one deployment; every method takes the time, none reads it."""

    def __init__(self, workers: tuple[LaunchWorker, ...], now_s: float) -> None:
        self._watches = [_Watch(worker, now_s) for worker in workers]

    @property
    def ready(self) -> tuple[ReadyLine, ...] | None:
        """Every worker's endpoints once all listen."""
        lines = tuple(watch.ready for watch in self._watches if watch.ready is not None)
        return lines if len(lines) == len(self._watches) else None

    @property
    def finished(self) -> bool:
        """Whether every worker has exited after its end of stream."""
        return all(watch.exit_code == 0 and watch.ready for watch in self._watches)

    @property
    def frames(self) -> tuple[int, ...]:
        """Frames done by each worker, as it says."""
        return tuple(watch.frames for watch in self._watches)

    @property
    def metrics(self) -> tuple[StageMetrics, ...]:
        """What each worker uses, as it said last."""
        return tuple(watch.metrics for watch in self._watches)

    def heard(self, number: int, line: WorkerLine, now_s: float) -> None:
        """A worker said something."""
        watch = self._watches[number]
        watch.heard_s = now_s
        if isinstance(line, ReadyLine):
            watch.ready = line
        elif isinstance(line, BeatLine):
            watch.busy_s, watch.frames, watch.metrics = line.busy_s, line.frames, line.metrics
        elif isinstance(line, FailedLine):
            watch.failed, watch.failed_s = line, now_s

    def exited(self, number: int, code: int) -> None:
        """A worker's process is gone; a negative code is the signal that killed it."""
        self._watches[number].exit_code = code

    def lost(self, now_s: float) -> Lost | None:
        """The first worker that is dead or stuck at ``now_s``; the most telling one first."""
        by_weight = sorted(
            (lost for number in range(len(self._watches)) if (lost := self._judge(number, now_s))),
            key=lambda weighed: weighed[0],
        )
        return by_weight[0][1] if by_weight else None

    def _judge(self, number: int, now_s: float) -> tuple[int, Lost] | None:
        watch = self._watches[number]
        if watch.exit_code == 0 and watch.failed is None and watch.ready is not None:
            return None
        if watch.exit_code is not None and watch.exit_code < 0:
            return 0, Lost(
                worker=number,
                code="WorkerKilled",
                message=f"worker {watch.worker.name} was killed by signal {-watch.exit_code}",
            )
        if watch.failed is not None:
            # A worker that lost its neighbour says so; the neighbour's own end tells more.
            follows = watch.failed.code in ("ConnectionLostError", "StreamAbortedError")
            if follows and now_s - watch.failed_s < FOLLOWING_S:
                return None
            return 2 if follows else 1, Lost(
                worker=number,
                code=watch.failed.code,
                message=watch.failed.message,
                refused=watch.failed.refused,
            )
        if watch.exit_code is not None:
            return 1, Lost(
                worker=number,
                code="WorkerDied",
                message=f"worker {watch.worker.name} exited with code {watch.exit_code}",
            )
        return self._judge_running(number, watch, now_s)

    def _judge_running(self, number: int, watch: _Watch, now_s: float) -> tuple[int, Lost] | None:
        name = watch.worker.name
        start_s_max = watch.worker.start.start_s_max
        if watch.ready is None and now_s - watch.started_s > start_s_max:
            text = f"worker {name} did not start within {start_s_max:.0f} s"
            return 1, Lost(worker=number, code="WorkerStuck", message=text)
        if watch.heard_s is not None and now_s - watch.heard_s > SILENCE_S_MAX:
            text = f"worker {name} has been silent for {now_s - watch.heard_s:.1f} s"
            return 1, Lost(worker=number, code="WorkerStuck", message=text)
        if watch.busy_s > watch.worker.busy_s_max:
            text = (
                f"worker {name} has worked on one pass for {watch.busy_s:.1f} s, "
                f"more than {watch.worker.busy_s_max:.1f} s"
            )
            return 1, Lost(worker=number, code="WorkerStuck", message=text)
        return None
