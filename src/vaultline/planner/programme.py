"""The dynamic programme: least latency of a partition none of whose parts takes too long.

States are (how many devices of each type are used, type of the last stage, cut). A path grows by a
stage that takes r devices of one type at once: its latency is the stage's, its period an r-th of
it. A stage that is quick enough on fewer devices is not offered on more: it would gain nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import inf, nextafter
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from vaultline.core.limits import STAGES_MAX, WORKERS_MAX
from vaultline.cost.segments import Table

#: Devices used of each type, then the number of stages where that is limited (else 0).
State: TypeAlias = tuple[int, ...]
Vector: TypeAlias = NDArray[np.float64]
#: Starts that are combined at a time, so that the intermediate stays in the cache.
_ROWS = 32


@dataclass(frozen=True, slots=True)
class Step:
    """A stage of a path: blocks ``[start, end)`` on ``replicas`` devices of type ``kind``, run in
    one of the ways that there are."""

    start: int
    end: int
    kind: int
    replicas: int
    way: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """Stages from the first cut to the last, and what they cost."""

    steps: tuple[Step, ...]
    latency_s: float
    bottleneck_s: float

    def chunk_s(self, frames: int) -> float:
        """Seconds for so many frames."""
        return self.latency_s + (frames - 1) * self.bottleneck_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way of running segments, by start and end cut; ``inf`` where it isn't possible."""

    latency_s: Table
    period_s: Table


def by_start_and_end(table: Table) -> Table:
    """A table by length and end (see ``cost.segments``) as one by start and end."""
    blocks, cuts = table.shape
    square = np.full((cuts, cuts), inf)
    flat = np.ascontiguousarray(table).ravel()
    for start in range(blocks):
        square[start, start + 1 :] = flat[start + 1 :: cuts + 1][: blocks - start]
    return square


def most_within(limit: float, replicas: int) -> float:
    """The largest number that, divided by ``replicas``, is within the limit."""
    most = limit * replicas
    while most / replicas > limit:
        most = nextafter(most, -inf)
    while most < inf and nextafter(most, inf) / replicas <= limit:
        most = nextafter(most, inf)
    return most


class Programme:
    """The tables of one space, in the layout that the programme reads.

    Args:
        counts: devices of each type.
        ways: per type, the ways of running each segment.
        links: ``[a, b, cut]``.
        replicas: most devices of a stage.
        stages: use exactly so many, where given.
    """

    def __init__(
        self,
        counts: tuple[int, ...],
        ways: Sequence[Sequence[Way]],
        *,
        entry: Vector,
        links: NDArray[np.float64],
        leave: Vector,
        replicas: int,
        stages: int | None,
    ) -> None:
        self.counts = counts
        self.ways = ways
        self.entry, self.links, self.leave = entry, links, leave
        self.replicas = replicas
        self.stages = stages
        self.cuts = links.shape[2]
        #: Stages are counted only where their number matters.
        self.counted = stages is not None or min(sum(counts), self.cuts - 1) > STAGES_MAX
        self.stages_max = min(stages or STAGES_MAX, self.cuts - 1)

    def least(self, limit: float = inf, below: float = inf) -> Path | None:
        """The path of least latency below ``below`` with no stage or link above ``limit``."""
        found = _Run(self, limit, below).path()
        if found is None:
            return None
        steps = tuple(self._step(start, end, kind, r, limit) for start, end, kind, r in found)
        ways = [self.ways[step.kind][step.way] for step in steps]
        hops = [
            self.entry[steps[0].kind],
            *(self.links[a.kind, b.kind, b.start] for a, b in pairwise(steps)),
            self.leave[steps[-1].kind],
        ]
        alone = [way.latency_s[at.start, at.end] for way, at in zip(ways, steps, strict=True)]
        periods = [
            way.period_s[at.start, at.end] / at.replicas
            for way, at in zip(ways, steps, strict=True)
        ]
        return Path(
            steps=steps,
            latency_s=float(sum(alone) + sum(hops)),
            bottleneck_s=float(max(*periods, *hops)),
        )

    def _step(self, start: int, end: int, kind: int, replicas: int, limit: float) -> Step:
        """The stage, run in the way of least latency within the limit."""
        fitting = [
            (float(way.latency_s[start, end]), number)
            for number, way in enumerate(self.ways[kind])
            if way.period_s[start, end] / replicas <= limit
        ]
        return Step(start, end, kind, replicas, min(fitting)[1])

    def candidates(self, low_s: float, high_s: float) -> Vector:
        """Times of all stages and links above ``low_s`` and below ``high_s``, ascending."""
        found = [
            times[(times > low_s) & (times < high_s)]
            for times in (self.entry, self.links, self.leave)
        ]
        for kind, ways in enumerate(self.ways):
            for replicas in range(1, min(self.replicas, self.counts[kind]) + 1):
                for way in ways:
                    times = way.period_s / replicas
                    found.append(times[(times > low_s) & (times < high_s)])
        return np.unique(np.concatenate(found))


class _Run:
    """One run of a programme under one limit."""

    def __init__(self, programme: Programme, limit: float, below: float) -> None:
        self.programme = programme
        self.limit = limit
        self.value = below
        self.end: tuple[State, int] | None = None
        self.cuts = programme.cuts
        within = [
            np.where(times <= limit, times, inf)
            for times in (programme.entry, programme.links, programme.leave)
        ]
        self.entry, self.links, self.leave = within
        self.bands = {
            (kind, replicas): self._band(kind, replicas)
            for kind in range(len(programme.counts))
            for replicas in range(1, self._most(kind, 0) + 1)
        }
        self.reached: dict[State, dict[int, Vector]] = {}
        self._buffer = np.empty((_ROWS, self.cuts))

    def path(self) -> list[tuple[int, int, int, int]] | None:
        """Stages as (start, end, type, replicas)."""
        programme = self.programme
        remaining = self._least_remaining()
        if not self.entry.min() + remaining[0] < self.value:
            return None
        for state in self._states():
            for kind, available in enumerate(programme.counts):
                if state[kind] < available:
                    self._extend(state, kind, remaining)
        return None if self.end is None else self._trace(*self.end)

    def _states(self) -> Iterator[State]:
        programme = self.programme
        ranges = [range(count + 1) for count in programme.counts]
        numbers = range(programme.stages_max) if programme.counted else range(1)
        for state in sorted(product(*ranges, numbers), key=sum):
            if sum(state[:-1]) < WORKERS_MAX:
                yield state

    def _most(self, kind: int, used: int) -> int:
        """Devices of a type that one more stage can take."""
        programme = self.programme
        if self.limit == inf:
            return min(1, programme.counts[kind] - used)
        return min(programme.replicas, programme.counts[kind] - used)

    def _band(self, kind: int, replicas: int) -> Table:
        """Latencies of the segments that are quick enough on so many devices, and not on fewer."""
        most = most_within(self.limit, replicas)
        enough = most_within(self.limit, replicas - 1) if replicas > 1 else -inf
        band = np.full((self.cuts, self.cuts), inf)
        for way in self.programme.ways[kind]:
            fitting = (way.period_s <= most) & (way.period_s > enough)
            np.minimum(band, np.where(fitting, way.latency_s, inf), out=band)
        return band

    def _least_remaining(self) -> Vector:
        """Per cut, a lower bound on what follows a hop to it: devices unlimited, links least."""
        last = self.cuts - 1
        least = np.full((self.cuts, self.cuts), inf)
        for band in self.bands.values():
            np.minimum(least, band, out=least)
        link = self.links.min(axis=(0, 1))
        bound = np.full(self.cuts, inf)
        # What follows the stage that ends at each cut.
        after = np.full(self.cuts, inf)
        after[last] = self.leave.min()
        for start in range(last - 1, -1, -1):
            bound[start] = (least[start, start + 1 :] + after[start + 1 :]).min()
            after[start] = link[start] + bound[start]
        return bound

    def _extend(self, state: State, kind: int, remaining: Vector) -> None:
        """Add a stage on devices of ``kind`` to every path that reached ``state``."""
        arriving = self._arriving(state, kind)
        arriving[~(arriving + remaining < self.value)] = inf
        finite = np.flatnonzero(arriving < inf)
        if not len(finite):
            return
        for replicas in range(1, self._most(kind, state[kind]) + 1):
            used = self._after(state, kind, replicas)
            if sum(used[:-1]) > WORKERS_MAX:
                return
            after = self._shortest(arriving, self.bands[kind, replicas], finite)
            known = self.reached.setdefault(used, {})
            known[kind] = np.minimum(known[kind], after) if kind in known else after
            total = float(after[-1] + self.leave[kind])
            if total < self.value and self.programme.stages in (None, used[-1]):
                self.value, self.end = total, (used, kind)

    def _after(self, state: State, kind: int, replicas: int) -> State:
        number = state[-1] + (1 if self.programme.counted else 0)
        return (*state[:kind], state[kind] + replicas, *state[kind + 1 : -1], number)

    def _before(self, used: State, kind: int, replicas: int) -> State:
        number = used[-1] - (1 if self.programme.counted else 0)
        return (*used[:kind], used[kind] - replicas, *used[kind + 1 : -1], number)

    def _arriving(self, state: State, kind: int) -> Vector:
        """Per cut, the least latency with which its tensors reach a device of ``kind``."""
        best = np.full(self.cuts, inf)
        if not any(state):
            best[0] = self.entry[kind]
        for last, values in self.reached.get(state, {}).items():
            np.minimum(best, values + self.links[last, kind], out=best)
        return best

    def _shortest(self, arriving: Vector, band: Table, finite: NDArray[np.intp]) -> Vector:
        """Per end, the least of ``arriving[start] + band[start, end]`` over starts."""
        best = np.full(self.cuts, inf)
        for start in range(int(finite[0]), int(finite[-1]) + 1, _ROWS):
            part = band[start : start + _ROWS, start + 1 :]
            size = self._buffer[: len(part), start + 1 :]
            sums = np.add(arriving[start : start + len(part), None], part, out=size)
            np.minimum(best[start + 1 :], sums.min(axis=0), out=best[start + 1 :])
        return best

    def _trace(self, used: State, kind: int) -> list[tuple[int, int, int, int]]:
        """Walk back from the end, repeating each choice."""
        path, end = [], self.cuts - 1
        while True:
            _, start, replicas = min(
                self._choices(used, kind, end), key=lambda choice: choice[0]
            )
            path.append((start, end, kind, replicas))
            used = self._before(used, kind, replicas)
            if not any(used):
                return path[::-1]
            arrivals = {
                last: float(reached[start] + self.links[last, kind, start])
                for last, reached in self.reached[used].items()
            }
            kind, end = min(arrivals, key=arrivals.__getitem__), start

    def _choices(self, used: State, kind: int, end: int) -> Iterator[tuple[float, int, int]]:
        """(value, start, replicas) of the ways to a state, the best start of each."""
        for replicas in range(1, self._most(kind, 0) + 1):
            before = self._before(used, kind, replicas)
            if before[kind] >= 0 and before[-1] >= 0:
                values = self._arriving(before, kind)[:end] + self.bands[kind, replicas][:end, end]
                start = int(np.argmin(values))
                yield float(values[start]), start, replicas
