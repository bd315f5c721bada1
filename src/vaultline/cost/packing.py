"""Buffers that live at different times, laid out in one block of memory.

Offline dynamic storage allocation: greedy by size is what inference engines use for it
(Y. Pisarchyk and J. Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020). It is
tried in three orders; where that wastes memory, what ended highest is placed earlier (D. Joslin and
D. Clements, "Squeaky Wheel Optimization", 1999).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
#: Buffers that are placed, over all attempts: about 0.1 s.
_PLACED_MAX = 6_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetime:
    """A buffer that is needed from moment ``first`` to moment ``last``, both included."""

    size_bytes: int
    first: int
    last: int


def peak_bytes(buffers: Sequence[Lifetime]) -> int:
    """The most bytes needed at any moment: no layout takes less."""
    if not buffers:
        return 0
    change = np.zeros(max(each.last for each in buffers) + 2, np.int64)
    for each in buffers:
        change[each.first] += each.size_bytes
        change[each.last + 1] -= each.size_bytes
    return int(np.cumsum(change).max())


def pack(buffers: Sequence[Lifetime]) -> tuple[tuple[int, ...], int]:
    """Offsets such that buffers alive at one moment don't overlap, and the bytes of the block."""
    if not buffers:
        return (), 0
    least = peak_bytes(buffers)
    sizes = np.array([each.size_bytes for each in buffers], np.int64)
    first, last = np.array([(each.first, each.last) for each in buffers], np.int64).T
    meeting = [
        np.flatnonzero((first <= each.last) & (last >= each.first)).astype(np.int64)
        for each in buffers
    ]
    found: list[tuple[int, tuple[int, ...], list[int]]] = []
    keys: tuple[Callable[[Lifetime], tuple[int, ...]], ...] = (
        lambda each: (-each.size_bytes, each.first),
        lambda each: (each.first - each.last, -each.size_bytes),
        lambda each: (each.first, -each.size_bytes),
    )
    for key in keys:
        order = sorted(range(len(buffers)), key=lambda k: key(buffers[k]))
        offsets, block = _packed(sizes, meeting, order)
        if block == least:
            return offsets, block
        found.append((block, offsets, order))
    rounds = max(_PLACED_MAX // len(buffers) // len(found), 1)
    results = [_improved(sizes, meeting, each, least, rounds) for each in found]
    block, offsets = min(results, key=lambda each: each[0])
    return offsets, block


def _improved(
    sizes: Ints,
    meeting: Sequence[Ints],
    start: tuple[int, tuple[int, ...], list[int]],
    least: int,
    rounds: int,
) -> tuple[int, tuple[int, ...]]:
    """Whatever ends highest is placed first the next time ("squeaky wheel" optimization)."""
    block, offsets, order = start
    best = (block, offsets)
    order = list(order)
    for _ in range(rounds):
        highest = max(order, key=lambda k: offsets[k] + int(sizes[k]))
        order.remove(highest)
        order.insert(0, highest)
        offsets, block = _packed(sizes, meeting, order)
        if block < best[0]:
            best = (block, offsets)
        if block == least:
            break
    return best


def _packed(
    sizes: Ints, meeting: Sequence[Ints], order: Sequence[int]
) -> tuple[tuple[int, ...], int]:
    """Each in turn at the lowest offset that is free for all of its life."""
    offsets = np.full(len(sizes), -1, np.int64)
    ends = np.zeros(len(sizes), np.int64)
    for index in order:
        near = meeting[index]
        near = near[offsets[near] >= 0]
        near = near[offsets[near].argsort(kind="stable")]
        # Where each gap starts: at the end of all that begin before it.
        starts = np.zeros(len(near) + 1, np.int64)
        np.maximum.accumulate(ends[near], out=starts[1:])
        wide = offsets[near] - starts[:-1] >= sizes[index]
        start = starts[int(wide.argmax())] if wide.any() else starts[-1]
        offsets[index], ends[index] = start, start + sizes[index]
    return tuple(offsets.tolist()), int(ends.max(initial=0))
