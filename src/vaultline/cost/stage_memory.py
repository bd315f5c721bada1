"""The memory plan of one stage, from a profile: its steps, and what stays, for the least time.

As the compiler does it over nodes (``graph.layout``), with blocks instead: so it can be shown
before anything is compiled. What is held is no less than what the compiler will need.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from vaultline.core.memory import MemoryPlan, StepMemory, StreamRates
from vaultline.core.profile import TILE_BYTES
from vaultline.cost.grouping import cheapest
from vaultline.cost.memory import workspace_bytes
from vaultline.cost.steps import Steps

#: Bounds on a step's memory that are tried.
_BOUNDS_TRIED = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class StageLimits:
    """What a stage has to keep to.

    Attributes:
        memory_bytes: of its device.
        frames: of one pass.
        engine_bytes, io_bytes: taken from the memory before anything else.
        prefetch: a step's weights are decrypted while the step before runs.
    """

    memory_bytes: int
    frames: int
    engine_bytes: int
    io_bytes: int
    prefetch: bool
    rates: StreamRates

    @property
    def room_bytes(self) -> int:
        """For weights and workspace."""
        return self.memory_bytes - self.engine_bytes - self.io_bytes


@dataclass(frozen=True, slots=True)
class _Step:
    """Blocks ``[first, last)`` in one step, or part of a block that is cut inside."""

    first: int
    last: int
    weights: int
    activation: int
    stacked: bool = False


def resident_memory(steps: Steps, start: int, end: int, limits: StageLimits) -> MemoryPlan:
    """Of blocks ``[start, end)`` whose weights all stay."""
    needs, alone = steps.together(limits.frames), steps.stacked(limits.frames)
    cuts = [start]
    for block in range(start + 1, end):
        if steps.alone[block - 1] or steps.alone[block]:
            cuts.append(block)
    found = [
        _Step(
            first=a,
            last=b,
            weights=0,
            activation=_skipping(steps, start, limits)
            + (int(alone[a]) if steps.alone[a] else _placed(needs, a, b, start, end)),
            stacked=bool(steps.profile.blocks[a].stacked_bytes),
        )
        for a, b in pairwise([*cuts, end])
    ]
    weights = sum(block.weight_bytes for block in steps.profile.blocks[start:end])
    return _written(steps, found, limits, weights, max(step.activation for step in found))


def streamed_memory(steps: Steps, start: int, end: int, limits: StageLimits) -> MemoryPlan:
    """Of blocks ``[start, end)`` whose weights stay as far as there is room."""
    total = sum(block.weight_bytes for block in steps.profile.blocks[start:end])
    ahead = _ahead_bytes(steps, start, end) if limits.prefetch else 0
    table = _Table(steps, start, end, limits)
    best: tuple[float, list[_Step]] | None = None
    for bound in table.bounds(limits.room_bytes - ahead):
        cut = table.cut(bound)
        if cut is not None:
            calls_s, found = cut
            peak = max(step.activation + step.weights for step in found)
            streamed = max(0, total - (limits.room_bytes - _workspace(peak, ahead)))
            seconds = calls_s + streamed / limits.rates.decrypt_bytes_per_s
            if best is None or seconds < best[0]:
                best = seconds, found
    if best is None:
        # A segment so small that all of it takes less than its steps.
        return resident_memory(steps, start, end, limits)
    return _filled(steps, best[1], limits, ahead)


def _skipping(steps: Steps, start: int, limits: StageLimits) -> int:
    return limits.frames * int(steps.alive.skipping[start])


def _placed(needs: object, a: int, b: int, start: int, end: int) -> int:
    """What a step needs where it is in its segment."""
    place = {(True, True): "whole", (True, False): "first", (False, True): "last"}
    table = getattr(needs, place.get((a == start, b == end), "middle"))
    return int(table[a] if table.ndim == 1 else table[a, b])


def _ahead_bytes(steps: Steps, start: int, end: int) -> int:
    blocks = steps.profile.blocks[start:end]
    largest = max(TILE_BYTES, *(block.largest_weight_bytes for block in blocks))
    return min(2 * largest, sum(block.weight_bytes for block in blocks))


def _workspace(peak: int, ahead: int = 0) -> int:
    """As the tables over all segments have it: in whole bytes, at least that."""
    return int(np.ceil(workspace_bytes(np.array(float(peak))))) + ahead


class _Table:
    """Every step of a segment: its need and its price."""

    def __init__(self, steps: Steps, start: int, end: int, limits: StageLimits) -> None:
        self._steps, self._start, self._end = steps, start, end
        self._needs = steps.together(limits.frames)
        self._inside = steps.cut_inside(limits.frames)
        self._frames, self._step_s = limits.frames, limits.rates.step_s
        count, copies = end - start, _skipping(steps, start, limits)
        self._need = np.full((count + 1, count + 1), np.inf)
        for a in range(start, end):
            for b in range(a + 1, end + 1):
                if steps.alone[b - 1] or (limits.prefetch and not self._light(a, b)):
                    break
                need = _placed(self._needs, a, b, start, end) + steps.weights(a, b)
                self._need[a - start, b - start] = need + copies
        self._cut = np.array(
            [_placed(self._inside, a, a + 1, start, end) + copies for a in range(start, end)]
        )

    def _light(self, first: int, last: int) -> bool:
        blocks = self._steps.profile.blocks[first:last]
        largest = max(block.largest_weight_bytes for block in blocks)
        return self._steps.weights(first, last) <= max(TILE_BYTES, largest)

    def bounds(self, room: int) -> list[float]:
        """Bounds that may matter, the least first; each leaves room for gaps."""
        values = np.unique(np.concatenate([self._need[np.isfinite(self._need)], self._cut]))
        fitting = [value for value in values if _workspace(int(value)) <= room]
        chosen = np.unique(np.linspace(0, max(len(fitting) - 1, 0), _BOUNDS_TRIED).astype(int))
        return [float(fitting[index]) for index in chosen if index < len(fitting)]

    def cut(self, bound: float) -> tuple[float, list[_Step]] | None:
        """The steps of least price within a bound, and their price in seconds."""
        need, price = self._need.copy(), np.full_like(self._need, np.inf)
        price[np.isfinite(need)] = self._frames * self._step_s
        inside = set()
        for index, block in enumerate(range(self._start, self._end)):
            if need[index, index + 1] > bound:
                inside.add(block)
                own = self._steps.profile.blocks[block]
                need[index, index + 1] = self._cut[index]
                frames = 1 if own.stacked_bytes else self._frames
                price[index, index + 1] = own.cut_steps * frames * self._step_s
        found = cheapest(need, price, bound)
        if found is None:
            return None
        steps: list[_Step] = []
        for a, b in pairwise(place + self._start for place in found[1]):
            if b == a + 1 and a in inside:
                steps += self._parts(a)
            else:
                weights = sum(block.weight_bytes for block in self._steps.profile.blocks[a:b])
                whole = int(self._need[a - self._start, b - self._start])
                steps.append(_Step(a, b, weights, whole - weights))
        return found[0], steps

    def _parts(self, block: int) -> list[_Step]:
        """A block that is cut inside: as many steps as its largest goes into its weights."""
        own = self._steps.profile.blocks[block]
        largest = max(own.largest_weight_bytes, 1)
        count = max(1, min(own.cut_steps, -(-own.weight_bytes // largest)))
        activation = max(0, int(self._cut[block - self._start]) - own.largest_weight_bytes)
        shares = [
            own.weight_bytes * (k + 1) // count - own.weight_bytes * k // count
            for k in range(count)
        ]
        return [
            _Step(block, block + 1, share, activation, bool(own.stacked_bytes)) for share in shares
        ]


def _filled(steps: Steps, found: list[_Step], limits: StageLimits, ahead: int) -> MemoryPlan:
    """Weights stay as far as there is room, those of the neediest steps first: what they free in
    the workspace is room for others. But what one node reads is in one piece."""
    room = limits.room_bytes

    def kept(peak: int) -> list[int]:
        return [max(0, step.activation + step.weights - peak) for step in found]

    high = max(step.activation + step.weights for step in found)
    low = max(step.activation + _piece(steps, step) for step in found) if not ahead else high
    while low < high:
        middle = (low + high) // 2
        if _workspace(middle) + sum(kept(middle)) <= room:
            high = middle
        else:
            low = middle + 1
    stays = kept(high)
    spare = room - _workspace(high, ahead) - sum(stays)
    for index in sorted(range(len(found)), key=lambda k: -found[k].activation - found[k].weights):
        more = min(spare, found[index].weights - stays[index])
        stays[index] += more
        spare -= more
    streams = [
        _Step(step.first, step.last, step.weights - own, step.activation, step.stacked)
        for step, own in zip(found, stays, strict=True)
    ]
    return _written(steps, streams, limits, sum(stays), high, ahead)


def _piece(steps: Steps, step: _Step) -> int:
    """The most weights that one node of a step reads."""
    blocks = steps.profile.blocks[step.first : step.last]
    return min(step.weights, max(block.largest_weight_bytes for block in blocks))


def _written(
    steps: Steps,
    found: list[_Step],
    limits: StageLimits,
    resident: int,
    peak: int,
    ahead: int = 0,
) -> MemoryPlan:
    positions = steps.profile.positions
    return MemoryPlan(
        resident_bytes=resident,
        workspace_bytes=_workspace(peak, ahead),
        engine_bytes=limits.engine_bytes,
        io_bytes=limits.io_bytes,
        prefetch=limits.prefetch,
        steps=tuple(
            StepMemory(
                first=positions[step.first],
                last=positions[step.last],
                frames=limits.frames if step.stacked else 1,
                streamed_bytes=step.weights,
                activation_bytes=step.activation,
            )
            for step in found
        ),
    )
