"""One, two or three enclaves for one frame, as their memory shrinks: predicted and measured.

The objective is latency. A frame is in one stage at a time, so that three enclaves need no more
than one core between them and this machine's few don't favour any number. One enclave has no hops;
several together have more memory, so that fewer weights are decrypted again for every frame.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from vaultline.bench.bounded_process import compile_bounded
from vaultline.bench.live import LivePipeline
from vaultline.bench.rig import make_rig
from vaultline.bench.serdab import here
from vaultline.core.errors import InfeasibleError
from vaultline.core.limits import MIB
from vaultline.core.plan import Plan
from vaultline.core.profile import ModelProfile
from vaultline.cost.footprint import memory_of
from vaultline.graph.structure import Model
from vaultline.planner.plan import plan_request
from vaultline.planner.request import PlanRequest
from vaultline.planner.settings import Settings

#: Its weights are spread over many layers, and what crosses its later cuts is small.
MODEL = "resnet50"
ENCLAVES = (1, 2, 3)
#: Budgets as parts of what the whole model takes with every weight resident: enough for it, for
#: halves, for thirds.
PARTS = (1.1, 0.8, 0.62, 0.5, 0.42)
#: Times this close to each other count as equal: neither order of them is wrong.
TIE = 0.03
_WARM_FRAMES = 4
_AMPLE_BYTES = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A number of enclaves: seconds of a frame, None where it is infeasible, and why."""

    enclaves: int
    predicted_s: float | None = None
    measured_s: float | None = None
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceAt:
    """All numbers of enclaves within one budget each.

    Attributes:
        chosen: how many the planner takes if it may choose.
    """

    model: str
    budget_bytes: int
    chosen: int
    ways: tuple[Way, ...]

    @property
    def fastest(self) -> int | None:
        """The number of enclaves with the least measured time."""
        measured = [(way.measured_s, way.enclaves) for way in self.ways if way.measured_s]
        return min(measured)[1] if measured else None

    @property
    def agrees(self) -> bool:
        """Whether every two numbers of enclaves are in the same order, predicted and measured."""
        return all(same_order(one, two) for one, two in combinations(self.ways, 2))


def same_order(one: Way, two: Way) -> bool:
    """Whether measuring contradicts the predicted order of two ways; times that are about equal
    don't, nor does what can't be run."""
    if None in (one.predicted_s, two.predicted_s, one.measured_s, two.measured_s):
        return True
    predicted = (one.predicted_s or 0.0) / (two.predicted_s or 1.0)
    measured = (one.measured_s or 0.0) / (two.measured_s or 1.0)
    close = min(abs(predicted - 1.0), abs(measured - 1.0)) <= TIE
    return close or (predicted < 1.0) == (measured < 1.0)


def choices(
    name: str,
    model: Model,
    profile: ModelProfile,
    trust: Mapping[str, Path],
    tell: Callable[[str], None],
    *,
    frames: int,
    parts: Sequence[float] = PARTS,
) -> list[ChoiceAt]:
    """Plan and run every number of enclaves at every budget, single frames in turn."""
    whole = memory_of(compile_bounded(model, _AMPLE_BYTES, 1).program).need_bytes
    found = []
    for part in parts:
        budget = round(whole * part / MIB) * MIB
        tell(f"{name}: one, two, three enclaves of {budget // MIB} MiB")
        found.append(_at(name, model, profile, trust, budget, frames))
    return found


def _at(
    name: str,
    model: Model,
    profile: ModelProfile,
    trust: Mapping[str, Path],
    budget_bytes: int,
    frames: int,
) -> ChoiceAt:
    plans: dict[int, Plan] = {}
    why: dict[int, str] = {}
    for enclaves in ENCLAVES:
        try:
            plans[enclaves] = _plan(profile, budget_bytes, enclaves)
        except InfeasibleError as error:
            why[enclaves] = f"{error.message}: {error.expected or ''}"
    chosen = min(plans, key=lambda each: plans[each].predicted["latency_s"], default=0)
    measured = _measured(model, plans, trust, frames, why)
    ways = tuple(
        Way(
            enclaves=enclaves,
            predicted_s=plans[enclaves].predicted["latency_s"] if enclaves in plans else None,
            measured_s=measured.get(enclaves),
            why=why.get(enclaves, ""),
        )
        for enclaves in ENCLAVES
    )
    return ChoiceAt(model=name, budget_bytes=budget_bytes, chosen=chosen, ways=ways)


def _plan(profile: ModelProfile, budget_bytes: int, enclaves: int) -> Plan:
    request = PlanRequest(objective="latency", stages=enclaves, settings=Settings(replicas_max=1))
    return plan_request(profile, here(budget_bytes, enclaves=enclaves), request)


def _measured(
    model: Model,
    plans: Mapping[int, Plan],
    trust: Mapping[str, Path],
    frames: int,
    why: dict[int, str],
) -> dict[int, float]:
    """Median seconds of a frame by itself, of each plan that can be compiled; they take turns."""
    with ExitStack() as stack:
        made = tempfile.TemporaryDirectory(prefix="vaultline-bench-")
        folder = Path(stack.enter_context(made))
        live: dict[int, LivePipeline] = {}
        for enclaves, plan in plans.items():
            try:
                rig = make_rig(model, plan, folder, dict(trust))
            except InfeasibleError as error:  # less fits than the planner thought
                why[enclaves] = f"{error.message}: {error.expected or ''}"
                continue
            live[enclaves] = stack.enter_context(LivePipeline(rig, model.inputs))
            live[enclaves].run(_WARM_FRAMES)
        times: dict[int, list[float]] = {enclaves: [] for enclaves in live}
        for _ in range(frames):
            for enclaves, pipeline in live.items():
                times[enclaves].append(pipeline.chunk_s(1))
        return {enclaves: statistics.median(some) for enclaves, some in times.items()}
