"""Which segments are quick enough under a limit, and how far devices can get with them.

Both are bounded with monotone tables: the least period of all segments that contain a segment
never falls as the segment grows, and the largest period of all segments within it neither. So
for each start the ends that come into question lie in one interval, found by bisection, and the
dynamic programme reads a narrow band of its tables. Nothing possible is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import inf, nextafter
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from vaultline.cost.segments import Table

#: Devices of each type.
Counts: TypeAlias = tuple[int, ...]
Indices: TypeAlias = NDArray[np.intp]
#: Starts that are combined at a time, so that the intermediate stays in the cache.
ROWS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way of running segments, by start and end cut; ``inf`` where it isn't possible."""

    latency_s: Table
    period_s: Table


class Envelopes:
    """Monotone bounds on the periods of each type.

    Attributes:
        lower: ``[type, start, end]``: the least period of any segment that contains this one.
        upper: the largest period of any segment within this one.
    """

    def __init__(self, ways: Sequence[Sequence[Way]]) -> None:
        cuts = ways[0][0].period_s.shape[0]
        self.lower = np.empty((len(ways), cuts, cuts))
        self.upper = np.empty((len(ways), cuts, cuts))
        for lower, upper, kind in zip(self.lower, self.upper, ways, strict=True):
            lower[:], upper[:] = inf, -inf
            for way in kind:
                np.minimum(lower, way.period_s, out=lower)
                np.maximum(upper, way.period_s, out=upper, where=way.period_s < inf)
            backwards = lower[:, ::-1]
            np.minimum.accumulate(backwards, axis=1, out=backwards)
            np.minimum.accumulate(lower, axis=0, out=lower)
            np.maximum.accumulate(upper, axis=1, out=upper)
            upwards = upper[::-1]
            np.maximum.accumulate(upwards, axis=0, out=upwards)


def most_within(limit: float, replicas: int) -> float:
    """The largest number that, divided by ``replicas``, is within the limit."""
    most = limit * replicas
    while most / replicas > limit:
        most = nextafter(most, -inf)
    while most < inf and nextafter(most, inf) / replicas <= limit:
        most = nextafter(most, inf)
    return most


def _ends_within(table: NDArray[np.float64], kinds: Indices, limits: Table) -> Indices:
    """Per pair of type and limit, and per start, the last end whose entry is within the limit.

    Entries must not fall along a row; the start itself stands for "none".
    """
    cuts = table.shape[1]
    starts = np.arange(cuts)[None, :]
    low = np.broadcast_to(starts, (len(kinds), cuts)).copy()
    high = np.full_like(low, cuts - 1)
    for _ in range(cuts.bit_length()):
        middle = (low + high + 1) // 2
        within = (table[kinds[:, None], starts, middle] <= limits[:, None]) & (middle > starts)
        low = np.where(within, middle, low)
        high = np.where(within, high, np.maximum(middle - 1, low))
    return low


class Bands:
    """Latencies of segments under a limit, for each type and number of replicas.

    A segment is in the band of the fewest replicas that are quick enough: more would use more
    devices and gain nothing.

    Attributes:
        pairs: (type, replicas) of all bands.
    """

    def __init__(
        self,
        ways: Sequence[Sequence[Way]],
        envelopes: Envelopes,
        counts: Counts,
        *,
        replicas: int,
        limit: float,
    ) -> None:
        self.ways = ways
        self.cuts = envelopes.lower.shape[1]
        self.counts = counts
        self.replicas = 1 if limit == inf else replicas
        self.pairs = [
            (kind, number)
            for kind, count in enumerate(counts)
            for number in range(1, min(self.replicas, count) + 1)
        ]
        kinds = np.array([kind for kind, _ in self.pairs])
        most = np.array([most_within(limit, number) for _, number in self.pairs])
        enough = np.array(
            [most_within(limit, number - 1) if number > 1 else -inf for _, number in self.pairs]
        )
        limits = zip(enough.tolist(), most.tolist(), strict=True)
        self._limits = dict(zip(self.pairs, limits, strict=True))
        far = _ends_within(envelopes.lower, kinds, most)
        near = _ends_within(envelopes.upper, kinds, enough)
        self.far = dict(zip(self.pairs, far, strict=True))
        self.near = dict(zip(self.pairs, near, strict=True))
        self._blocks: dict[tuple[int, int, int], tuple[int, Table]] = {}

    def block(self, kind: int, replicas: int, start: int) -> tuple[int, Table]:
        """Latencies of segments from ``ROWS`` starts on: the first end, and a row per start.

        Args:
            start: a multiple of ``ROWS``.
        """
        key = (kind, replicas, start)
        if key not in self._blocks:
            self._blocks[key] = self._make_block(kind, replicas, start)
        return self._blocks[key]

    def _make_block(self, kind: int, replicas: int, start: int) -> tuple[int, Table]:
        stop = min(start + ROWS, self.cuts)
        first = int(self.near[kind, replicas][start]) + 1
        last = int(self.far[kind, replicas][stop - 1])
        at = (slice(start, stop), slice(first, last + 1))
        enough, most = self._limits[kind, replicas]
        block = np.full((stop - start, max(0, last + 1 - first)), inf)
        for way in self.ways[kind]:
            periods = way.period_s[at]
            fitting = periods <= most
            if enough > -inf:
                fitting &= periods > enough
            np.minimum(block, way.latency_s[at], out=block, where=fitting)
        return first, block

    def column(self, kind: int, replicas: int, end: int) -> NDArray[np.float64]:
        """Latencies of the segments that end at a cut, by start."""
        enough, most = self._limits[kind, replicas]
        best = np.full(end, inf)
        for way in self.ways[kind]:
            periods = way.period_s[:end, end]
            fitting = (periods <= most) & (periods > enough)
            np.minimum(best, way.latency_s[:end, end], out=best, where=fitting)
        return best


class Windows:
    """Where paths can be when they have used so many devices of each type.

    Attributes:
        last: per counts used, the furthest cut that they can reach.
        first: per counts used, the nearest cut from which the other devices can finish.
    """

    def __init__(self, bands: Bands) -> None:
        counts, end = bands.counts, bands.cuts - 1
        back = {pair: _starts_reaching(far) for pair, far in bands.far.items()}
        self.last: dict[Counts, int] = {}
        backwards: dict[Counts, int] = {}
        for used in product(*(range(count + 1) for count in counts)):
            furthest, nearest = 0, end
            for kind, replicas in bands.pairs:
                before = (*used[:kind], used[kind] - replicas, *used[kind + 1 :])
                if before[kind] >= 0:
                    furthest = max(furthest, int(bands.far[kind, replicas][self.last[before]]))
                    nearest = min(nearest, int(back[kind, replicas][backwards[before]]))
            self.last[used], backwards[used] = furthest, nearest
        self.first = {
            tuple(count - other for count, other in zip(counts, used, strict=True)): cut
            for used, cut in backwards.items()
        }

    @property
    def open(self) -> bool:
        """Whether all devices together may get from the first cut to the last."""
        return min(self.first.values()) == 0


def _starts_reaching(far: Indices) -> Indices:
    """Per cut, the first start from which a segment reaches it; itself where none does."""
    return np.minimum(np.searchsorted(far, np.arange(len(far))), np.arange(len(far)))
