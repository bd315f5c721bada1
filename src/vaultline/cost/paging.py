"""Equations of paging: what an enclave costs that holds more than its protected memory.

    pages(i,j,d)  = ceil(W / 4 KiB) if W > C(d) else 0             swapped per frame
    paging(i,j,d) = pages(i,j,d) * page_s(d)

``W`` is the working set of the segment: its weights and the activations of a frame. ``C`` is what
the device's memory has for them: all of it but the message buffers, which are never evicted. A
frame touches each of its pages, in one order, the same for every frame: a cycle over
N = ceil(W / 4 KiB) pages through a cache of M = C / 4 KiB pages.

Why every access misses once N > M. Under LRU a page has been evicted by its next use if at least M
other pages were used in between; in a cycle N - 1 >= M are. The driver of SGX1 reclaims by a second
chance: it takes pages in the order in which they were loaded, but passes over one that was used
since it last looked, once. In a cycle a page is used when it is loaded and, while it stays, not
again: its one reprieve passes before its next use, for all pages alike, so pages go in the order
of loading, as under LRU. Hence N misses per frame, each of which evicts one page (encrypts it) and
loads another (decrypts it): that pair is one *swapped page*, and ``page_s`` is the time of both.

It is a bound for caches that recency rules: an optimal one would keep M - 1 of the pages and miss
about N - M times. Reclaiming in batches of 16 lowers M by at most 16 pages, which matters only
between N = M - 16 and M, and is left out.

A cycle is what a network is that has little besides weights: alexnet swaps N of N pages, give or
take 1 in 1,000, in 48 MiB as in 225. Pages of activations are used more than once, by one layer's
tensors after another's. Reclaim mostly finds that they have been used and spares them, so fewer
than N are swapped (squeezenet, half of it activations, N = 2,171: 1,946 in a cache of 1,489 pages,
1,715 in 1,745). Only where the cache is hardly larger than one layer's tensors are they pushed out
between two uses of a frame (2,269 in 977 pages, of which one step needs 960). It is never more than
each step's pages, each time: ``touched_pages``. From a profile N is too large besides, by up to a
half for such networks, since blocks don't say which tensors share a place.
"""

from __future__ import annotations

import math

from vaultline.core.paged import PAGE_BYTES, page_count, step_pages
from vaultline.core.program import StageProgram


def swapped_pages(working_set_bytes: float, memory_bytes: float) -> int:
    """Pages swapped per frame; none where the working set fits the protected memory."""
    if working_set_bytes <= memory_bytes:
        return 0
    return math.ceil(working_set_bytes / PAGE_BYTES)


def paging_s(working_set_bytes: float, memory_bytes: float, page_s: float) -> float:
    """Seconds per frame spent on swapping pages, each swap taking ``page_s``."""
    return swapped_pages(working_set_bytes, memory_bytes) * page_s


def working_set_pages(program: StageProgram) -> int:
    """Pages of a compiled stage that is paged: N of the equations."""
    return page_count(program.resident_bytes) + page_count(program.workspace_bytes)


def touched_pages(program: StageProgram) -> int:
    """Pages that its steps touch for one frame, each counted once for every step: no cache whatever
    its size swaps more for a frame."""
    return sum(step_pages(program))
