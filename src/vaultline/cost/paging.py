"""Equations of paging: what an enclave costs that holds more than its protected memory.

    pages(i,j,d)  = ceil(W / 4 KiB) if W > memory(d) else 0        swapped per frame
    paging(i,j,d) = pages(i,j,d) * page_s(d)

``W`` is the working set of the segment: its weights, the activations of a frame and its input and
output. A frame touches each of its pages, in one order, the same for every frame: a cycle over
N = ceil(W / 4 KiB) pages through a cache of M pages.

Why every access misses once N > M. Under LRU a page has been evicted by its next use if at least M
other pages were used in between; in a cycle N - 1 >= M are. The driver of SGX1 reclaims by a second
chance: it takes pages in the order in which they were loaded, but passes over one that was used
since it last looked, once. In a cycle a page is used when it is loaded and, while it stays, not
again: its one reprieve passes before its next use, for all pages alike, so pages go in the order
of loading, as under LRU. Hence N misses per frame, each of which evicts one page (encrypts it) and
loads another (decrypts it): that pair is one *swapped page*, and ``page_s`` is the time of both.

It is a bound for caches that recency rules: an optimal one would keep M - 1 of the pages and miss
about N - M times. Reading a page more than once per frame adds no misses: the uses of a layer lie
together. Reclaiming in batches of 16 lowers M by at most 16 pages, which matters only between
N = M - 16 and M, and is left out.
"""

from __future__ import annotations

import math

PAGE_BYTES = 4096


def swapped_pages(working_set_bytes: float, memory_bytes: float) -> int:
    """Pages swapped per frame; none where the working set fits the protected memory."""
    if working_set_bytes <= memory_bytes:
        return 0
    return math.ceil(working_set_bytes / PAGE_BYTES)


def paging_s(working_set_bytes: float, memory_bytes: float, page_s: float) -> float:
    """Seconds per frame spent on swapping pages, each swap taking ``page_s``."""
    return swapped_pages(working_set_bytes, memory_bytes) * page_s
