"""Who exchanges frames with whom."""

from __future__ import annotations

from itertools import product

import pytest

from vaultline.core.limits import REPLICAS_MAX
from vaultline.core.replicas import neighbours


@pytest.mark.parametrize("own", range(1, REPLICAS_MAX + 1))
def test_neighbours_are_exactly_those_that_some_frame_goes_between(own: int) -> None:
    for others in range(1, REPLICAS_MAX + 1):
        seen = {(n % own, n % others) for n in range(own * others)}
        told = {(i, k) for i in range(own) for k in neighbours(i, own, others)}
        assert told == seen


def test_both_sides_agree() -> None:
    counts = range(1, REPLICAS_MAX + 1)
    for own, others in product(counts, counts):
        for index in range(own):
            for other in neighbours(index, own, others):
                assert index in neighbours(other, others, own)


#: (own, others) -> neighbours of replica 0 and of the last one.
CASES = {
    (1, 3): ([0, 1, 2], [0, 1, 2]),
    (3, 1): ([0], [0]),
    (2, 2): ([0], [1]),
    (2, 3): ([0, 1, 2], [0, 1, 2]),
    (2, 4): ([0, 2], [1, 3]),
    (4, 2): ([0], [1]),
    (16, 16): ([0], [15]),
}


@pytest.mark.parametrize("counts", CASES)
def test_pairs_that_no_frame_goes_between_are_not_connected(counts: tuple[int, int]) -> None:
    own, others = counts
    first, last = CASES[counts]
    assert list(neighbours(0, own, others)) == first
    assert list(neighbours(own - 1, own, others)) == last
