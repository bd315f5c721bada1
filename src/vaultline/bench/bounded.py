"""Bounded execution, measured: time and memory against the plain engine, models in turn, the page
cache that streaming replaces, and pipelines of enclaves with little memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vaultline.bench.bounded_choice import MODEL, PARTS, ChoiceAt, choices
from vaultline.bench.bounded_paged import PAGE_MODES, PagedRun, paged_run
from vaultline.bench.bounded_pipeline import (
    CHUNK_FRAMES,
    PipelineRun,
    PipelineTiming,
    pipeline_run,
    plan_for,
)
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
from vaultline.bench.profiling import ProfileRequest, profile_model
from vaultline.bench.rates import SealedWeight
from vaultline.bench.rig import make_trust
from vaultline.core.errors import InfeasibleError
from vaultline.core.limits import MIB
from vaultline.core.memory import StreamRates
from vaultline.core.profile import ModelProfile
from vaultline.core.program import PageMode
from vaultline.graph.model import load_model
from vaultline.graph.structure import Model
from vaultline.graph.zoo import ZOO, build

SGX1_BYTES, SMALL_BYTES, SMALLEST_BYTES = 93 * MIB, 64 * MIB, 48 * MIB
BUDGETS = (SGX1_BYTES, SMALL_BYTES, SMALLEST_BYTES)
_TIMING, _SWEEP_TIMING = Timing(), Timing(rounds=3, seconds=0.2)
_PIPELINE_TIMING = PipelineTiming()
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundedRequest:
    """What to measure.

    Attributes:
        sweep_points: budgets between the least and that of all weights resident.
        switching: models in turn; None leaves that out.
        paged_rounds: frames of each paged enclave that are timed; 0 leaves them out.
        pipeline: how long one and two real enclaves are timed; None leaves them out.
        choice_model: for which one, two and three enclaves are compared, over ``choice_frames``
            frames each, within ``choice_parts`` of the memory that it takes.
    """

    zoo: Path
    models: tuple[str, ...] = ZOO
    budgets: tuple[int, ...] = BUDGETS
    timing: Timing = _TIMING
    sweep_points: int = 9
    sweep_timing: Timing = _SWEEP_TIMING
    switching: SwitchingRequest | None = None
    paged_rounds: int = 5
    pipeline: PipelineTiming | None = _PIPELINE_TIMING
    profile_repeats: int = 5
    choice_model: str | None = MODEL
    choice_frames: int = 40
    choice_parts: tuple[float, ...] = PARTS


@dataclass(frozen=True, slots=True, kw_only=True)
class NotRun:
    """A model that doesn't run within a budget, and why."""

    model: str
    how: str
    budget_bytes: int
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
    paged: list[PagedRun] = field(default_factory=list)
    pipelines: list[PipelineRun] = field(default_factory=list)
    choices: list[ChoiceAt] = field(default_factory=list)

    def at(self, budget_bytes: int, asked_frames: int) -> dict[str, BoundedRun]:
        """Runs within a budget by model."""
        key = (budget_bytes, asked_frames)
        return {run.model: run for run in self.runs if (run.budget_bytes, run.asked_frames) == key}

    def paged_at(self, model: str, page_mode: PageMode) -> PagedRun | None:
        """A model in one paged enclave."""
        found = (run for run in self.paged if (run.model, run.page_mode) == (model, page_mode))
        return next(found, None)

    def pipeline_at(self, model: str, enclaves: int) -> PipelineRun | None:
        """A model in real enclaves, of which the planner could use so many."""
        found = (
            run for run in self.pipelines if (run.model, run.asked_enclaves) == (model, enclaves)
        )
        return next(found, None)

    def speedup(self, model: str, page_mode: PageMode, frames: int) -> float | None:
        """Of a bounded enclave over a paged one, per frame, with so many frames a pass."""
        paged = self.paged_at(model, page_mode)
        run = None if paged is None else self.at(paged.budget_bytes, frames).get(model)
        if paged is None or run is None:
            return None
        return paged.frame_s * run.frames / run.pass_s

    def pipeline_speedup(self, model: str, page_mode: PageMode) -> float | None:
        """Of two bounded enclaves over a paged one, on a chunk. The paged one's is its frames'
        time alone: it gets its frames and gives its results for nothing."""
        paged, pipeline = self.paged_at(model, page_mode), self.pipeline_at(model, 2)
        if paged is None or pipeline is None:
            return None
        return CHUNK_FRAMES * paged.frame_s / pipeline.chunk_s()

    def partition_gain(self, model: str) -> float | None:
        """Of two bounded enclaves over one, on a chunk; where it is about 1, a second doesn't
        help."""
        one, two = self.pipeline_at(model, 1), self.pipeline_at(model, 2)
        return None if one is None or two is None else one.chunk_s() / two.chunk_s()

    @property
    def errors(self) -> list[float]:
        """Largest relative differences from the plain engine, of all that ran."""
        swept = [run for some in self.sweep.values() for run in some]
        found = [run.max_relative_error for run in (*self.runs, *swept)]
        found += [run.max_relative_error for run in self.paged]
        return found + ([] if self.switching is None else [self.switching.max_relative_error])

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
    for mode in PAGE_MODES:
        for name in dict.fromkeys(run.model for run in found.paged):
            speedup = found.pipeline_speedup(name, mode)
            if speedup is not None:
                made[f"pipeline_speedup_{mode}.{name}"] = speedup
    if found.choices:
        made["choice_budgets"] = float(len(found.choices))
        made["choice_orders_agree"] = float(sum(each.agrees for each in found.choices))
    if found.errors:
        made["max_relative_error"] = float(np.max(found.errors))  # not a number if one is none
    return made


def bench_bounded(request: BoundedRequest, tell: Tell) -> BoundedResult:
    """Measure everything that is asked for; ``tell`` is told (what, done, total)."""
    with tempfile.TemporaryDirectory(prefix="vaultline-bench-") as folder:
        return _Bench(request, tell, make_trust(Path(folder))).measured()


class _Counter:
    """Progress: what is being measured now, and how much has been begun."""

    def __init__(self, tell: Tell, total: int) -> None:
        self._tell, self._total, self._done = tell, total, -1

    def next(self, what: str) -> None:
        self._done += 1
        self.say(what)

    def say(self, what: str) -> None:
        self._tell(what, self._done, self._total)


class _Bench:
    """One run of the benchmark."""

    def __init__(self, request: BoundedRequest, tell: Tell, trust: dict[str, Path]) -> None:
        self._request, self._trust = request, trust
        self._core = min(os.sched_getaffinity(0))
        self._found = BoundedResult(rates=stream_rates())
        self._counter = _Counter(tell, self._steps())

    def _steps(self) -> int:
        request = self._request
        points = request.sweep_points
        each = 2 * len(request.budgets) + (2 * (points + 1) if points else 0)
        each += len(PAGE_MODES) * bool(request.paged_rounds) + 3 * bool(request.pipeline)
        others = (request.switching, request.choice_model)
        return each * len(request.models) + sum(other is not None for other in others)

    def measured(self) -> BoundedResult:
        """Model by model, then the others."""
        request, found = self._request, self._found
        for name in request.models:
            with Bounded(build(name, request.zoo), self._core, found.rates) as bounded:
                self._budgets(name, bounded)
                if request.sweep_points:
                    self._sweep(name, bounded)
                if request.paged_rounds:
                    self._paged(name, bounded)
            if request.pipeline is not None:
                self._pipelines(name, load_model(build(name, request.zoo)), request.pipeline)
        if request.switching is not None:
            self._counter.next("switching")
            found.switching = bench_switching(request.switching, found.rates, self._counter.say)
        if request.choice_model is not None:
            self._choices(request.choice_model)
        self._counter.say("done")
        return found

    def _budgets(self, name: str, bounded: Bounded) -> None:
        for budget in self._request.budgets:
            for frames in (1, FRAMES):
                self._counter.next(f"{name} in {budget // MIB} MiB, {frames} a pass")
                with self._noting(name, f"{frames} a pass", budget):
                    run = bounded.run(name, budget, frames, self._request.timing)
                    self._found.runs.append(run)

    def _sweep(self, name: str, bounded: Bounded) -> None:
        request, found = self._request, self._found
        found.sweep[name], found.least[name] = [], []
        for frames in (1, FRAMES):
            self._counter.next(f"{name}: the least budget, {frames} a pass")
            least = bounded.least(frames)
            found.least[name].append(least)
            for budget in sweep_budgets(least, request.sweep_points):
                self._counter.next(f"{name} in {budget / MIB:.1f} MiB, {frames} a pass")
                found.sweep[name].append(bounded.run(name, budget, frames, request.sweep_timing))

    def _paged(self, name: str, bounded: Bounded) -> None:
        for mode in PAGE_MODES:
            self._counter.next(f"{name}, paged, as {mode}")
            with self._noting(name, f"paged, as {mode}", SGX1_BYTES):
                run = paged_run(
                    name,
                    bounded.model,
                    bounded.expected,
                    SGX1_BYTES,
                    mode,
                    rounds=self._request.paged_rounds,
                    core=self._core,
                )
                self._found.paged.append(run)

    def _pipelines(self, name: str, model: Model, timing: PipelineTiming) -> None:
        self._counter.next(f"profiling {name}")
        profile = self._profile(model)
        for enclaves in (1, 2):
            self._counter.next(f"{name} in {enclaves} enclave{'s'[: enclaves > 1]}")
            with self._noting(name, f"{enclaves} enclaves", SGX1_BYTES):
                run = pipeline_run(
                    name,
                    model,
                    plan_for(profile, enclaves, SGX1_BYTES),
                    self._trust,
                    timing,
                    asked_enclaves=enclaves,
                    budget_bytes=SGX1_BYTES,
                )
                self._found.pipelines.append(run)

    def _choices(self, name: str) -> None:
        request = self._request
        self._counter.next(f"profiling {name}")
        model = load_model(build(name, request.zoo))
        self._found.choices = choices(
            name,
            model,
            self._profile(model),
            self._trust,
            self._counter.say,
            frames=request.choice_frames,
            parts=request.choice_parts,
        )

    def _profile(self, model: Model) -> ModelProfile:
        repeats = self._request.profile_repeats
        return profile_model(model, ProfileRequest(repeats=repeats, neighbours=1))

    @contextmanager
    def _noting(self, name: str, how: str, budget_bytes: int) -> Iterator[None]:
        """What does not fit is a result too."""
        try:
            yield
        except InfeasibleError as error:
            why = f"{error.message}: {error.expected}"
            self._found.not_run.append(
                NotRun(model=name, how=how, budget_bytes=budget_bytes, why=why)
            )


def stream_rates() -> StreamRates:
    """What streaming costs on this machine: decryption measured, a step as it is by default."""
    weight = SealedWeight()
    try:
        return StreamRates(decrypt_bytes_per_s=weight.bytes_per_s())
    finally:
        weight.close()
