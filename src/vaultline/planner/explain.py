"""Why a plan is what it is: data for printing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf
from typing import Literal

from vaultline.core.cluster import Cluster
from vaultline.core.errors import InfeasibleError, InputError
from vaultline.core.limits import STAGES_MAX
from vaultline.core.plan import Plan, PlannedStage
from vaultline.core.profile import ModelProfile
from vaultline.core.tensors import layout
from vaultline.core.units import format_ms
from vaultline.planner.plan import plan_request
from vaultline.planner.request import PlanRequest

_MEASURE = {"latency": "latency_s", "throughput": "bottleneck_s", "chunk": "chunk_s"}


Kind = Literal[
    "fewer stages", "more stages", "no replicas", "replicas of the whole model", "the best plan"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageExplanation:
    """One stage: times in seconds per frame, sizes in bytes of each replica.

    Attributes:
        device, host: of several replicas all, joined by ``+``.
        need_bytes: predicted use of its memory, weights that stay as far as there is room included.
        resident_bytes, streamed_bytes: weights that stay, and that every pass decrypts;
            prefetch: while the step before runs.
        predicted_s: of a busy replica; period_s: between frames, with all replicas busy.
        share: of the bottleneck's time that a replica is busy: 1.0 is the bottleneck itself.
        estimated: nobody measured the model on such a device.
    """

    device: str
    host: str
    replicas: int
    first: int
    last: int
    mode: str
    frames_per_pass: int
    weight_bytes: int
    need_bytes: int
    resident_bytes: int
    streamed_bytes: int
    prefetch: bool
    memory_bytes: int
    in_bytes: int
    out_bytes: int
    predicted_s: float
    period_s: float
    share: float
    estimated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerUp:
    """The best plan of another kind, and why it loses.

    Attributes:
        kind: what the plan would do instead. "the best plan" is for a partition of the user's
            own; then ``ratio`` may be below 1.
        devices: per stage, its device, or all its replicas joined by ``+``.
        cuts: where its stages but the last end.
    """

    kind: Kind
    devices: tuple[str, ...]
    cuts: tuple[int, ...]
    value_s: float
    ratio: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A plan, spelt out.

    Attributes:
        bottleneck: the stage or hop that limits throughput, in words.
        balance: mean period of the stages over the longest: 1.0 is perfectly even.
        rivals: the best plans of other kinds, the next best first; none of a kind that has no
            plan or that the user ruled out.
        runner_up: the first of them.
    """

    objective: str
    value_s: float
    stages: tuple[StageExplanation, ...]
    hop_bytes: tuple[int, ...]
    hop_s: tuple[float, ...]
    latency_s: float
    bottleneck_s: float
    chunk_s: float
    bottleneck: str
    balance: float
    rivals: tuple[RunnerUp, ...]
    runner_up: RunnerUp | None


def explain(
    plan: Plan, profile: ModelProfile, cluster: Cluster, request: PlanRequest
) -> Explanation:
    """Spell out a plan that ``plan_request`` made of the same arguments.

    Raises:
        InputError: the plan is of another model than the profile.
    """
    if plan.model_digest != profile.model_digest:
        raise InputError("the plan and the profile are of different models")
    longest = plan.predicted["bottleneck_s"]
    stages = tuple(_stage(plan, profile, number, longest) for number in range(len(plan.stages)))
    times = [stage.period_s for stage in plan.stages]
    rivals = _rivals(plan, profile, cluster, request)
    ends = (plan.stages[0].inputs, *(stage.outputs for stage in plan.stages))
    return Explanation(
        objective=plan.objective,
        value_s=plan.predicted[_MEASURE[plan.objective]],
        stages=stages,
        hop_bytes=tuple(layout(tensors)[1] for tensors in ends),
        hop_s=plan.hop_s,
        latency_s=plan.predicted["latency_s"],
        bottleneck_s=longest,
        chunk_s=plan.predicted["chunk_s"],
        bottleneck=bottleneck_name(plan),
        balance=sum(times) / len(times) / max(times) if max(times) > 0 else 1.0,
        rivals=rivals,
        runner_up=rivals[0] if rivals else None,
    )


def bottleneck_name(plan: Plan) -> str:
    """The longest stage or hop, in words."""
    stage_s, number = max((stage.period_s, n) for n, stage in enumerate(plan.stages))
    link_s, hop = max((seconds, n) for n, seconds in enumerate(plan.hop_s))
    if stage_s >= link_s:
        devices = [device.name for device in plan.stages[number].devices]
        replicas = f" ({len(devices)} replicas)" if len(devices) > 1 else ""
        return f"stage {number} on {', '.join(devices)}{replicas}"
    names = ["owner", *map(devices_name, plan.stages), "owner"]
    return f"hop {hop}, {names[hop]} to {names[hop + 1]}"


def devices_name(stage: PlannedStage) -> str:
    """The devices of a stage, as a partition is written."""
    return "+".join(device.name for device in stage.devices)


def _stage(plan: Plan, profile: ModelProfile, number: int, longest_s: float) -> StageExplanation:
    stage = plan.stages[number]
    start, end = (profile.positions.index(node) for node in (stage.first, stage.last))
    memory = stage.memory
    if memory is None:
        raise InputError("the plan does not say how its stages use their memory")
    return StageExplanation(
        device=devices_name(stage),
        host="+".join(dict.fromkeys(device.host for device in stage.devices)),
        replicas=len(stage.devices),
        first=stage.first,
        last=stage.last,
        mode=stage.mode,
        frames_per_pass=stage.frames_per_pass,
        weight_bytes=sum(block.weight_bytes for block in profile.blocks[start:end]),
        need_bytes=memory.need_bytes,
        resident_bytes=memory.resident_bytes,
        streamed_bytes=memory.streamed_bytes,
        prefetch=memory.prefetch,
        memory_bytes=stage.device.memory_bytes,
        in_bytes=layout(stage.inputs)[1],
        out_bytes=layout(stage.outputs)[1],
        predicted_s=stage.predicted_s,
        period_s=stage.period_s,
        share=stage.period_s / longest_s if longest_s > 0 else 1.0,
        estimated=stage.estimated,
    )


def _rivals(
    plan: Plan, profile: ModelProfile, cluster: Cluster, request: PlanRequest
) -> tuple[RunnerUp, ...]:
    """The best plans of other kinds, the next best first."""
    if request.partition is not None:
        best = plan_request(profile, cluster, replace(request, partition=None))
        return () if _layout(best) == _layout(plan) else (_compare(plan, best, "the best plan"),)
    found: dict[object, RunnerUp] = {}
    for other in _other_requests(plan, request):
        with suppress(InfeasibleError):
            rival = plan_request(profile, cluster, other)
            if _layout(rival) != _layout(plan):
                found.setdefault(_layout(rival), _compare(plan, rival, _kind(plan, rival)))
    return tuple(sorted(found.values(), key=lambda rival: rival.value_s))


def _other_requests(plan: Plan, request: PlanRequest) -> Iterator[PlanRequest]:
    """Requests for the best plan with other numbers of stages and replicas."""
    if _replicated(plan):
        yield replace(request, settings=replace(request.settings, replicas_max=1))
    if request.stages is None:
        count = len(plan.stages)
        for stages in sorted({1, count - 1, count + 1} & set(range(1, STAGES_MAX + 1)) - {count}):
            yield replace(request, stages=stages)


def _layout(plan: Plan) -> tuple[object, ...]:
    return tuple((stage.last, devices_name(stage)) for stage in plan.stages)


def _replicated(plan: Plan) -> bool:
    return any(len(stage.devices) > 1 for stage in plan.stages)


def _kind(plan: Plan, rival: Plan) -> Kind:
    if len(rival.stages) == 1 and _replicated(rival):
        return "replicas of the whole model"
    if _replicated(plan) and not _replicated(rival):
        return "no replicas"
    return "fewer stages" if len(rival.stages) < len(plan.stages) else "more stages"


def _compare(plan: Plan, rival: Plan, kind: Kind) -> RunnerUp:
    measure = _MEASURE[plan.objective]
    mine, its = plan.predicted[measure], rival.predicted[measure]
    return RunnerUp(
        kind=kind,
        devices=tuple(map(devices_name, rival.stages)),
        cuts=tuple(stage.last for stage in rival.stages[:-1]),
        value_s=its,
        ratio=its / mine if mine > 0 else inf,
        reason=_reason(plan, rival),
    )


def _reason(plan: Plan, rival: Plan) -> str:
    """The part of the objective on which the rival loses most; seconds weigh as they count."""
    counts = {
        "latency": {"latency_s": 1},
        "throughput": {"bottleneck_s": 1},
        "chunk": {"latency_s": 1, "bottleneck_s": plan.chunk_frames - 1},
    }[plan.objective]
    gaps = {part: rival.predicted[part] - plan.predicted[part] for part in counts}
    part = max(counts, key=lambda each: gaps[each] * counts[each])
    name = part.removesuffix("_s")
    if all(abs(gap) <= 1e-12 for gap in gaps.values()):
        return "it is as good"
    if gaps[part] <= 0:
        return f"its {name} is {format_ms(-gaps[part])} shorter"
    where = f" ({bottleneck_name(rival)})" if name == "bottleneck" else ""
    return f"its {name}{where} is {format_ms(gaps[part])} longer"
