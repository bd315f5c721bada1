"""What the baselines share: the problem that they are priced in, and what a price is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vaultline.core.cluster import Cluster, Device
from vaultline.core.errors import InfeasibleError
from vaultline.core.plan import Objective, Plan
from vaultline.core.profile import ModelProfile
from vaultline.core.program import PageMode
from vaultline.core.units import format_bytes
from vaultline.planner.explain import bottleneck_name
from vaultline.planner.plan import write_down
from vaultline.planner.problem import Problem
from vaultline.planner.request import PlanRequest
from vaultline.planner.search import Placed, Solution

MEASURE: dict[Objective, str] = {
    "latency": "latency_s",
    "throughput": "bottleneck_s",
    "chunk": "chunk_s",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """What a baseline comes to.

    Attributes:
        plan: what it would run; None for a model that pages in a real enclave: only simulated ones
            have a page cache of ours.
        devices: per stage, the names of its devices.
        cuts: positions between the stages, in nodes.
        bottleneck: the stage or hop that limits throughput, in words.
        estimated: a stage's time was not measured on such a device but scaled.
        note: what else there is to know, a constraint that was ignored first of all.
    """

    plan: Plan | None
    devices: tuple[tuple[str, ...], ...]
    cuts: tuple[int, ...]
    latency_s: float
    bottleneck_s: float
    chunk_s: float
    bottleneck: str
    estimated: bool = False
    note: str = ""

    @property
    def paged(self) -> bool:
        """Whether it needs more memory than is protected, and a page cache makes up for it."""
        return self.plan is None or any(stage.mode == "paged" for stage in self.plan.stages)

    def value_s(self, objective: Objective) -> float:
        """Seconds by an objective: of a frame, between frames, or of a chunk."""
        return float(getattr(self, MEASURE[objective]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all baselines of one comparison share.

    Attributes:
        units: the devices in the order listed, by the cluster file or by the request.
        problem: the tables of the search, without replicas.
        page_mode: how a swapped page is priced where a model is paged.
    """

    profile: ModelProfile
    cluster: Cluster
    request: PlanRequest
    units: tuple[Device, ...]
    problem: Problem
    page_mode: PageMode

    @property
    def attested(self) -> tuple[Device, ...]:
        """The enclaves among the devices.

        Raises:
            InfeasibleError: there is none.
        """
        found = tuple(unit for unit in self.units if unit.trust == "attested")
        if not found:
            raise InfeasibleError(
                "it runs on attested devices only: trust",
                got="none",
                expected="at least one",
                remedy="add an enclave to the cluster or to `--devices`",
            )
        return found

    def value(self, solution: Solution) -> tuple[float, float]:
        """To be minimised: the objective, then the latency."""
        values = {
            "latency": solution.latency_s,
            "throughput": solution.bottleneck_s,
            "chunk": solution.chunk_s(self.request.chunk_frames),
        }
        return values[self.request.objective], solution.latency_s

    def priced(self, solution: Solution, units: Iterable[Device]) -> Priced:
        """A solution on these devices, as a plan and its price."""
        alone = tuple((unit,) for unit in units)
        return priced_plan(write_down(self.problem, solution, self.request, alone))


def priced_plan(plan: Plan) -> Priced:
    """A plan's price."""
    return Priced(
        plan=plan,
        devices=tuple(tuple(device.name for device in stage.devices) for stage in plan.stages),
        cuts=tuple(stage.last for stage in plan.stages[:-1]),
        latency_s=plan.predicted["latency_s"],
        bottleneck_s=plan.predicted["bottleneck_s"],
        chunk_s=plan.predicted["chunk_s"],
        bottleneck=bottleneck_name(plan),
        estimated=any(stage.estimated for stage in plan.stages),
    )


def kind_of(problem: Problem, unit: Device) -> int:
    """The number of a device's type."""
    return next(n for n, kind in enumerate(problem.types) if unit in kind.units)


def ways(problem: Problem, unit: Device, start: int, end: int) -> list[Placed]:
    """Every way in which a device can run blocks ``[start, end)``."""
    kind, at = kind_of(problem, unit), (end - start - 1, end)
    return [
        Placed(start=start, end=end, kind=kind, option=number)
        for number, option in enumerate(problem.options[kind])
        if np.isfinite(option.period_s[at])
    ]


def why_not(setting: Setting, start: int, end: int, units: Sequence[Device]) -> InfeasibleError:
    """Why blocks ``[start, end)`` run on none of these devices."""
    problem, positions = setting.problem, setting.profile.positions
    place, at = f"nodes {positions[start]}:{positions[end]}", (end - start - 1, end)
    allowed = [unit for unit in units if problem.types[kind_of(problem, unit)].allowed[at]]
    if not allowed:
        return InfeasibleError(
            f"{place} may not run on {units[0].name}: trust",
            got=f"a device of trust {units[0].trust}",
            expected="an attested device, or a policy that releases what the stage sees",
        )
    largest = max(allowed, key=lambda unit: unit.memory_bytes)
    return InfeasibleError(
        f"{place} do not fit on {largest.name}, weights streamed or not: memory",
        got=format_bytes(largest.memory_bytes),
        expected=format_bytes(problem.least_need(start, end, largest)),
        remedy="raise the device's memory",
    )
