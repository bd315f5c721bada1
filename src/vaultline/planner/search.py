"""Exact search for the best contiguous partition over counted device types, with replicas.

The programme (``planner/programme.py``) finds the least latency L(b) of a partition without a stage
or link above a bottleneck b. Latency is one run of it; throughput a bisection for the least b that
has a partition. For a chunk of n frames, ``latency + (n - 1) * bottleneck``, the bottleneck is one
of finitely many candidates: the times of all stages, on one device or shared by replicas, and of
all links. L(b) falls as b rises, so a whole range of candidates, (lo, hi), is left out once
``L(hi) + (n - 1) * next(lo)`` cannot beat the best plan found; what remains is halved. No heuristic
is involved: every candidate is either tried or excluded by that bound.

The order of devices is free. Cuts are those of one topological order; others are not
searched.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from vaultline.core.errors import InputError
from vaultline.core.plan import Objective
from vaultline.planner.bands import Way
from vaultline.planner.options import Space
from vaultline.planner.problem import Problem
from vaultline.planner.programme import Path, Programme, Remaining, Run, by_start_and_end

Vector: TypeAlias = NDArray[np.float64]
#: How many devices of each type are used: so many combinations take minutes.
STATES_MAX = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A stage of a solution: blocks ``[start, end)`` on ``replicas`` devices of a type."""

    start: int
    end: int
    kind: int
    option: int
    replicas: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """The stages of a partition and what they cost."""

    stages: tuple[Placed, ...]
    latency_s: float
    bottleneck_s: float

    def chunk_s(self, frames: int) -> float:
        """Seconds for so many frames."""
        return self.latency_s + (frames - 1) * self.bottleneck_s

    def rank(self, objective: Objective, frames: int) -> tuple[float, float]:
        """What is minimised: the objective, then what decides among equals."""
        if objective == "latency":
            return (self.latency_s, self.bottleneck_s)
        if objective == "throughput":
            return (self.bottleneck_s, self.latency_s)
        return (self.chunk_s(frames), self.bottleneck_s)


def search(
    problem: Problem, objective: Objective, *, chunk_frames: int = 1, stages: int | None = None
) -> Solution | None:
    """The best partition, or None where there is none.

    Args:
        stages: use exactly so many, where given.

    Raises:
        InputError: there are too many types of devices to search all ways of using them.
    """
    _check_size(problem)
    best = None
    for space in problem.spaces:
        found = Search(problem, space, stages).best(objective, chunk_frames)
        if best is None:
            best = found
        elif found is not None:
            best = min(best, found, key=lambda each: each.rank(objective, chunk_frames))
    return best


def _check_size(problem: Problem) -> None:
    states = prod(count + 1 for count in problem.counts)
    if states > STATES_MAX:
        raise InputError(
            "there are too many different devices for an exact search",
            got=f"{sum(problem.counts)} devices of {len(problem.counts)} types, "
            f"{states} ways of using some of them",
            expected=f"at most {STATES_MAX}",
            remedy="name fewer devices, or more equal ones, which count as one type",
        )


class Search:
    """The search of one space of a problem."""

    def __init__(self, problem: Problem, space: Space, stages: int | None) -> None:
        self.problem = problem
        self.space = space
        self.programme = Programme(
            problem.counts,
            [
                [
                    Way(
                        latency_s=by_start_and_end(problem.options[kind][number].latency_s),
                        period_s=by_start_and_end(problem.options[kind][number].period_s),
                    )
                    for number in numbers
                ]
                for kind, numbers in enumerate(space.options)
            ],
            entry=problem.entry_s,
            links=problem.link_s,
            leave=problem.exit_s,
            replicas=space.replicas,
            stages=stages,
        )

    def best(self, objective: Objective, chunk_frames: int) -> Solution | None:
        """The best partition of this space, or None."""
        if objective == "latency":
            path = self.programme.least()
        elif objective == "throughput":
            path = least_bottleneck(self.programme)
        else:
            path = shortest_chunk(self.programme, chunk_frames)
        return None if path is None else self._solution(path)

    def _solution(self, path: Path) -> Solution:
        placed = tuple(
            Placed(
                start=step.start,
                end=step.end,
                kind=step.kind,
                option=self.space.options[step.kind][step.way],
                replicas=step.replicas,
            )
            for step in path.steps
        )
        return price(self.problem, placed)


def least_bottleneck(programme: Programme) -> Path | None:
    """The path of least bottleneck, and the least latency with it."""
    found = programme.least()
    if found is None:
        return None
    low_s = _impossible(programme, found.bottleneck_s)
    # First in growing steps from what is impossible, since the least is often near; then halving
    # the time, and, close to the end, the candidates.
    step_s = max(low_s, found.bottleneck_s / 64) / 64
    while (limit_s := low_s + step_s) < found.bottleneck_s:
        better = programme.least(limit_s)
        if better is not None:
            found = better
            break
        low_s, step_s = limit_s, 2 * step_s
    while found.bottleneck_s - low_s > found.bottleneck_s / 64:
        limit_s = (low_s + found.bottleneck_s) / 2
        better = programme.least(limit_s)
        low_s, found = (limit_s, found) if better is None else (low_s, better)
    candidates = programme.candidates(low_s, found.bottleneck_s)
    while len(candidates):
        middle = (len(candidates) - 1) // 2
        better = programme.least(float(candidates[middle]))
        if better is None:
            candidates = candidates[middle + 1 :]
        else:
            found = better
            candidates = candidates[candidates < found.bottleneck_s]
    return found


def _impossible(programme: Programme, high_s: float) -> float:
    """A bottleneck that no path has, close to the least that bounds on stages allow."""
    low_s = 0.0
    while high_s - low_s > high_s / 256:
        middle_s = (low_s + high_s) / 2
        if programme.may_exist(middle_s):
            high_s = middle_s
        else:
            low_s = middle_s
    return low_s


def shortest_chunk(programme: Programme, frames: int) -> Path | None:
    """The least ``latency + (frames - 1) * bottleneck``."""
    quickest = programme.least()
    if quickest is None or frames <= 1:
        return quickest
    return _ChunkSearch(programme, frames, quickest).run()


class _ChunkSearch:
    """A sweep over the candidates for the bottleneck, from the largest that may be any good down.

    A run under the largest candidate left either finds a path, whose latency all paths of lower
    bottleneck have at least, or shows that none is quick enough for a range of candidates to be
    of use. Either way the candidates that cannot win are dropped.
    """

    def __init__(self, programme: Programme, frames: int, quickest: Path) -> None:
        self.programme = programme
        self.weight = frames - 1
        self.frames = frames
        self.quickest = quickest
        self.best = quickest
        self.remaining: Remaining | None = None
        self.spent = 0

    def run(self) -> Path:
        """The best path."""
        low_s = _impossible(self.programme, self.quickest.bottleneck_s)
        self._probe_upwards(low_s)
        latency_s = self.quickest.latency_s
        candidates = self.programme.candidates(low_s, self._limit(latency_s))
        end = len(candidates)
        width_s = (self._limit(latency_s) - low_s) / 8
        while (end := min(end, int(np.searchsorted(candidates, self._limit(latency_s))))) > 0:
            top_s = float(candidates[end - 1])
            first = min(end - 1, int(np.searchsorted(candidates, top_s - width_s)))
            # A path of no less latency would not win with any candidate from the first on.
            below_s = self.value - self.weight * float(candidates[first])
            found = self._least(top_s, below_s)
            if found is None:
                end, latency_s = first, max(latency_s, below_s)
                width_s *= 2
            else:
                end, latency_s = (
                    int(np.searchsorted(candidates, found.bottleneck_s)),
                    found.latency_s,
                )
                self._offer(found)
                width_s /= 2
        return self.best

    @property
    def value(self) -> float:
        """Of the best path so far."""
        return self.best.chunk_s(self.frames)

    def _limit(self, latency_s: float) -> float:
        """The bottleneck with which a path of this latency would be as good as the best."""
        return (self.value - latency_s) / self.weight

    def _offer(self, found: Path) -> None:
        self.best = min(self.best, found, key=lambda path: path.chunk_s(self.frames))

    def _least(self, limit_s: float, below_s: float) -> Path | None:
        """A run with the bounds at hand; they are made anew when runs have cost as much."""
        if self.remaining is None or self.spent > self.remaining.work:
            self.remaining = Remaining(self.programme, limit_s)
            self.spent = 0
        run = Run(self.programme, limit_s, below_s, self.remaining)
        found = run.path()
        self.spent += run.work
        return found

    def _probe_upwards(self, low_s: float) -> None:
        """A few paths, to have a good one soon."""
        high_s = self.quickest.bottleneck_s
        step_s = max(low_s, high_s / 64) / 64
        while low_s + step_s < min(high_s, self._limit(self.quickest.latency_s)):
            found = self.programme.least(low_s + step_s)
            if found is not None:
                self._offer(found)
            step_s *= 2


def times_of(problem: Problem, stage: Placed) -> tuple[float, float]:
    """Latency of a stage, and its period with all its replicas busy."""
    option = problem.options[stage.kind][stage.option]
    at = (stage.end - stage.start - 1, stage.end)
    return float(option.latency_s[at]), float(option.period_s[at]) / stage.replicas


def hops_of(problem: Problem, stages: tuple[Placed, ...]) -> tuple[float, ...]:
    """The time of each hop, from the owner and back to it."""
    return (
        float(problem.entry_s[stages[0].kind]),
        *(float(problem.link_s[a.kind, b.kind, b.start]) for a, b in pairwise(stages)),
        float(problem.exit_s[stages[-1].kind]),
    )


def price(problem: Problem, stages: tuple[Placed, ...]) -> Solution:
    """What a partition costs, by the equations of ``cost.time``."""
    times, hops = [times_of(problem, stage) for stage in stages], hops_of(problem, stages)
    return Solution(
        stages=stages,
        latency_s=sum(alone for alone, _ in times) + sum(hops),
        bottleneck_s=max(*(period for _, period in times), *hops),
    )
