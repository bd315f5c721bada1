"""Bounded execution, measured: time and memory against the plain engine, models in turn, the page
cache that streaming replaces, and pipelines of enclaves with little memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vaultline.bench.bounded_process import FRAMES, MemoryUse
from vaultline.bench.bounded_ratio import (
    Bounded,
    BoundedRun,
    LeastBudget,
    Timing,
    sweep_budgets,
)
from vaultline.bench.bounded_switching import (
    SwitchingRequest,
    SwitchingResult,
    bench_switching,
)
from vaultline.bench.rates import SealedWeight
from vaultline.core.errors import InfeasibleError
from vaultline.core.limits import MIB
from vaultline.core.memory import StreamRates
from vaultline.graph.zoo import ZOO, build

SGX1_BYTES, SMALL_BYTES, SMALLEST_BYTES = 93 * MIB, 64 * MIB, 48 * MIB
BUDGETS = (SGX1_BYTES, SMALL_BYTES, SMALLEST_BYTES)
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundedRequest:
    """What to measure.

    Attributes:
        sweep_points: budgets between the least and that of all weights resident.
        switching: models in turn; None leaves that out.
    """

    zoo: Path
    models: tuple[str, ...] = ZOO
    budgets: tuple[int, ...] = BUDGETS
    timing: Timing = Timing()
    sweep_points: int = 9
    sweep_timing: Timing = Timing(rounds=3, seconds=0.2)
    switching: SwitchingRequest | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NotRun:
    """A model that doesn't run within a budget, and why."""

    model: str
    budget_bytes: int
    asked_frames: int
    why: str


@dataclass(slots=True, kw_only=True)
class BoundedResult:
    """Everything that was measured.

    Attributes:
        rates: of this machine, which the memory plans were made with.
        sweep: runs from the least budget to that of all weights resident, by model.
    """

    rates: StreamRates
    runs: list[BoundedRun] = field(default_factory=list)
    not_run: list[NotRun] = field(default_factory=list)
    sweep: dict[str, list[BoundedRun]] = field(default_factory=dict)
    least: dict[str, list[LeastBudget]] = field(default_factory=dict)
    switching: SwitchingResult | None = None

    def at(self, budget_bytes: int, asked_frames: int) -> dict[str, BoundedRun]:
        """Runs within a budget by model."""
        key = (budget_bytes, asked_frames)
        return {run.model: run for run in self.runs if (run.budget_bytes, run.asked_frames) == key}

    @property
    def memory(self) -> list[MemoryUse]:
        """Of all processes whose budget was given; those of the sweep are shown apart."""
        used = [run.memory for run in self.runs]
        return used + ([] if self.switching is None else [self.switching.memory])


def figures(found: BoundedResult) -> dict[str, float]:
    """The benchmark's figures by name."""
    made: dict[str, float] = {}
    for name, run in found.at(SGX1_BYTES, 1).items():
        made[f"ratio_native.{name}"] = run.ratio
    for name, run in found.at(SGX1_BYTES, FRAMES).items():
        made[f"ratio_native_{FRAMES}_frames.{name}"] = run.ratio
    small = found.at(SMALL_BYTES, FRAMES)
    if small:
        made["ratio_64mib_max"] = max(run.ratio for run in small.values())
        made["ratio_64mib_models"] = float(len(small))
    if found.switching is not None:
        made["ratio_switching"] = found.switching.ratio
        made["sessions_switching"] = float(found.switching.sessions_made)
    if found.memory:
        made["memory_over_budget_max"] = max(use.over_budget for use in found.memory)
    errors = [run.max_relative_error for run in [*found.runs, *sum(found.sweep.values(), [])]]
    if found.switching is not None:
        errors.append(found.switching.max_relative_error)
    if errors:
        made["max_relative_error"] = max(errors, key=lambda error: (error != error, error))
    return made


def bench_bounded(request: BoundedRequest, tell: Tell) -> BoundedResult:
    """Measure everything that is asked for; ``tell`` is told (what, done, total)."""
    core = min(os.sched_getaffinity(0))
    found = BoundedResult(rates=stream_rates())
    steps = len(request.budgets) * 2 + (2 * (request.sweep_points + 1) if request.sweep_points else 0)
    total = len(request.models) * steps + (1 if request.switching is not None else 0)
    counter = _Counter(tell, total)
    for name in request.models:
        with Bounded(build(name, request.zoo), core, found.rates) as bounded:
            _budgets(name, bounded, request, found, counter)
            if request.sweep_points:
                _sweep(name, bounded, request, found, counter)
    if request.switching is not None:
        counter.next("switching")
        found.switching = bench_switching(
            request.switching, found.rates, lambda what: counter.say(f"switching: {what}")
        )
    counter.say("done")
    return found


class _Counter:
    """Progress: what is being measured now, and how much has been begun."""

    def __init__(self, tell: Tell, total: int) -> None:
        self._tell, self._total, self._done = tell, total, -1

    def next(self, what: str) -> None:
        self._done += 1
        self.say(what)

    def say(self, what: str) -> None:
        self._tell(what, self._done, self._total)


def _budgets(
    name: str, bounded: Bounded, request: BoundedRequest, found: BoundedResult, counter: _Counter
) -> None:
    for budget in request.budgets:
        for frames in (1, FRAMES):
            counter.next(f"{name} in {budget // MIB} MiB, {frames} a pass")
            try:
                run = bounded.run(name, budget, frames, request.timing)
            except InfeasibleError as error:
                why = f"{error.message}: {error.expected}"
                found.not_run.append(
                    NotRun(model=name, budget_bytes=budget, asked_frames=frames, why=why)
                )
            else:
                found.runs.append(run)


def _sweep(
    name: str, bounded: Bounded, request: BoundedRequest, found: BoundedResult, counter: _Counter
) -> None:
    found.sweep[name], found.least[name] = [], []
    for frames in (1, FRAMES):
        counter.next(f"{name}: the least budget, {frames} a pass")
        least = bounded.least(frames)
        found.least[name].append(least)
        for budget in sweep_budgets(least, request.sweep_points):
            counter.next(f"{name} in {budget / MIB:.1f} MiB, {frames} a pass")
            found.sweep[name].append(bounded.run(name, budget, frames, request.sweep_timing))


def stream_rates() -> StreamRates:
    """What streaming costs on this machine: decryption measured, a step as it is by default."""
    weight = SealedWeight()
    try:
        return StreamRates(decrypt_bytes_per_s=weight.bytes_per_s())
    finally:
        weight.close()
