"""Paging: the equation against a page cache that is played through."""

from __future__ import annotations

from collections import OrderedDict

import pytest

from vaultline.cost.paging import PAGE_BYTES, paging_s, swapped_pages

PAGES = {
    "nothing is swapped while everything fits": (8, 8, 0),
    "one page too many swaps all of them": (9, 8, 9),
    "much too many swap all of them": (30, 8, 30),
    "one page in a cache of one stays": (1, 1, 0),
}


def lru_misses(pages: int, cache: int, rounds: int) -> list[int]:
    """Misses of each round over the pages, in order, under LRU."""
    held: OrderedDict[int, None] = OrderedDict()
    found = []
    for _ in range(rounds):
        misses = 0
        for page in range(pages):
            misses += page not in held
            held[page] = None
            held.move_to_end(page)
            if len(held) > cache:
                held.popitem(last=False)
        found.append(misses)
    return found


def second_chance_misses(pages: int, cache: int, rounds: int) -> list[int]:
    """The same under a second chance: the oldest page goes, but one that was used goes round."""
    held: OrderedDict[int, bool] = OrderedDict()
    found = []
    for _ in range(rounds):
        misses = 0
        for page in range(pages):
            if page not in held:
                misses += 1
                while len(held) >= cache:
                    oldest, used = held.popitem(last=False)
                    if used:
                        held[oldest] = False
            held[page] = True
        found.append(misses)
    return found


@pytest.mark.parametrize("pages, cache, swapped", PAGES.values(), ids=PAGES.keys())
def test_pages_swapped_per_frame(pages: int, cache: int, swapped: int) -> None:
    assert swapped_pages(pages * PAGE_BYTES, cache * PAGE_BYTES) == swapped
    assert lru_misses(pages, cache, 4)[1:] == [swapped] * 3
    assert second_chance_misses(pages, cache, 4)[1:] == [swapped] * 3


def test_a_page_that_is_used_in_part_counts() -> None:
    assert swapped_pages(2 * PAGE_BYTES + 1, PAGE_BYTES) == 3


def test_paging_time_is_pages_times_cost() -> None:
    assert paging_s(10 * PAGE_BYTES, PAGE_BYTES, 1e-6) == pytest.approx(1e-5)
    assert paging_s(PAGE_BYTES, PAGE_BYTES, 1e-6) == 0.0
