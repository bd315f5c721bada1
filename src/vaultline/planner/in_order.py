"""Contiguous parts over devices in a fixed order: the space of Neurosurgeon and Serdab.

Written apart from the search, which orders devices freely, and simply: for up to 8 devices and 100
cuts it takes less than a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np
from numpy.typing import NDArray

from vaultline.core.cluster import Device
from vaultline.cost.segments import Table
from vaultline.planner.priced import kind_of, ways
from vaultline.planner.problem import Problem
from vaultline.planner.search import Placed, Solution, price, times_of

Vector = NDArray[np.float64]


class InOrder:
    """A programme over (last device used, cut); a device may get no part.

    Every subsequence of the listed devices competes, so every prefix of the list does too.
    """

    def __init__(self, problem: Problem, units: Sequence[Device]) -> None:
        self.problem = problem
        self.units = units
        self.kinds = [kind_of(problem, unit) for unit in units]
        self.cuts = problem.segments.blocks + 1
        # Per type, (latency, period) of blocks [i, j) at [i, j], for each way of running them.
        self.times = {
            kind: [
                (_by_ends(option.latency_s), _by_ends(option.period_s))
                for option in problem.options[kind]
            ]
            for kind in set(self.kinds)
        }

    def least_latency(self, below_s: float = inf) -> tuple[Solution, list[Device]] | None:
        """The least latency with every stage and link shorter than ``below_s``."""
        problem = self.problem
        links = _below(problem.link_s, below_s)
        entry, leave = _below(problem.entry_s, below_s), _below(problem.exit_s, below_s)
        spans = {kind: self._spans(kind, below_s) for kind in set(self.kinds)}
        # sources[d][b, i]: the least latency at which cut i reaches device d from device b, and
        # from the owner where b is d; reached[d][j]: at which d is done with everything before j.
        sources: list[Vector] = []
        reached: list[Vector] = []
        for number, kind in enumerate(self.kinds):
            found = np.full((number + 1, self.cuts), inf)
            for before in range(number):
                found[before] = reached[before] + links[self.kinds[before], kind]
            found[number, 0] = entry[kind]
            sources.append(found)
            reached.append((found.min(axis=0)[:, None] + spans[kind]).min(axis=0))
        totals = [values[-1] + leave[k] for k, values in zip(self.kinds, reached, strict=True)]
        last = int(np.argmin(totals))
        if not np.isfinite(totals[last]):
            return None
        return self._walk_back(last, sources, spans, below_s)

    def shortest_chunk(self, frames: int) -> tuple[Solution, list[Device]] | None:
        """The least ``latency + (frames - 1) * bottleneck``.

        Down the frontier from the least latency: each next plan has the least latency of all with a
        shorter bottleneck, until there is none. What the walk passes over is no better in either.
        """
        best, found = None, self.least_latency()
        while found is not None:
            if best is None or found[0].chunk_s(frames) < best[0].chunk_s(frames):
                best = found
            found = self.least_latency(found[0].bottleneck_s)
        return best

    def _spans(self, kind: int, below_s: float) -> Vector:
        """Seconds of blocks ``[i, j)`` at ``[i, j]``, by the quickest way with a short period."""
        best = np.full((self.cuts, self.cuts), inf)
        for latency_s, period_s in self.times[kind]:
            np.minimum(best, np.where(period_s < below_s, latency_s, inf), out=best)
        return best

    def _walk_back(
        self, last: int, sources: Sequence[Vector], spans: dict[int, Vector], below_s: float
    ) -> tuple[Solution, list[Device]]:
        """Repeat the choices that led to the end on device ``last``."""
        stages: list[Placed] = []
        used: list[Device] = []
        device, end = last, self.cuts - 1
        while True:
            totals = sources[device] + spans[self.kinds[device]][:, end]
            before, start = divmod(int(np.argmin(totals.ravel())), self.cuts)
            every = ways(self.problem, self.units[device], start, end)
            within = [way for way in every if times_of(self.problem, way)[1] < below_s]
            stages.insert(0, min(within, key=lambda way: times_of(self.problem, way)))
            used.insert(0, self.units[device])
            if before == device:
                return price(self.problem, tuple(stages)), used
            device, end = before, start


def _by_ends(table: Table) -> Vector:
    """A table of (length, end) as one of (start, end), ``inf`` where nothing lies between."""
    lengths, cuts = table.shape
    matrix = np.full((cuts, cuts), inf)
    for row in range(lengths):
        ends = np.arange(row + 1, cuts)
        matrix[ends - row - 1, ends] = table[row, ends]
    return matrix


def _below(values: Vector, limit_s: float) -> Vector:
    return np.where(values < limit_s, values, inf)
