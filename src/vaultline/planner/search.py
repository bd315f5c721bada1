"""Exact search for the best contiguous partition over counted device types.

Two dynamic programmes run over (how many devices of each type are used, last type, cut):

- *min-sum*: the least latency with no stage or link longer than a given bottleneck;
- *min-max*: the least bottleneck.

Latency is one min-sum; throughput is one min-max, then the min-sum at that bottleneck. For a chunk
of n frames, ``latency + (n - 1) * bottleneck``, the bottleneck is one of finitely many candidates:
the times of all stages and links. The least latency L(b) falls as the allowed bottleneck b rises,
so candidates are tried in ascending order and a whole range of them, (lo, hi), is left out once
``L(hi) + (n - 1) * next(lo)`` cannot beat the best plan found; what remains is halved. No heuristic
is involved: every candidate is either tried or excluded by that bound.

The order of devices is free. Cuts are those of one topological order; others are not
searched.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from math import inf
from typing import TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from vaultline.core.plan import Objective
from vaultline.cost.segments import Table
from vaultline.planner.problem import Problem

Counts: TypeAlias = tuple[int, ...]
Vector: TypeAlias = NDArray[np.float64]
#: Rows of a table that are combined at a time, so that the intermediate stays in the cache.
_ROWS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A stage of a solution: blocks ``[start, end)`` on some device of a type."""

    start: int
    end: int
    kind: int
    option: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """The stages of a partition and what they cost."""

    stages: tuple[Placed, ...]
    latency_s: float
    bottleneck_s: float

    def chunk_s(self, frames: int) -> float:
        """Seconds for so many frames."""
        return self.latency_s + (frames - 1) * self.bottleneck_s


def search(
    problem: Problem, objective: Objective, *, chunk_frames: int = 1, stages: int | None = None
) -> Solution | None:
    """The best partition, or None where there is none.

    Args:
        stages: use exactly so many, where given.
    """
    searcher = Search(problem, stages)
    if objective == "latency":
        return searcher.least_latency(inf)
    if objective == "throughput":
        return searcher.highest_throughput()
    return searcher.shortest_chunk(chunk_frames)


class Search:
    """The programmes over one problem."""

    def __init__(self, problem: Problem, stages: int | None) -> None:
        self.problem = problem
        self.stages = stages
        self.cuts = problem.link_s.shape[2]
        self.periods = [_least(*(option.period_s for option in kind)) for kind in problem.options]

    def least_latency(self, bottleneck_s: float, below_s: float = inf) -> Solution | None:
        """The least latency below ``below_s`` without a stage or link above ``bottleneck_s``."""
        tables = []
        for kind, periods in zip(self.problem.options, self.periods, strict=True):
            rows = slice(_rows_within(periods, bottleneck_s))
            within = [
                _up_to(option.latency_s[rows], option.period_s[rows], bottleneck_s)
                for option in kind
            ]
            tables.append(_least(*within))
        problem = self.problem
        links = [
            _up_to(times, times, bottleneck_s)
            for times in (problem.entry_s, problem.link_s, problem.exit_s)
        ]
        programme = Programme(np.add, problem.counts, tables, *links, stages=self.stages)
        path = programme.solve(below_s, programme.least_remaining())
        return None if path is None else self._priced(path, bottleneck_s)

    def least_bottleneck(self) -> float:
        """The least bottleneck of any partition; ``inf`` where there is none."""
        problem = self.problem
        programme = Programme(
            np.maximum,
            problem.counts,
            self.periods,
            problem.entry_s,
            problem.link_s,
            problem.exit_s,
            stages=self.stages,
        )
        path = programme.solve(inf, np.zeros(self.cuts))
        return inf if path is None else programme.value

    def highest_throughput(self) -> Solution | None:
        """The least bottleneck, and the least latency with it."""
        bottleneck_s = self.least_bottleneck()
        return None if bottleneck_s == inf else self.least_latency(bottleneck_s)

    def shortest_chunk(self, frames: int) -> Solution | None:
        """The least ``latency + (frames - 1) * bottleneck``."""
        quickest = self.least_latency(inf)
        if quickest is None or frames <= 1:
            return quickest
        widest = self.highest_throughput()
        if widest is None:
            raise AssertionError("a partition exists, but none of least bottleneck")
        best = min(widest, quickest, key=lambda found: found.chunk_s(frames))
        low_s, high_s = widest.bottleneck_s, quickest.bottleneck_s
        limit_s = min(high_s, (best.chunk_s(frames) - quickest.latency_s) / (frames - 1))
        candidates = self._candidates(low_s, limit_s)
        # Ranges of candidates still open, lowest on top, with the least latency within each.
        ranges = [(0, len(candidates), quickest.latency_s)]
        while ranges:
            first, end, latency_s = ranges.pop()
            limit_s = (best.chunk_s(frames) - latency_s) / (frames - 1)
            end = min(end, int(np.searchsorted(candidates, limit_s)))
            if first >= end:
                continue
            middle = (first + end - 1) // 2
            below_s = best.chunk_s(frames) - (frames - 1) * float(candidates[first])
            found = self.least_latency(float(candidates[middle]), below_s)
            ranges.append((middle + 1, end, latency_s))
            if found is not None:
                best = min(best, found, key=lambda each: each.chunk_s(frames))
                reached = int(np.searchsorted(candidates, found.bottleneck_s))
                ranges.append((first, reached, found.latency_s))
        return best

    def _candidates(self, low_s: float, high_s: float) -> Vector:
        """Times of all stages and links above ``low_s`` and below ``high_s``, ascending."""
        problem = self.problem
        tables = [problem.entry_s, problem.link_s, problem.exit_s]
        tables += [option.period_s for kind in problem.options for option in kind]
        return np.unique(
            np.concatenate([table[(table > low_s) & (table < high_s)] for table in tables])
        )

    def _priced(self, path: list[tuple[int, int, int]], bottleneck_s: float) -> Solution:
        """Choose each stage's option and add up."""
        problem, placed, times = self.problem, [], []
        hops = [float(problem.entry_s[path[0][2]])]
        for start, end, kind in path:
            at = (end - start - 1, end)
            options = problem.options[kind]
            fitting = [n for n, each in enumerate(options) if each.period_s[at] <= bottleneck_s]
            option = min(fitting, key=lambda n: float(options[n].latency_s[at]))
            placed.append(Placed(start=start, end=end, kind=kind, option=option))
            times.append((options[option].latency_s[at], options[option].period_s[at]))
        for before, after in pairwise(placed):
            hops.append(float(problem.link_s[before.kind, after.kind, after.start]))
        hops.append(float(problem.exit_s[path[-1][2]]))
        return Solution(
            stages=tuple(placed),
            latency_s=float(sum(alone for alone, _ in times)) + sum(hops),
            bottleneck_s=max(*(float(period) for _, period in times), *hops),
        )


class Programme:
    """A dynamic programme that combines stages and links by addition or by maximum.

    ``reached[counts][a]`` holds, per cut, the least value of a path that ends there after a stage
    on type a and has used ``counts`` devices.
    """

    def __init__(
        self,
        combine: np.ufunc,
        available: Counts,
        tables: list[Table],
        entry: Vector,
        links: NDArray[np.float64],
        leave: Vector,
        *,
        stages: int | None,
    ) -> None:
        self.combine = combine
        self.available = available
        self.tables = tables
        self.entry, self.links, self.leave = entry, links, leave
        self.stages = stages
        self.cuts = links.shape[2]
        self.row_least = [table.min(axis=1) if table.size else np.zeros(0) for table in tables]
        self.reached: dict[Counts, dict[int, Vector]] = {}
        self.value = inf
        self.end: tuple[Counts, int] | None = None
        self._buffer = np.empty((_ROWS, self.cuts))

    def solve(self, below: float, remaining: Vector) -> list[tuple[int, int, int]] | None:
        """Path (start, end, type) of least value below ``below``; None where there is none.

        Args:
            remaining: per cut, a lower bound on what is combined after it.
        """
        self.value = below
        if not remaining[0] < below:
            return None
        for counts in _by_total(self.available, min(self.stages or self.cuts - 1, self.cuts - 1)):
            for kind in range(len(counts)):
                if counts[kind] < self.available[kind]:
                    self._extend(counts, kind, remaining)
        if self.end is None:
            return None
        return self._trace(*self.end)

    def least_remaining(self) -> Vector:
        """Per cut, a lower bound on the sum after it: devices unlimited, links at their least."""
        cuts = self.cuts
        lengths = max((len(table) for table in self.tables), default=0)
        least = np.full((lengths, cuts), inf)
        for table in self.tables:
            np.minimum(least[: len(table)], table, out=least[: len(table)])
        bound = np.full(cuts, inf)
        bound[-1] = self.leave.min()
        flat, link = least.ravel(), self.links.min(axis=(0, 1))
        link[0] = self.entry.min()
        for cut in range(cuts - 2, -1, -1):
            # Segments that start here: one row down, one column right each.
            count = min(cuts - 1 - cut, lengths)
            starting = flat[cut + 1 :: cuts + 1][:count]
            if count:
                bound[cut] = link[cut] + (starting + bound[cut + 1 : cut + 1 + count]).min()
        return bound

    def _extend(self, counts: Counts, kind: int, remaining: Vector) -> None:
        """Add a stage on a device of ``kind`` to every path that used ``counts``."""
        arriving = self._arriving(counts, kind)
        table = self.tables[kind][: _last_below(self.row_least[kind], self.value)]
        if not len(table) or not np.isfinite(arriving).any():
            return
        after = self._shortest(arriving, table)
        after[~(self.combine(after, remaining) < self.value)] = inf
        used = (*counts[:kind], counts[kind] + 1, *counts[kind + 1 :])
        if not np.isfinite(after).any():
            return
        self.reached.setdefault(used, {})[kind] = after
        total = float(self.combine(after[-1], self.leave[kind]))
        if total < self.value and self.stages in (None, sum(used)):
            self.value, self.end = total, (used, kind)

    def _arriving(self, counts: Counts, kind: int) -> Vector:
        """Per cut, the least value with which its tensors reach a device of ``kind``."""
        if not any(counts):
            first = np.full(self.cuts, inf)
            first[0] = self.entry[kind]
            return first
        best = np.full(self.cuts, inf)
        for last, values in self.reached.get(counts, {}).items():
            np.minimum(best, self.combine(values, self.links[last, kind]), out=best)
        return best

    def _shortest(self, arriving: Vector, table: Table) -> Vector:
        """Per cut j, the least of ``arriving[j - n - 1]`` combined with ``table[n, j]`` over n."""
        rows = len(table)
        starts = sliding_window_view(np.concatenate([np.full(rows, inf), arriving]), self.cuts)
        starts = starts[rows - 1 :: -1]
        best = np.full(self.cuts, inf)
        for row in range(0, rows, _ROWS):
            part = table[row : row + _ROWS]
            sums = self.combine(starts[row : row + _ROWS], part, out=self._buffer[: len(part)])
            np.minimum(best, sums.min(axis=0), out=best)
        return best

    def _trace(self, counts: Counts, kind: int) -> list[tuple[int, int, int]]:
        """Walk back from the end, repeating each choice."""
        path, end = [], self.cuts - 1
        while True:
            used = counts
            counts = (*used[:kind], used[kind] - 1, *used[kind + 1 :])
            arriving = self._arriving(counts, kind)
            rows = min(end, len(self.tables[kind]))
            before = arriving[end - rows : end][::-1]
            values = self.combine(before, self.tables[kind][:rows, end])
            start = end - 1 - int(np.argmin(values))
            path.append((start, end, kind))
            if not any(counts):
                return path[::-1]
            arrivals = {
                last: float(self.combine(reached[start], self.links[last, kind, start]))
                for last, reached in self.reached[counts].items()
            }
            kind, end = min(arrivals, key=arrivals.__getitem__), start


def _by_total(available: Counts, most: int) -> Iterator[Counts]:
    """All counts up to the available ones, fewest devices first."""
    every = product(*(range(count + 1) for count in available))
    return iter(sorted((counts for counts in every if sum(counts) < most), key=sum))


def _least(*tables: Table) -> Table:
    """Element by element, the least."""
    best = tables[0]
    for table in tables[1:]:
        best = np.minimum(best, table)
    return best


def _up_to(values: Table, limited: Table, limit: float) -> Table:
    """The values, ``inf`` where what is limited exceeds the limit."""
    return values if limit == inf else np.where(limited <= limit, values, inf)


def _rows_within(periods: Table, limit: float) -> int:
    """Rows up to the last one with an entry within the limit: longer segments are all too slow."""
    within = np.flatnonzero(np.isfinite(periods).any(axis=1) & (periods.min(axis=1) <= limit))
    return int(within[-1]) + 1 if len(within) else 0


def _last_below(row_least: Vector, limit: float) -> int:
    below = np.flatnonzero(row_least < limit)
    return int(below[-1]) + 1 if len(below) else 0
