"""The dynamic programme: least latency of a partition none of whose parts takes too long.

States are (how many devices of each type are used, type of the last stage, cut). A path grows by a
stage that takes r devices of one type at once: its latency is the stage's, its period an r-th of
it. A stage that is quick enough on fewer devices is not offered on more: it would gain nothing.

Three bounds keep it small, and none of them excludes a path that could be the best: segments are
read in bands (``planner/bands.py``); a path that has used certain devices must be where they can
have got and from where the others can finish; and what follows costs at least what it would cost
under a higher limit (``Remaining``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from math import inf
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from vaultline.core.limits import STAGES_MAX
from vaultline.core.plan import WORKERS_MAX
from vaultline.cost.segments import Table
from vaultline.planner.bands import ROWS, Bands, Counts, Envelopes, Way, Windows

#: Devices used of each type, then the number of stages where that is limited (else 0).
State: TypeAlias = tuple[int, ...]
Vector: TypeAlias = NDArray[np.float64]


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


def by_start_and_end(table: Table) -> Table:
    """A table by length and end (see ``cost.segments``) as one by start and end."""
    blocks, cuts = table.shape
    square = np.full((cuts, cuts), inf)
    flat = np.ascontiguousarray(table).ravel()
    for start in range(blocks):
        square[start, start + 1 :] = flat[start + 1 :: cuts + 1][: blocks - start]
    return square


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
        counts: Counts,
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
        self.envelopes = Envelopes(ways)
        #: Stages are counted only where their number matters.
        self.counted = stages is not None or min(sum(counts), self.cuts - 1) > STAGES_MAX
        self.stages_max = min(stages or STAGES_MAX, self.cuts - 1)

    def least(
        self, limit: float = inf, below: float = inf, remaining: Remaining | None = None
    ) -> Path | None:
        """The path of least latency below ``below`` with no stage or link above ``limit``.

        Args:
            remaining: made of this programme under a limit that is no lower.
        """
        return Run(self, limit, below, remaining).path()

    def bands(self, limit: float) -> Bands:
        """The segments that are quick enough."""
        return Bands(self.ways, self.envelopes, self.counts, replicas=self.replicas, limit=limit)

    def may_exist(self, limit: float) -> bool:
        """False only if no path has all its stages within the limit."""
        return Windows(self.bands(limit)).open

    @cached_property
    def least_remaining(self) -> Vector:
        """Per cut, a lower bound on what follows a hop to it: devices unlimited, links least."""
        last = self.cuts - 1
        least = np.full((self.cuts, self.cuts), inf)
        for way in (way for kind in self.ways for way in kind):
            np.minimum(least, way.latency_s, out=least)
        link = self.links.min(axis=(0, 1))
        bound = np.full(self.cuts, inf)
        # What follows the stage that ends at each cut.
        after = np.full(self.cuts, inf)
        after[last] = self.leave.min()
        for start in range(last - 1, -1, -1):
            bound[start] = (least[start, start + 1 :] + after[start + 1 :]).min()
            after[start] = link[start] + bound[start]
        return bound

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

    def priced(self, found: list[tuple[int, int, int, int]], limit: float) -> Path:
        """The path of the given (start, end, type, replicas), and what it costs."""
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


class _Limited:
    """What forward and backward runs under one limit share."""

    def __init__(self, programme: Programme, limit: float) -> None:
        self.programme = programme
        self.limit = limit
        self.cuts = programme.cuts
        #: Blocks combined so far.
        self.work = 0
        self.entry, self.links, self.leave = (
            np.where(times <= limit, times, inf)
            for times in (programme.entry, programme.links, programme.leave)
        )
        self.bands = programme.bands(limit)
        self.windows = Windows(self.bands)
        self._buffer = np.empty((ROWS, self.cuts))

    def most(self, kind: int, left: int) -> int:
        """Devices of a type that one more stage can take."""
        return min(self.bands.replicas, left)


class Remaining(_Limited):
    """What a path still costs at least, under a limit: exact but for the number of stages.

    ``[left][kind]`` holds, per cut where a stage on ``kind`` may start when the devices ``left``
    are free (its own among them), the least latency of that stage and all after it.
    """

    def __init__(self, programme: Programme, limit: float) -> None:
        super().__init__(programme, limit)
        self.values: dict[Counts, dict[int, Vector]] = {}
        counts = programme.counts
        for left in sorted(product(*(range(count + 1) for count in counts)), key=sum):
            used = tuple(count - free for count, free in zip(counts, left, strict=True))
            window = (self.windows.first[used], self.windows.last[used])
            self.values[left] = {
                kind: self._from(left, kind, window) for kind, free in enumerate(left) if free
            }

    def bound(self, left: Counts, kind: int) -> Vector:
        """See the class."""
        return self.values[left][kind]

    @property
    def least_s(self) -> float:
        """The least latency of a whole path under the limit."""
        whole = self.values[self.programme.counts]
        return min(float(self.entry[kind] + values[0]) for kind, values in whole.items())

    def _from(self, left: Counts, kind: int, window: tuple[int, int]) -> Vector:
        best = np.full(self.cuts, inf)
        first, last = window
        if first > last:
            return best
        for replicas in range(1, self.most(kind, left[kind]) + 1):
            rest = (*left[:kind], left[kind] - replicas, *left[kind + 1 :])
            after = self._after(rest, kind)
            for start in range(first - first % ROWS, last + 1, ROWS):
                column, block = self.bands.block(kind, replicas, start)
                if not block.shape[1]:
                    continue
                sums = np.add(
                    block,
                    after[None, column : column + block.shape[1]],
                    out=self._buffer[: len(block), : block.shape[1]],
                )
                self.work += 1
                part = best[start : start + ROWS]
                np.minimum(part, sums.min(axis=1), out=part)
        return best

    def _after(self, left: Counts, kind: int) -> Vector:
        """Per end of a stage on ``kind``, the least that follows it."""
        best = np.full(self.cuts, inf)
        best[-1] = self.leave[kind]
        for following, values in self.values[left].items():
            np.minimum(best, self.links[kind, following] + values, out=best)
        return best


class Run(_Limited):
    """One forward run of a programme under one limit."""

    def __init__(
        self, programme: Programme, limit: float, below: float, remaining: Remaining | None
    ) -> None:
        super().__init__(programme, limit)
        self.value = below
        self.remaining = remaining
        self.end: tuple[State, int] | None = None
        self.reached: dict[State, dict[int, Vector]] = {}

    def path(self) -> Path | None:
        """The best path, or None."""
        if not self.windows.open:
            return None
        for state in self._states():
            for kind, available in enumerate(self.programme.counts):
                if state[kind] < available and (state in self.reached or not any(state)):
                    self._extend(state, kind)
        if self.end is None:
            return None
        return self.programme.priced(self._trace(*self.end), self.limit)

    def _states(self) -> Iterator[State]:
        programme = self.programme
        ranges = [range(count + 1) for count in programme.counts]
        numbers = range(programme.stages_max) if programme.counted else range(1)
        for state in sorted(product(*ranges, numbers), key=sum):
            if sum(state[:-1]) < WORKERS_MAX:
                yield state

    def _extend(self, state: State, kind: int) -> None:
        """Add a stage on devices of ``kind`` to every path that reached ``state``."""
        used = state[:-1]
        arriving = self._arriving(state, kind)
        arriving[~(arriving + self._bound(used, kind) < self.value)] = inf
        finite = np.flatnonzero(arriving < inf)
        if not len(finite):
            return
        for replicas in range(1, self.most(kind, self.programme.counts[kind] - used[kind]) + 1):
            after_state = self._after(state, kind, replicas)
            window = (self.windows.first[after_state[:-1]], self.windows.last[after_state[:-1]])
            if sum(after_state[:-1]) > WORKERS_MAX:
                return
            if window[0] > window[1]:
                continue
            after = self._shortest(arriving, (kind, replicas), finite, window)
            known = self.reached.setdefault(after_state, {})
            known[kind] = np.minimum(known[kind], after) if kind in known else after
            total = float(after[-1] + self.leave[kind])
            if total < self.value and self.programme.stages in (None, after_state[-1]):
                self.value, self.end = total, (after_state, kind)

    def _bound(self, used: Counts, kind: int) -> Vector:
        if self.remaining is None:
            return self.programme.least_remaining
        counts = self.programme.counts
        left = tuple(count - taken for count, taken in zip(counts, used, strict=True))
        return self.remaining.bound(left, kind)

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

    def _shortest(
        self,
        arriving: Vector,
        pair: tuple[int, int],
        finite: NDArray[np.intp],
        window: tuple[int, int],
    ) -> Vector:
        """Per end within the window, the least of arriving at a start and a segment from it."""
        best = np.full(self.cuts, inf)
        begin, stop = int(finite[0]), int(finite[-1]) + 1
        for block_start in range(begin - begin % ROWS, stop, ROWS):
            first, block = self.bands.block(*pair, block_start)
            low = max(first, window[0], begin + 1)
            high = min(first + block.shape[1], window[1] + 1)
            if low >= high:
                continue
            self.work += 1
            top, bottom = max(begin, block_start), min(stop, block_start + ROWS, high)
            part = block[top - block_start : bottom - block_start, low - first : high - first]
            sums = np.add(
                arriving[top:bottom, None], part, out=self._buffer[: len(part), : high - low]
            )
            np.minimum(best[low:high], sums.min(axis=0), out=best[low:high])
        return best

    def _trace(self, used: State, kind: int) -> list[tuple[int, int, int, int]]:
        """Walk back from the end, repeating each choice."""
        path, end = [], self.cuts - 1
        while True:
            _, start, replicas = min(self._choices(used, kind, end), key=lambda choice: choice[0])
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
        for replicas in range(1, self.most(kind, used[kind]) + 1):
            before = self._before(used, kind, replicas)
            if before[-1] >= 0:
                values = self._arriving(before, kind)[:end]
                values = values + self.bands.column(kind, replicas, end)
                start = int(np.argmin(values))
                yield float(values[start]), start, replicas
