"""The planner's benchmark: random problems of growing size, and the ten models of the zoo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from vaultline.bench.planning import (
    CHUNKS,
    CUTS,
    DEVICES,
    PlannerTimes,
    model_seconds,
    planner_times,
    random_cluster,
)
from vaultline.bench.profiling import ProfileRequest, profile_model
from vaultline.graph.model import load_model
from vaultline.graph.zoo import ZOO, build

#: The size that the headline is about: the largest of the growth plot.
_HEADLINE = (1000, 8)
#: What planning takes doesn't depend on how precisely times were measured.
_PROFILE_REPEATS = 3
#: The models are planned for four devices of four types: the fewer are alike, the harder.
_MODEL_DEVICES = 4
_CLASSES = {"class-0": 1.0, "class-1": 0.5, "class-2": 1.6, "class-3": 2.5}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerRequest:
    """Which sizes and models, and how many random problems of each size."""

    zoo: Path
    cuts: tuple[int, ...] = CUTS
    devices: tuple[int, ...] = DEVICES
    chunks: tuple[int, ...] = CHUNKS
    seeds: tuple[int, ...] = (1, 2, 3)
    models: tuple[str, ...] = ZOO


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerResult:
    """Processor seconds: of random problems, and of each model."""

    times: PlannerTimes
    models_s: dict[str, float]

    @property
    def figures(self) -> dict[str, float]:
        """By name; of the headline's size the slower chunk's median counts."""
        points = self.times.points
        made = {"seconds_models_max": max(self.models_s.values())} if self.models_s else {}
        headline = [each for each in points if (each.cuts, each.devices) == _HEADLINE]
        if headline:
            made["seconds_1000_cuts_8_devices"] = max(each.seconds for each in headline)
            made["seconds_1000_cuts_8_devices_worst"] = max(each.seconds_max for each in headline)
        growth = self.times.growth
        return made | {"growth_in_cuts": growth.in_cuts, "growth_in_devices": growth.in_devices}


def bench_planner(
    request: PlannerRequest, progress: Callable[[str, int, int], None]
) -> PlannerResult:
    """Plan everything; ``progress`` is told (what, done, total)."""
    sizes = len(request.cuts) * len(request.devices) * len(request.chunks)
    total, done = sizes + len(request.models), 0

    def step(what: str) -> None:
        nonlocal done
        done += 1
        progress(what, done, total)

    times = planner_times(
        cuts=request.cuts,
        devices=request.devices,
        chunks=request.chunks,
        seeds=request.seeds,
        progress=lambda point: step(f"{point.cuts} cuts, {point.devices} devices"),
    )
    models_s = {}
    for name in request.models:
        step(name)
        models_s[name] = _model_s(build(name, request.zoo))
    return PlannerResult(times=times, models_s=models_s)


def _model_s(path: Path) -> float:
    profile = profile_model(load_model(path), ProfileRequest(repeats=_PROFILE_REPEATS))
    cluster = random_cluster(1, devices=_MODEL_DEVICES, per_type=1)
    return model_seconds(replace(profile, class_scale=_CLASSES), cluster)
