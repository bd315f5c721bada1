"""What swapping a page of protected memory costs: measured here, and as published for SGX1."""

from __future__ import annotations

from dataclasses import dataclass

from vaultline.core.paged import PAGE_BYTES, SGX1_PAGE_S
from vaultline.core.program import PageMode
from vaultline.enclave.simulated_epc import PageCache

#: Protected pages while measuring; the region is so many times as large. Together with the pages
#: outside they are more than a processor's second-level cache holds, as those of networks are.
_CACHE_PAGES = 2048
_TIMES_LARGER = 4
#: Pages that are touched at a time: a weight of 256 KiB.
_TOUCHED_PAGES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PageCost:
    """Seconds per swapped page, by the simulated page cache's own account.

    Attributes:
        cipher_s: one page encrypted and one decrypted: a lower bound of paging anywhere.
        bookkeeping_s: the simulation's own, in the interpreter: no part of what is simulated.
    """

    cipher_s: float
    bookkeeping_s: float


def page_costs() -> dict[PageMode, float]:
    """Seconds per swapped page: only the cipher's work (a lower bound), and that of SGX1."""
    return {"crypto": measure_page().cipher_s, "sgx1": SGX1_PAGE_S}


def measure_page(*, rounds: int = 3) -> PageCost:
    """Swap every page of a region several times over, in order, as a network's weights are; the
    round in which the cipher took least time counts.

    Args:
        rounds: how often each page is swapped, after each has been used once.
    """
    pages = PageCache(_CACHE_PAGES)
    region = pages.region(_CACHE_PAGES * _TIMES_LARGER * PAGE_BYTES)
    step = _TOUCHED_PAGES * PAGE_BYTES
    costs = []
    for _ in range(1 + rounds):
        swapped, before = pages.counts.swapped, (pages.times.cipher_s, pages.times.bookkeeping_s)
        for first in range(0, len(region.data), step):
            pages.touch(region, first, first + step - 1)
        count = max(1, pages.counts.swapped - swapped)
        costs.append(
            PageCost(
                cipher_s=(pages.times.cipher_s - before[0]) / count,
                bookkeeping_s=(pages.times.bookkeeping_s - before[1]) / count,
            )
        )
    return min(costs[1:], key=lambda cost: cost.cipher_s)
