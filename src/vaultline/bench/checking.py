"""Predicted against measured: a plan is run, and its times are put beside the planner's."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vaultline.bench.live import LivePipeline, stage_work
from vaultline.bench.rig import make_rig
from vaultline.core.plan import Plan
from vaultline.cost.time import chunk_s
from vaultline.graph.structure import Model
from vaultline.owner.disclosure import Disclosure
from vaultline.owner.session import SessionSettings
from vaultline.owner.starting import Place

#: Frames that travel alone, for the latency.
_ALONE_FRAMES = 5
#: A chunk is long enough that the pipeline is full most of the time, whatever the user planned for;
#: what it takes longer than a short one is the time between frames.
_CHUNK_FRAMES_MIN = 32
_SHORT_FRAMES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRequest:
    """How to run a plan, and how often.

    Attributes:
        frames: of the chunk that is timed; the plan's own chunk if None.
        rounds: chunks, one after the other.
        disclosure: what untrusted stages may see.
    """

    frames: int | None = None
    rounds: int = 3
    settings: SessionSettings = field(default_factory=SessionSettings)
    places: Mapping[str, Place] = field(default_factory=dict)
    disclosure: Disclosure = field(default_factory=Disclosure)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedTime:
    """Seconds that were predicted and seconds that were measured, the median of several times."""

    predicted_s: float
    measured_s: float

    @property
    def error(self) -> float:
        """Measured over predicted, less one: positive where it took longer than predicted."""
        return self.measured_s / self.predicted_s - 1.0 if self.predicted_s else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A plan that has run.

    Attributes:
        chunks_s: of each round.
        stages: seconds per frame of each stage's work while the pipeline is full.
    """

    plan: Plan
    frames: int
    chunk: CheckedTime
    latency: CheckedTime
    period: CheckedTime
    stages: tuple[CheckedTime, ...]
    chunks_s: tuple[float, ...]


def check_plan(
    model: Model,
    plan: Plan,
    request: CheckRequest,
    trust: dict[str, Path] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Checked:
    """Seal a plan, run it in real workers on this machine, and time it.

    Raises:
        VaultlineError: it can't be compiled, sealed or run here.
    """
    frames = max(_CHUNK_FRAMES_MIN, request.frames or plan.chunk_frames)
    with tempfile.TemporaryDirectory(prefix="vaultline-check-") as folder:
        rig = make_rig(model, plan, Path(folder), trust, request.disclosure)
        with LivePipeline(rig, model.inputs, request.settings, request.places) as pipeline:
            pipeline.run(_SHORT_FRAMES)  # the first frames also warm the engine
            chunks, gaps = [], []
            for number in range(request.rounds):
                short_s = pipeline.chunk_s(_SHORT_FRAMES)
                chunks.append(pipeline.chunk_s(frames))
                gaps.append((chunks[-1] - short_s) / (frames - _SHORT_FRAMES))
                if progress is not None:
                    progress(number + 1, request.rounds)
            alone_s = statistics.median(pipeline.chunk_s(1) for _ in range(_ALONE_FRAMES))
            timed = pipeline.run(frames)
    predicted = plan.predicted
    work = [stage_work(timed, number) for number in range(len(plan.stages))]
    return Checked(
        plan=plan,
        frames=frames,
        chunk=CheckedTime(
            predicted_s=chunk_s(predicted["latency_s"], predicted["bottleneck_s"], frames),
            measured_s=statistics.median(chunks),
        ),
        latency=CheckedTime(predicted_s=predicted["latency_s"], measured_s=alone_s),
        period=CheckedTime(
            predicted_s=predicted["bottleneck_s"],
            measured_s=max(statistics.median(gaps), 0.0),
        ),
        stages=tuple(
            CheckedTime(
                predicted_s=stage.predicted_s,
                measured_s=(each.compute_ms + each.open_ms + each.seal_ms) / 1e3,
            )
            for stage, each in zip(plan.stages, work, strict=True)
        ),
        chunks_s=tuple(chunks),
    )
