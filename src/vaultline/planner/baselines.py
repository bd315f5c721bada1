"""What others would do with the same model on the same devices, under the same cost model.

Every baseline obeys the same constraints as the search (memory, trust, what is released) and is
priced from the same tables, so a baseline that can be run is a point of the space that
``vaultline`` searches: ours is never slower, by construction. None uses replicas.

Sources:
    Elgamal and Nahrstedt, "Serdab: An IoT framework for partitioning neural networks computation
    across multiple enclaves", CCGRID 2020 (arXiv 2005.06043). Its text leaves details open, so
    ours is Serdab-style.
    Kang et al., "Neurosurgeon: collaborative intelligence between the cloud and mobile edge",
    ASPLOS 2017.
    Hu et al., "PipeEdge: pipeline parallelism for large-scale model inference on heterogeneous
    edge devices", DSD 2022.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf, isfinite

from vaultline.core.cluster import Cluster, Device
from vaultline.core.errors import InfeasibleError, InputError
from vaultline.core.plan import Plan
from vaultline.core.profile import ModelProfile
from vaultline.core.program import PageMode
from vaultline.planner.in_order import InOrder
from vaultline.planner.infeasible import explain_infeasible
from vaultline.planner.one_enclave import bounded, paged
from vaultline.planner.plan import assign_units, plan_request, problem_of
from vaultline.planner.priced import (
    Priced,
    Setting,
    priced_plan,
    ways,
    why_not,
)
from vaultline.planner.request import PlanRequest, choose_units
from vaultline.planner.search import Solution, search, times_of
from vaultline.planner.search import price as solution_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """A way of placing a model, by name.

    Attributes:
        summary: what it does, in a line.
        source: where it comes from.
        price: raises ``InfeasibleError``, with the constraint that binds, where it has no plan.
    """

    name: str
    summary: str
    source: str
    price: Callable[[Setting], Priced]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of a comparison: a price, or why there is none.

    Attributes:
        ratio: its objective over ours; None where either has no price.
    """

    name: str
    summary: str
    priced: Priced | None
    ratio: float | None
    reason: str = ""


def setting_of(
    profile: ModelProfile,
    cluster: Cluster,
    request: PlanRequest,
    *,
    page_mode: PageMode = "crypto",
) -> Setting:
    """What the baselines share; a request's own partition and number of stages are left aside.

    Raises:
        InputError: the request does not fit the profile or the cluster.
    """
    free = replace(request, stages=None, partition=None)
    alone = replace(free, settings=replace(free.settings, replicas_max=1))
    return Setting(
        profile=profile,
        cluster=cluster,
        request=free,
        units=choose_units(cluster, free.devices),
        problem=problem_of(profile, cluster, alone),
        page_mode=page_mode,
    )


def price(
    name: str,
    profile: ModelProfile,
    cluster: Cluster,
    request: PlanRequest,
    *,
    page_mode: PageMode = "crypto",
) -> Priced:
    """One baseline, by name.

    Raises:
        InputError: no such baseline, or a profile that lacks what it needs.
        InfeasibleError: it has no plan under the constraints; says which binds.
    """
    if name not in BASELINES:
        raise InputError("no such baseline", got=name, expected="one of " + ", ".join(BASELINES))
    setting = setting_of(profile, cluster, request, page_mode=page_mode)
    return BASELINES[name].price(setting)


def compare(
    profile: ModelProfile,
    cluster: Cluster,
    request: PlanRequest,
    *,
    page_mode: PageMode = "crypto",
) -> tuple[Row, ...]:
    """Every baseline by the request's objective, ours last; what has no price says why.

    A page cost that the profile lacks costs only the row that needs it.

    Raises:
        InputError: the request does not fit the profile or the cluster.
    """
    setting = setting_of(profile, cluster, request, page_mode=page_mode)
    found = {name: _tried(baseline, setting) for name, baseline in BASELINES.items()}
    ours = found["vaultline"]
    best_s = ours.value_s(request.objective) if isinstance(ours, Priced) else inf
    return tuple(_row(BASELINES[name], each, best_s, request) for name, each in found.items())


def as_asked(rows: tuple[Row, ...], plan: Plan, request: PlanRequest) -> tuple[Row, ...]:
    """A comparison with the user's own plan before it, where the user fixed part of the plan."""
    if not rows or (request.partition is None and request.stages is None):
        return rows
    own, ours = priced_plan(plan), rows[-1].priced
    best_s = ours.value_s(request.objective) if ours is not None else 0.0
    mine = Row(
        name="as asked",
        summary="the partition or the number of stages that the user fixed",
        priced=own,
        ratio=own.value_s(request.objective) / best_s if best_s > 0 else None,
    )
    return (mine, *rows)


def _tried(baseline: Baseline, setting: Setting) -> Priced | InfeasibleError | InputError:
    try:
        return baseline.price(setting)
    except (InfeasibleError, InputError) as error:
        return error


def _row(
    baseline: Baseline,
    found: Priced | InfeasibleError | InputError,
    best_s: float,
    request: PlanRequest,
) -> Row:
    if not isinstance(found, Priced):
        parts = (("got", found.got), ("needs", found.expected))
        said = ", ".join(f"{label} {text}" for label, text in parts if text)
        return Row(
            name=baseline.name,
            summary=baseline.summary,
            priced=None,
            ratio=None,
            reason=found.message + (f" ({said})" if said else ""),
        )
    known = 0 < best_s < inf
    return Row(
        name=baseline.name,
        summary=baseline.summary,
        priced=found,
        ratio=found.value_s(request.objective) / best_s if known else None,
    )


def _even_split(setting: Setting) -> Priced:
    """Equal numbers of nodes, each end at the nearest candidate cut; equal ends leave one out."""
    problem, positions = setting.problem, setting.profile.positions
    units = setting.attested
    wanted = [positions[-1] * number / len(units) for number in range(1, len(units) + 1)]
    ends = [_nearest(positions, want) for want in wanted]
    alone = setting.request.objective == "latency"
    stages, used = [], []
    for (start, end), unit in zip(pairwise((0, *ends)), units, strict=True):
        if start < end:
            found = ways(problem, unit, start, end)
            if not found:
                raise why_not(setting, start, end, [unit])
            stages.append(min(found, key=lambda way: times_of(problem, way)[0 if alone else 1]))
            used.append(unit)
    solution = solution_of(problem, tuple(stages))
    if not isfinite(solution.latency_s):
        raise _no_such_hop()
    return setting.priced(solution, used)


def _nearest(positions: tuple[int, ...], node: float) -> int:
    return min(range(len(positions)), key=lambda cut: (abs(positions[cut] - node), cut))


def _no_such_hop() -> InfeasibleError:
    return InfeasibleError(
        "the tensors that would cross are too large for one frame message: message size"
    )


def _neurosurgeon(setting: Setting) -> Priced:
    found = InOrder(setting.problem, setting.units[:2]).least_latency()
    return _in_order(setting, found, setting.units[:2])


def _serdab(setting: Setting) -> Priced:
    found = InOrder(setting.problem, setting.units).shortest_chunk(setting.request.chunk_frames)
    return _in_order(setting, found, setting.units)


def _in_order(
    setting: Setting, found: tuple[Solution, list[Device]] | None, units: tuple[Device, ...]
) -> Priced:
    if found is not None:
        return setting.priced(*found)
    if search(setting.problem, "latency") is None:
        raise explain_infeasible(setting.problem, None)
    raise InfeasibleError(
        "no contiguous split over the devices in this order keeps memory and trust",
        got=" then ".join(unit.name for unit in units),
        expected="more devices, or another order",
    )


def _bottleneck_dp(setting: Setting) -> Priced:
    """The least bottleneck over all orders; of equal ones the least latency, to its advantage."""
    solution = search(setting.problem, "throughput")
    if solution is None:
        raise explain_infeasible(setting.problem, None)
    units = assign_units(setting.problem, solution)
    return setting.priced(solution, [unit for (unit,) in units])


def _vaultline(setting: Setting) -> Priced:
    return priced_plan(plan_request(setting.profile, setting.cluster, setting.request))


BASELINES: dict[str, Baseline] = {
    each.name: each
    for each in (
        Baseline(
            name="one-enclave",
            summary="the whole model in the best enclave, paged where it does not fit",
            source="what Serdab and Lasagna compare themselves with",
            price=paged,
        ),
        Baseline(
            name="one-enclave-bounded",
            summary="the whole model in the best enclave, by our executor, which never pages",
            source="a plan of ours with one stage",
            price=bounded,
        ),
        Baseline(
            name="even-split",
            summary="equal numbers of nodes on every enclave, in the order listed",
            source="the partition of those who do not measure",
            price=_even_split,
        ),
        Baseline(
            name="neurosurgeon",
            summary="the best single cut for latency over the first two devices",
            source="Kang et al., ASPLOS 2017",
            price=_neurosurgeon,
        ),
        Baseline(
            name="serdab",
            summary="the best contiguous split for a chunk over the devices in the order listed",
            source="Elgamal and Nahrstedt, CCGRID 2020 (Serdab-style)",
            price=_serdab,
        ),
        Baseline(
            name="bottleneck-dp",
            summary="the least bottleneck over any order of devices, whatever the latency",
            source="the objective of PipeEdge, Hu et al., DSD 2022",
            price=_bottleneck_dp,
        ),
        Baseline(
            name="vaultline",
            summary="ours: exact for the objective, any order of devices, replicas",
            source="vaultline.planner.search",
            price=_vaultline,
        ),
    )
}
