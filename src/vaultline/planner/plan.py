"""From a profile, a cluster and a request to a plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from math import inf

import numpy as np

from vaultline.core.cluster import Cluster, Device
from vaultline.core.errors import InfeasibleError, InputError
from vaultline.core.frame_meta import hop_buffers_bytes
from vaultline.core.frames import FrameLayout
from vaultline.core.memory import MemoryPlan, StreamRates
from vaultline.core.plan import (
    PLAN_VERSION,
    Objective,
    Plan,
    PlannedDevice,
    PlannedStage,
    ReleasedTensor,
)
from vaultline.core.profile import TILE_BYTES, ModelProfile
from vaultline.core.replicas import neighbours
from vaultline.core.units import format_bytes
from vaultline.cost.memory import more_threads_bytes
from vaultline.cost.stage_memory import StageLimits, resident_memory, streamed_memory
from vaultline.cost.time import chunk_s
from vaultline.planner.devices import Speed
from vaultline.planner.infeasible import explain_infeasible
from vaultline.planner.problem import Problem, Release, build_problem
from vaultline.planner.request import Part, PlanRequest, choose_units, units_named
from vaultline.planner.search import Placed, Solution, hops_of, price, search, times_of


def make_plan(
    profile: ModelProfile,
    cluster: Cluster,
    *,
    objective: Objective = "chunk",
    chunk_frames: int = 100,
    devices: tuple[str, ...] | None = None,
    stages: int | None = None,
    partition: tuple[Part, ...] | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Plan:
    """The best plan of a model on a cluster: shorthand for ``plan_request``.

    Raises:
        InputError: the request does not fit the profile or the cluster.
        InfeasibleError: no partition satisfies the constraints; says which and by how much.
    """
    request = PlanRequest(
        objective=objective,
        chunk_frames=chunk_frames,
        devices=devices,
        stages=stages,
        partition=partition,
        input_shapes=input_shapes or {},
    )
    return plan_request(profile, cluster, request)


def plan_request(profile: ModelProfile, cluster: Cluster, request: PlanRequest) -> Plan:
    """The best plan for a request, or the user's own partition priced and checked.

    Raises:
        InputError: the request does not fit the profile or the cluster.
        InfeasibleError: no partition satisfies the constraints; says which and by how much.
    """
    if request.partition is not None:
        return _plan_of_parts(profile, cluster, request, request.partition)
    problem = problem_of(profile, cluster, request)
    solution = search(
        problem, request.objective, chunk_frames=request.chunk_frames, stages=request.stages
    )
    if solution is None:
        raise explain_infeasible(problem, request.stages)
    return write_down(problem, solution, request, assign_units(problem, solution))


def problem_of(profile: ModelProfile, cluster: Cluster, request: PlanRequest) -> Problem:
    """The tables that a request is searched in."""
    return build_problem(
        profile,
        cluster,
        choose_units(cluster, request.devices),
        settings=request.settings,
        release=request.release,
        alone=request.objective == "latency",
    )


def assign_units(problem: Problem, solution: Solution) -> tuple[tuple[Device, ...], ...]:
    """The devices of each stage: those of a type in the order of the cluster file."""
    waiting = [iter(kind.units) for kind in problem.types]
    return tuple(
        tuple(next(waiting[stage.kind]) for _ in range(stage.replicas)) for stage in solution.stages
    )


def write_down(
    problem: Problem,
    solution: Solution,
    request: PlanRequest,
    units: tuple[tuple[Device, ...], ...],
) -> Plan:
    """The plan of a solution whose stages run on the given devices."""
    placed = solution.stages
    profile = problem.profile
    chunk = chunk_s(solution.latency_s, solution.bottleneck_s, request.chunk_frames)
    return Plan(
        version=PLAN_VERSION,
        model_name=profile.model_name,
        model_digest=profile.model_digest,
        input_shapes={name: tuple(shape) for name, shape in request.input_shapes.items()},
        objective=request.objective,
        chunk_frames=request.chunk_frames,
        stages=tuple(
            _stage(problem, stage, replicas, len(placed), _neighbours(units, number))
            for number, (stage, replicas) in enumerate(zip(placed, units, strict=True))
        ),
        hop_s=hops_of(problem, placed),
        predicted={
            "latency_s": float(solution.latency_s),
            "bottleneck_s": float(solution.bottleneck_s),
            "chunk_s": float(chunk),
        },
        released=tuple(
            tensor
            for number, (stage, replicas) in enumerate(zip(placed, units, strict=True))
            if replicas[0].trust == "none"
            for tensor in _released(problem, request.release, number, stage)
        ),
    )


def _released(
    problem: Problem, release: Release, number: int, stage: Placed
) -> Iterator[ReleasedTensor]:
    """What an untrusted stage sees. It can compute every later tensor of its own, so the worst of
    its cuts counts: data that are easier to invert further on were no safer before."""
    leakage = release.leakage[stage.start : stage.end + 1]
    for tensor in problem.profile.crossing[stage.start]:
        yield ReleasedTensor(
            stage=number,
            tensor=tensor.name,
            metric=release.metric,
            leakage=max(leakage, default=0.0),
            limit=release.limit,
        )


def _neighbours(units: tuple[tuple[Device, ...], ...], number: int) -> tuple[int, int]:
    """How many replicas each replica of a stage exchanges frames with, before and after."""
    counts = [1, *map(len, units), 1]  # the owner at both ends
    before, own, after = counts[number : number + 3]
    return len(neighbours(0, own, before)), len(neighbours(0, own, after))


def _stage(
    problem: Problem,
    stage: Placed,
    replicas: tuple[Device, ...],
    stages: int,
    connections: tuple[int, int],
) -> PlannedStage:
    profile, settings = problem.profile, problem.settings
    at = (stage.end - stage.start - 1, stage.end)
    option = problem.options[stage.kind][stage.option]
    streamed, frames = bool(option.streamed[at]), int(option.frames[at])
    unit, speed = replicas[0], problem.types[stage.kind].speed
    return PlannedStage(
        devices=tuple(
            PlannedDevice(
                name=each.name,
                host=each.host,
                kind=each.kind,
                cores=each.cores,
                memory_bytes=each.memory_bytes,
            )
            for each in replicas
        ),
        first=profile.positions[stage.start],
        last=profile.positions[stage.end],
        threads=unit.cores,
        mode="streamed" if streamed else "resident",
        step_bytes=TILE_BYTES,
        frames_per_pass=frames,
        queue_frames=settings.queue_frames(frames),
        portable=unit.portable or speed.isa == "portable",
        inputs=profile.crossing[stage.start],
        outputs=profile.crossing[stage.end],
        predicted_s=float(option.period_s[at]),
        estimated=speed.estimated,
        memory=_memory(problem, stage, unit, stages, connections),
        rates=_stream_rates(speed),
    )


def _stream_rates(speed: Speed) -> StreamRates:
    return StreamRates(
        decrypt_bytes_per_s=speed.rates.decrypt_bytes_per_s / speed.scale,
        step_s=speed.rates.step_s * speed.scale,
    )


def _memory(
    problem: Problem, stage: Placed, unit: Device, stages: int, connections: tuple[int, int]
) -> MemoryPlan:
    """How one of so many stages will use its memory."""
    segments, at = problem.segments, (stage.end - stage.start - 1, stage.end)
    option = problem.options[stage.kind][stage.option]
    frames, streamed = int(option.frames[at]), bool(option.streamed[at])
    before, after = (
        FrameLayout(problem.profile.crossing[cut], stages) for cut in (stage.start, stage.end)
    )
    io = hop_buffers_bytes(
        queue_frames=problem.settings.queue_frames(frames),
        frames_per_pass=frames,
        input_bytes=before.message_bytes,
        output_bytes=after.message_bytes,
        connections=connections,
    )
    limits = StageLimits(
        memory_bytes=unit.memory_bytes,
        frames=frames,
        engine_bytes=int(segments.engine_bytes(frames, streamed=streamed)[at])
        + more_threads_bytes(unit.cores),
        io_bytes=io,
        prefetch=bool(option.prefetch[at]),
        rates=_stream_rates(problem.types[stage.kind].speed),
    )
    laid_out = streamed_memory if streamed else resident_memory
    return laid_out(segments.steps, stage.start, stage.end, limits)


def _plan_of_parts(
    profile: ModelProfile, cluster: Cluster, request: PlanRequest, parts: tuple[Part, ...]
) -> Plan:
    """Price the user's own partition; its devices are taken as named, nothing is searched."""
    units = _units_of_parts(cluster, parts)
    replicas = max(len(group) for group in units)
    problem = build_problem(
        profile,
        cluster,
        [unit for group in units for unit in group],
        settings=replace(request.settings, replicas_max=replicas),
        release=request.release,
        alone=request.objective == "latency",
    )
    ends = _cuts_of_parts(profile, parts)
    placed = tuple(
        _best_option(problem, start, end, group, request.objective)
        for (start, end), group in zip(pairwise((0, *ends)), units, strict=True)
    )
    solution = price(problem, placed)
    if solution.latency_s == inf:
        raise InfeasibleError(
            "a cut of the partition lets too much cross for one frame message: message size",
            got=", ".join(str(part.last) for part in parts[:-1]),
            expected="cuts that less crosses",
        )
    return write_down(problem, solution, request, units)


def _units_of_parts(cluster: Cluster, parts: tuple[Part, ...]) -> tuple[tuple[Device, ...], ...]:
    """The devices of each part; the name of a counted device takes its next free unit."""
    used: list[Device] = []
    groups = []
    for part in parts:
        for name in part.devices:
            free = [unit for unit in units_named(cluster, name) if unit not in used]
            if not free:
                raise InputError(
                    "a device runs one stage, and the partition gives it several", got=name
                )
            used.append(free[0])
        groups.append(tuple(used[len(used) - len(part.devices) :]))
    return tuple(groups)


def _cuts_of_parts(profile: ModelProfile, parts: tuple[Part, ...]) -> tuple[int, ...]:
    """The index of each part's last position; the parts must end where the model does."""
    index = {position: number for number, position in enumerate(profile.positions)}
    for part in parts:
        if part.last not in index:
            near = sorted(index, key=lambda position: abs(position - part.last))[:3]
            raise InputError(
                "the model cannot be cut there",
                got=f"after {part.last} nodes",
                expected="a candidate position, such as " + ", ".join(map(str, sorted(near))),
            )
    if parts[-1].last != profile.positions[-1]:
        raise InputError(
            "the partition does not cover the model",
            got=f"{parts[-1].last} nodes",
            expected=f"{profile.positions[-1]} nodes",
        )
    return tuple(index[part.last] for part in parts)


def _best_option(
    problem: Problem, start: int, end: int, units: tuple[Device, ...], objective: Objective
) -> Placed:
    """The stage as the user placed it, run the faster way.

    Raises:
        InputError: its devices are not interchangeable.
        InfeasibleError: the devices may not hold it, or have too little memory for it.
    """
    at = (end - start - 1, end)
    kind, unit = _kind_of(problem, units), units[0]
    candidates = [
        Placed(start=start, end=end, kind=kind, option=number, replicas=len(units))
        for number in problem.spaces[-1].options[kind]
        if np.isfinite(problem.options[kind][number].period_s[at])
    ]
    place = f"stage {problem.profile.positions[start]}:{problem.profile.positions[end]}"
    if not problem.types[kind].allowed[at]:
        raise InfeasibleError(
            f"{place} may not run on device {unit.name}: trust",
            got=f"a device of trust {unit.trust}",
            expected="an attested device, or a policy that releases what the stage sees",
        )
    if not candidates:
        missing = int(problem.least_need(start, end, unit)) - unit.memory_bytes
        raise InfeasibleError(
            f"{place} does not fit on device {unit.name}: memory",
            got=format_bytes(unit.memory_bytes),
            expected=f"{format_bytes(missing)} more",
            remedy="give the device more memory or cut the stage",
        )
    order = 0 if objective == "latency" else 1
    return min(candidates, key=lambda stage: times_of(problem, stage)[order])


def _kind_of(problem: Problem, units: tuple[Device, ...]) -> int:
    """The type that all devices of a stage are of."""
    kinds = {
        number for number, kind in enumerate(problem.types) for unit in units if unit in kind.units
    }
    if len(kinds) > 1:
        raise InputError(
            "replicas of a stage must be interchangeable",
            got=", ".join(unit.name for unit in units),
            expected="devices of one kind, speed class, memory and number of cores, with equal "
            "links to all others",
        )
    return kinds.pop()
