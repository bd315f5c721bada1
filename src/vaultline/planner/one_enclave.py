"""The whole model in one enclave: loaded whole and paged, or run by our executor.

Pages are priced by ``cost.paging``. Simulated enclaves can run such a plan, on their simulated page
cache; on real ones the hardware pages, without asking, and the model has a price but no plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

from msgspec.structs import replace

from vaultline.core.cluster import Device
from vaultline.core.errors import InfeasibleError, InputError
from vaultline.core.limits import FRAME_BYTES_MAX
from vaultline.core.memory import MemoryPlan
from vaultline.core.plan import Plan
from vaultline.core.units import format_bytes
from vaultline.cost.memory import io_bytes
from vaultline.cost.paging import paging_s, swapped_pages
from vaultline.cost.time import bottleneck_s, chunk_s, latency_s
from vaultline.planner.plan import write_down
from vaultline.planner.priced import (
    Priced,
    Setting,
    kind_of,
    priced_plan,
    ways,
    why_not,
)
from vaultline.planner.problem import Problem, build_problem, need_bytes
from vaultline.planner.search import price

#: More protected memory than any model needs.
_ROOMY_BYTES = 1 << 60


def bounded(setting: Setting) -> Priced:
    """One stage, by our executor, which streams what does not fit.

    Raises:
        InfeasibleError: no enclave has room for it.
    """
    problem, blocks = setting.problem, setting.problem.segments.blocks
    found = [
        (price(problem, (stage,)), unit)
        for unit in _one_of_each(setting)
        for stage in ways(problem, unit, 0, blocks)
    ]
    possible = [each for each in found if isfinite(each[0].latency_s)]
    if not possible:
        raise _too_large(setting) if found else why_not(setting, 0, blocks, setting.attested)
    solution, unit = min(possible, key=lambda each: setting.value(each[0]))
    return setting.priced(solution, [unit])


def paged(setting: Setting) -> Priced:
    """Loaded whole, on top of the page cache.

    Where it fits it is a resident stage of ours. Where it does not, frames run one by one, as an
    ordinary runtime runs them, which knows nothing of pages.

    Raises:
        InputError: the profile has no page costs, and they matter.
        InfeasibleError: a frame is too large for a message.
    """
    found = [_whole(setting, unit) for unit in _one_of_each(setting)]
    possible = [each for each in found if each is not None]
    if not possible:
        raise _too_large(setting)
    return min(possible, key=lambda each: each.value_s(setting.request.objective))


def _one_of_each(setting: Setting) -> Iterator[Device]:
    """The first attested device of each type."""
    seen = set()
    for unit in setting.attested:
        kind = kind_of(setting.problem, unit)
        if kind not in seen:
            seen.add(kind)
            yield unit


def _too_large(setting: Setting) -> InfeasibleError:
    largest = max(setting.profile.crossing_bytes[0], setting.profile.crossing_bytes[-1])
    return InfeasibleError(
        "the model's input or output is too large for one frame message: message size",
        got=format_bytes(largest),
        expected=f"at most {format_bytes(FRAME_BYTES_MAX)}",
    )


def _whole(setting: Setting, unit: Device) -> Priced | None:
    """The whole model on a device, paged or not; None where no message could carry a frame."""
    problem, blocks = setting.problem, setting.problem.segments.blocks
    at = (blocks - 1, blocks)
    resident = [
        solution
        for stage in ways(problem, unit, 0, blocks)
        if not problem.options[stage.kind][stage.option].streamed[at]
        and isfinite((solution := price(problem, (stage,))).latency_s)
    ]
    if resident:
        return setting.priced(min(resident, key=setting.value), [unit])
    alone = _unpaged(setting, unit)
    return None if alone is None else _with_pages(setting, unit, alone)


def _unpaged(setting: Setting, unit: Device) -> Priced | None:
    """What it would take if all of the device's memory were protected, frame by frame."""
    roomy = replace(unit, memory_bytes=_ROOMY_BYTES)
    problem = build_problem(
        setting.profile,
        setting.cluster,
        (roomy,),
        settings=setting.request.settings,
        release=setting.request.release,
        alone=True,
    )
    solutions = [price(problem, (way,)) for way in ways(problem, roomy, 0, problem.segments.blocks)]
    best = min(solutions, key=lambda each: each.latency_s)
    if not isfinite(best.latency_s):
        return None
    return priced_plan(write_down(problem, best, setting.request, ((roomy,),)))


def _with_pages(setting: Setting, unit: Device, alone: Priced) -> Priced:
    """The price of a frame by itself, with the swapped pages added to it."""
    problem, kind = setting.problem, kind_of(setting.problem, unit)
    hops = (float(problem.entry_s[kind]), float(problem.exit_s[kind]))
    page_s, paged_bytes = _page_s(setting), working_set_bytes(problem)
    cache_bytes = unit.memory_bytes - buffers_bytes(problem)
    stage_s = alone.latency_s - sum(hops) + paging_s(paged_bytes, cache_bytes, page_s)
    latency, bottleneck = latency_s([stage_s], hops), bottleneck_s([stage_s], hops)
    chunk = chunk_s(latency, bottleneck, setting.request.chunk_frames)
    pages = swapped_pages(paged_bytes, cache_bytes)
    ends = f"owner to {unit.name}", f"{unit.name} to owner"
    hop = f"hop {hops.index(max(hops))}, {ends[hops.index(max(hops))]}"
    times = {"latency_s": latency, "bottleneck_s": bottleneck, "chunk_s": chunk}
    runs = alone.plan is not None and unit.kind == "simulated"
    return Priced(
        plan=_paged_plan(setting, unit, alone.plan, stage_s, times) if runs else None,
        devices=((unit.name,),),
        cuts=(),
        latency_s=latency,
        bottleneck_s=bottleneck,
        chunk_s=chunk,
        bottleneck=f"stage 0 on {unit.name}" if stage_s >= max(hops) else hop,
        estimated=alone.estimated,
        note=f"pages {pages:,} times a frame, {page_s * 1e6:.1f} us each ({setting.page_mode})",
    )


def _paged_plan(
    setting: Setting, unit: Device, roomy: Plan | None, stage_s: float, times: dict[str, float]
) -> Plan | None:
    """The plan of one roomy enclave, on the real one and its page cache."""
    if roomy is None:
        return None
    (stage,) = roomy.stages
    paged_stage = replace(
        stage,
        devices=(replace(stage.device, memory_bytes=unit.memory_bytes),),
        mode="paged",
        page_mode=setting.page_mode,
        predicted_s=stage_s,
        memory=_paged_memory(stage.memory, unit.memory_bytes),
    )
    return replace(roomy, stages=(paged_stage,), predicted=times)


def _paged_memory(roomy: MemoryPlan | None, memory_bytes: int) -> MemoryPlan | None:
    """Weights and tensors come and go in a page cache of what the buffers leave."""
    if roomy is None:
        return None
    cache_bytes = max(0, memory_bytes - roomy.io_bytes - roomy.engine_bytes)
    return replace(roomy, resident_bytes=0, workspace_bytes=cache_bytes)


def working_set_bytes(problem: Problem) -> int:
    """Weights and activations of the whole model: what comes and goes in a page cache."""
    return _need_bytes(problem) - buffers_bytes(problem)


def buffers_bytes(problem: Problem) -> int:
    """Message and record buffers for the model's input and output."""
    segments, settings = problem.segments, problem.settings
    at = (segments.blocks - 1, segments.blocks)
    buffers = io_bytes(
        in_bytes=segments.in_message_bytes[at],
        out_bytes=segments.out_message_bytes[at],
        frames=1,
        queue_frames=settings.queue_frames(1),
    )
    return int(buffers)


def _need_bytes(problem: Problem) -> int:
    """All that the whole model needs, by the rules of our ledger."""
    settings, blocks = problem.settings, problem.segments.blocks
    need = need_bytes(problem.segments, "resident", 1, settings.queue_frames(1))
    return int(need[blocks - 1, blocks])


def _page_s(setting: Setting) -> float:
    costs = setting.profile.rates.page_s
    if setting.page_mode not in costs:
        raise InputError(
            f"the profile does not say what a swapped page costs by the mode {setting.page_mode}",
            got=", ".join(costs) or "no page costs",
            expected="those that `vaultline profile` records",
            remedy="run `vaultline profile` again",
        )
    return costs[setting.page_mode]
