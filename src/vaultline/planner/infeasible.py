"""Why there is no plan, and the smallest change that would make one."""

from __future__ import annotations

from math import ceil, inf

import numpy as np

from vaultline.core.cluster import Device
from vaultline.core.errors import InfeasibleError
from vaultline.core.limits import FRAME_BYTES_MAX
from vaultline.core.units import format_bytes
from vaultline.cost.segments import Table
from vaultline.planner.bands import Way
from vaultline.planner.options import memory_for
from vaultline.planner.problem import Problem
from vaultline.planner.programme import Programme, by_start_and_end
from vaultline.planner.search import least_bottleneck


class MemoryShortError(InfeasibleError):
    """No partition fits.

    Attributes:
        device: where most is missing in the partition that lacks least.
        needed_bytes: the memory that this device would need.
    """

    def __init__(self, message: str, *, device: Device, needed_bytes: int, nodes: str) -> None:
        super().__init__(
            message,
            got=f"{format_bytes(device.memory_bytes)} on {device.name}",
            expected=f"{format_bytes(needed_bytes)} for nodes {nodes}, "
            "with weights streamed where that takes less",
            remedy="raise the device's memory, or add devices",
        )
        self.device = device.name
        self.needed_bytes = needed_bytes


def explain_infeasible(problem: Problem, stages: int | None) -> InfeasibleError:
    """Name the binding constraint and how much is missing.

    Constraints are tried in an order: the number of stages, trust, the size of a message, memory.
    What memory lacks is found by the same search, minimising the largest shortfall of any stage.
    Replicas play no part: without them a partition takes less of everything.
    """
    return (
        _stage_count(problem, stages)
        or _trust(problem, stages)
        or _message_size(problem, stages)
        or _memory(problem, stages)
    )


def _stage_count(problem: Problem, stages: int | None) -> InfeasibleError | None:
    devices, blocks = sum(problem.counts), problem.segments.blocks
    if stages is not None and stages > devices:
        return InfeasibleError(
            f"{stages} stages need {stages} devices: number of devices",
            got=str(devices),
            expected=f"{stages - devices} more",
            remedy="add devices to the cluster, or ask for fewer stages",
        )
    if stages is not None and stages > blocks:
        return InfeasibleError(
            f"the model cannot be cut into {stages} stages: number of cuts",
            got=f"{blocks} blocks",
            expected=f"at most {blocks} stages",
        )
    return None


def _trust(problem: Problem, stages: int | None) -> InfeasibleError | None:
    allowed = [np.where(kind.allowed, 0.0, inf) for kind in problem.types]
    if _largest(problem, allowed, stages, links=False) is not None:
        return None
    trusted = sum(len(kind.units) for kind in problem.types if kind.units[0].trust == "attested")
    wanted = stages or 1
    return InfeasibleError(
        "no partition keeps unreleased tensors and weights on attested devices: trust",
        got=f"{trusted} attested devices",
        expected=f"at least {wanted}, or a policy that releases more",
        remedy="add attested devices to the cluster or to `--devices`",
    )


def _message_size(problem: Problem, stages: int | None) -> InfeasibleError | None:
    allowed = [np.where(kind.allowed, 0.0, inf) for kind in problem.types]
    if _largest(problem, allowed, stages) is not None:
        return None
    return InfeasibleError(
        "the tensors that would cross are too large for one frame message: message size",
        got=format_bytes(max(problem.profile.crossing_bytes)),
        expected=f"at most {format_bytes(FRAME_BYTES_MAX)}",
    )


def _memory(problem: Problem, stages: int | None) -> InfeasibleError:
    short = [
        np.where(kind.allowed, np.maximum(problem.need_bytes - memory_for(kind.units[0]), 0.0), inf)
        for kind in problem.types
    ]
    path = _largest(problem, short, stages)
    if path is None:
        raise AssertionError("a partition exists when memory does not count, but was not found")
    lacking = []
    waiting = [list(kind.units) for kind in problem.types]
    for start, end, kind in path:
        unit = waiting[kind].pop(0)
        missing = ceil(short[kind][end - start - 1, end])
        if missing > 0:
            first, last = problem.profile.positions[start], problem.profile.positions[end]
            lacking.append((missing, unit, first, last))
    missing, unit, first, last = max(lacking, key=lambda each: each[0])
    others = f" (and less on {len(lacking) - 1} more)" if len(lacking) > 1 else ""
    return MemoryShortError(
        f"the smallest partition needs {format_bytes(missing)} more on device {unit.name}"
        f"{others}: memory",
        device=unit,
        needed_bytes=unit.memory_bytes + missing,
        nodes=f"{first}:{last}",
    )


def _largest(
    problem: Problem, tables: list[Table], stages: int | None, *, links: bool = True
) -> list[tuple[int, int, int]] | None:
    """Path whose largest entry is least; links only forbid, they add nothing."""
    forbidden = np.where(np.isfinite(problem.link_s), 0.0, inf if links else 0.0)
    ends = np.zeros(len(tables))
    squares = [by_start_and_end(table) for table in tables]
    path = least_bottleneck(
        Programme(
            problem.counts,
            [[Way(latency_s=each, period_s=each)] for each in squares],
            entry=ends,
            links=forbidden,
            leave=ends,
            replicas=1,
            stages=stages,
        )
    )
    return None if path is None else [(step.start, step.end, step.kind) for step in path.steps]
