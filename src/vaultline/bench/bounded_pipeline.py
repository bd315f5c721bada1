"""Bounded enclaves in a pipeline on a chunk of video: real workers, the planner's choice."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vaultline.bench.live import LivePipeline, period_s
from vaultline.bench.rig import make_rig
from vaultline.bench.serdab import here
from vaultline.core.plan import Plan
from vaultline.core.profile import ModelProfile
from vaultline.graph.structure import Model
from vaultline.planner.plan import plan_request
from vaultline.planner.request import PlanRequest
from vaultline.planner.settings import Settings

CHUNK_FRAMES = 1000
_WARM_FRAMES = 8
_FRAMES_MIN, _FRAMES_MAX = 32, CHUNK_FRAMES


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineTiming:
    """How much of a chunk to run: rounds of about so many seconds each."""

    rounds: int = 3
    seconds: float = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineRun:
    """Enclaves of equal memory in a pipeline.

    Attributes:
        asked_enclaves: how many the planner could use.
        frames: in each round that was measured.
        latencies_s, periods_s: of each round: a frame by itself, and between results when full.
    """

    model: str
    asked_enclaves: int
    budget_bytes: int
    plan: Plan
    frames: int
    latencies_s: tuple[float, ...]
    periods_s: tuple[float, ...]

    @property
    def enclaves(self) -> int:
        """How many the plan uses."""
        return sum(len(stage.devices) for stage in self.plan.stages)

    def chunk_s(self, frames: int = CHUNK_FRAMES) -> float:
        """Seconds of a chunk: the first frame's way, and the time between each two results."""
        latency_s, period = statistics.median(self.latencies_s), statistics.median(self.periods_s)
        return latency_s + (frames - 1) * period


def plan_for(profile: ModelProfile, enclaves: int, budget_bytes: int) -> Plan:
    """The planner's choice for a chunk on this machine: a stage on each enclave. (It might prefer
    copies of the whole model, which are no pipeline.)

    Raises:
        InfeasibleError: the model doesn't run on so many enclaves of so little memory.
    """
    request = PlanRequest(
        objective="chunk",
        chunk_frames=CHUNK_FRAMES,
        stages=enclaves,
        settings=Settings(replicas_max=1),
    )
    return plan_request(profile, here(budget_bytes, enclaves=enclaves), request)


def pipeline_run(
    name: str,
    model: Model,
    plan: Plan,
    trust: Mapping[str, Path],
    timing: PipelineTiming,
    *,
    asked_enclaves: int,
    budget_bytes: int,
) -> PipelineRun:
    """Seal a plan's stages, attest its workers, and time frames through them.

    Raises:
        InfeasibleError: a compiled stage needs more than the planner thought.
    """
    wanted = timing.seconds / plan.predicted["bottleneck_s"]
    frames = max(_FRAMES_MIN, min(_FRAMES_MAX, round(wanted)))
    with tempfile.TemporaryDirectory(prefix="vaultline-bench-") as folder:
        rig = make_rig(model, plan, Path(folder), dict(trust))
        with LivePipeline(rig, model.inputs) as pipeline:
            pipeline.run(_WARM_FRAMES)
            latencies, periods = [], []
            for _ in range(timing.rounds):
                latencies.append(pipeline.chunk_s(1))
                periods.append(period_s(pipeline.full(frames)))
    return PipelineRun(
        model=name,
        asked_enclaves=asked_enclaves,
        budget_bytes=budget_bytes,
        plan=plan,
        frames=frames,
        latencies_s=tuple(latencies),
        periods_s=tuple(periods),
    )
