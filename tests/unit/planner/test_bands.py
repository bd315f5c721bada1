"""The bounds of the search leave nothing out."""

from __future__ import annotations

from itertools import product
from math import inf, isfinite, nextafter
from random import Random

import numpy as np
import pytest

from vaultline.planner.bands import ROWS, Bands, Envelopes, Way, Windows, most_within

CUTS = 2 * ROWS + 7


def ways(rng: Random) -> list[Way]:
    """Times that mostly, but not always, grow with the segment; some are impossible."""
    found = []
    for _ in range(rng.randint(1, 2)):
        latency, period = (np.full((CUTS, CUTS), inf) for _ in range(2))
        for start in range(CUTS):
            for end in range(start + 1, CUTS):
                if rng.random() < 0.9:
                    latency[start, end] = (end - start) * (0.5 + rng.random())
                    period[start, end] = latency[start, end] * rng.choice([0.5, 1.0])
        found.append(Way(latency_s=latency, period_s=period))
    return found


@pytest.mark.parametrize("seed", range(6))
def test_a_band_holds_each_segment_at_the_fewest_replicas_that_are_quick_enough(seed: int) -> None:
    rng = Random(seed)
    kinds = [ways(rng) for _ in range(2)]
    limit = rng.choice([0.2, 3.0, 10.0, 30.0])
    bands = Bands(kinds, Envelopes(kinds), (3, 1), replicas=3, limit=limit)
    assert bands.pairs == [(0, 1), (0, 2), (0, 3), (1, 1)]
    for kind, replicas in bands.pairs:
        wanted = np.full((CUTS, CUTS), inf)
        for way in kinds[kind]:
            fits = way.period_s / replicas <= limit
            if replicas > 1:
                fits &= way.period_s / (replicas - 1) > limit
            wanted = np.minimum(wanted, np.where(fits, way.latency_s, inf))
        found = np.full((CUTS, CUTS), inf)
        for start in range(0, CUTS, ROWS):
            first, block = bands.block(kind, replicas, start)
            found[start : start + ROWS, first : first + block.shape[1]] = block
        assert (found == wanted).all()
        for end in range(CUTS):
            assert (bands.column(kind, replicas, end) == wanted[:end, end]).all()


@pytest.mark.parametrize("seed", range(6))
def test_no_path_is_outside_its_window(seed: int) -> None:
    rng = Random(seed)
    kinds = [ways(rng) for _ in range(2)]
    counts = (2, 1)
    limit = rng.choice([10.0, 20.0, 40.0])
    bands = Bands(kinds, Envelopes(kinds), counts, replicas=2, limit=limit)
    windows = Windows(bands)
    reached = {counts: {CUTS - 1}}
    # Backwards from the end: the cuts from which devices finish, by what has been used before.
    for used in sorted(product(range(3), range(2)), key=sum, reverse=True):
        cuts = reached.setdefault(used, set())
        assert all(windows.first[used] <= cut for cut in cuts)
        cuts.add(CUTS - 1)
        for kind, replicas in bands.pairs:
            before = tuple(n - replicas * (k == kind) for k, n in enumerate(used))
            if min(before) >= 0:
                for end in cuts:
                    starts = np.flatnonzero(np.isfinite(bands.column(kind, replicas, end)))
                    reached.setdefault(before, set()).update(map(int, starts))
    assert windows.open or 0 not in reached[0, 0]


@pytest.mark.parametrize("replicas", [1, 2, 3, 5, 7, 16])
def test_the_largest_number_within_a_limit_is_exact(replicas: int) -> None:
    rng = Random(replicas)
    for _ in range(200):
        limit = rng.random() * 10.0 ** rng.randint(-12, 6)
        most = most_within(limit, replicas)
        assert most / replicas <= limit < nextafter(most, inf) / replicas
    assert most_within(inf, replicas) == inf
    assert isfinite(most_within(0.0, replicas))
