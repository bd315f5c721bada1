"""Why a plan is what it is: data for printing."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf

from vaultline.core.cluster import Cluster
from vaultline.core.errors import InfeasibleError, InputError
from vaultline.core.limits import STAGES_MAX
from vaultline.core.plan import Plan, PlannedStage
from vaultline.core.profile import ModelProfile
from vaultline.core.tensors import layout
from vaultline.core.units import format_ms
from vaultline.cost.segments import Segments
from vaultline.planner.plan import plan_request
from vaultline.planner.problem import Settings, need_bytes
from vaultline.planner.request import PlanRequest

_MEASURE = {"latency": "latency_s", "throughput": "bottleneck_s", "chunk": "chunk_s"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StageExplanation:
    """One stage: times in seconds per frame, sizes in bytes.

    Attributes:
        need_bytes: predicted need of its memory: weights or step buffers, activations, queues.
        share: of the bottleneck's time that this stage is busy: 1.0 is the bottleneck itself.
    """

    device: str
    host: str
    first: int
    last: int
    mode: str
    frames_per_pass: int
    weight_bytes: int
    need_bytes: int
    memory_bytes: int
    in_bytes: int
    out_bytes: int
    predicted_s: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerUp:
    """Another plan and why it loses: the best one with another number of stages.

    Against a partition of the user's own it is the best plan of all; its ``ratio`` may be below 1.
    """

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
        balance: mean time between a stage's frames over the longest: 1.0 is perfectly even.
        runner_up: None where no other number of stages is feasible or the user fixed it.
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
        runner_up=_runner_up(plan, profile, cluster, request),
    )


def bottleneck_name(plan: Plan) -> str:
    """The longest stage or hop, in words."""
    stage_s, stage = max((stage.period_s, n) for n, stage in enumerate(plan.stages))
    link_s, hop = max((seconds, n) for n, seconds in enumerate(plan.hop_s))
    if stage_s >= link_s:
        return f"stage {stage} on {_names(plan.stages[stage])}"
    names = ["owner", *(stage.device.name for stage in plan.stages), "owner"]
    return f"hop {hop}, {names[hop]} to {names[hop + 1]}"


def _names(stage: PlannedStage) -> str:
    more = len(stage.devices) - 1
    return stage.device.name + (f" and {more} more" if more else "")


def _stage(plan: Plan, profile: ModelProfile, number: int, longest_s: float) -> StageExplanation:
    stage = plan.stages[number]
    start, end = (profile.positions.index(node) for node in (stage.first, stage.last))
    blocks = profile.blocks[start:end]
    segments = Segments(profile, stages_max=len(plan.stages))
    settings = Settings(step_bytes=stage.step_bytes)
    neighbours = (plan.stages[number - 1 : number], plan.stages[number + 1 : number + 2])
    sources, targets = (len(each[0].devices) if each else 1 for each in neighbours)
    need = need_bytes(
        segments,
        stage.mode,
        stage.frames_per_pass,
        stage.queue_frames,
        settings,
        sources=sources,
        targets=targets,
    )
    return StageExplanation(
        device=stage.device.name,
        host=stage.device.host,
        first=stage.first,
        last=stage.last,
        mode=stage.mode,
        frames_per_pass=stage.frames_per_pass,
        weight_bytes=sum(block.weight_bytes for block in blocks),
        need_bytes=int(need[end - start - 1, end]),
        memory_bytes=stage.device.memory_bytes,
        in_bytes=layout(stage.inputs)[1],
        out_bytes=layout(stage.outputs)[1],
        predicted_s=stage.predicted_s,
        share=stage.period_s / longest_s if longest_s > 0 else 1.0,
    )


def _runner_up(
    plan: Plan, profile: ModelProfile, cluster: Cluster, request: PlanRequest
) -> RunnerUp | None:
    """The better of the best plans with one stage fewer and one more."""
    if request.partition is not None:
        rival = plan_request(profile, cluster, replace(request, partition=None))
        same = [stage.last for stage in rival.stages] == [stage.last for stage in plan.stages]
        return None if same else _compare(plan, rival)
    if request.stages is not None:
        return None
    rivals = []
    for count in (len(plan.stages) - 1, len(plan.stages) + 1):
        if 1 <= count <= STAGES_MAX:
            with suppress(InfeasibleError):
                rivals.append(plan_request(profile, cluster, replace(request, stages=count)))
    if not rivals:
        return None
    value = _MEASURE[plan.objective]
    return _compare(plan, min(rivals, key=lambda rival: rival.predicted[value]))


def _compare(plan: Plan, rival: Plan) -> RunnerUp:
    measure = _MEASURE[plan.objective]
    mine, its = plan.predicted[measure], rival.predicted[measure]
    return RunnerUp(
        devices=tuple(_names(stage) for stage in rival.stages),
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
    if gaps[part] <= 0:
        return f"its {name} is {format_ms(-gaps[part])} shorter"
    where = f" ({bottleneck_name(rival)})" if name == "bottleneck" else ""
    return f"its {name}{where} is {format_ms(gaps[part])} longer"
