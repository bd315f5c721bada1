"""Which tensors are alive where, of one frame: tables over the cuts and blocks of a profile.

A tensor that block a makes and block b is the last to read crosses the cuts from a + 1 to b; cut k
lies before block k.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vaultline.core.profile import Held, ModelProfile

Bytes = NDArray[np.int64]


class Alive:
    """Bytes of the tensors between blocks.

    Tables have a row for each first cut of a step. Those whose layout is the engine's own are
    *relaid*: at a stage's ends there is a copy of them beside the message.

    Attributes:
        crossing: per cut, alive there; relaid: of these, the relaid ones.
        made: ``[k, l]``: alive at cut l, made from cut k on; made_relaid: the relaid ones.
        extra: per cut, what messages there hold beyond the relaid tensors, if there are any: where
            the engine moves work across a cut, a stage that ends there holds other tensors.
        skipping: per cut, the largest relaid tensor that crosses it, if several do or if one is
            read beyond the next block too; else zero. In a stage that begins there, sums with it
            are taken in its message's layout, and so are all later ones: there are copies of each.
        inner: ``[k, l]``: most that is alive at once while one frame runs from cut k to cut l, of
            what is made there, without what is alive at cut l.
        inner_last: the same with the relaid ones of those.
        inner_first, inner_whole: the same two, of a stage's first step: it also holds copies of
            what it receives.
    """

    def __init__(self, profile: ModelProfile) -> None:
        blocks, held = len(profile.blocks), profile.held
        relaid = [each for each in held if each.relaid]
        self.made, alive = _tables(held, blocks)
        self.made_relaid, alive_relaid = _tables(relaid, blocks)
        self.crossing, self.relaid = (_crossing(each, blocks) for each in (held, relaid))
        messages = np.array(profile.crossing_bytes, dtype=np.int64)
        self.extra = np.where(self.relaid > 0, np.maximum(messages - self.relaid, 0), 0)
        self.skipping = _skipping(relaid, blocks)
        own = np.array([block.activation_bytes for block in profile.blocks], dtype=np.int64)
        received = alive_relaid[0] - alive_relaid
        self.inner, self.inner_last = self._inner(own + alive, 0)
        passed = self.relaid - self.made_relaid
        self.inner_first, self.inner_whole = self._inner(own + alive + received, passed)

    def _inner(self, running: Bytes, passed: Bytes | int) -> tuple[Bytes, Bytes]:
        """From what is alive while each block runs, by first cut: the two kinds of peak.

        Args:
            passed: besides what is made, alive at each last cut.
        """
        blocks = running.shape[1]
        rows = np.arange(blocks + 1)[:, None]
        running = np.where(np.arange(blocks) >= rows, running, 0)
        most = np.maximum.accumulate(running, axis=1)
        before = np.zeros((blocks + 1, blocks + 1), np.int64)
        before[:, 2:] = most[:, :-1]
        last = np.zeros_like(before)
        last[:, 1:] = running
        ends = self.made + passed
        plain = self.made - self.made_relaid
        return np.maximum(before, last - ends), np.maximum(before, last - plain)


def _tables(held: Sequence[Held], blocks: int) -> tuple[Bytes, Bytes]:
    """Bytes made from each cut on that are alive at each cut, and while each block runs."""
    at_cut = np.zeros((blocks + 1, blocks + 1), np.int64)
    in_block = np.zeros((blocks + 1, blocks), np.int64)
    for each in held:
        at_cut[each.first, each.first + 1 : each.last + 1] += each.nbytes
        in_block[each.first, each.first : each.last + 1] += each.nbytes
    for table in (at_cut, in_block):
        upwards = table[::-1]
        np.add.accumulate(upwards, axis=0, out=upwards)
    return at_cut, in_block


def _skipping(relaid: Sequence[Held], blocks: int) -> Bytes:
    """Per cut, the largest tensor that crosses it, unless it is the only one and read at once."""
    count = np.zeros(blocks + 1, np.int64)
    largest, beyond = np.zeros_like(count), np.zeros(blocks + 1, dtype=bool)
    for each in relaid:
        cuts = slice(each.first + 1, each.last + 1)
        count[cuts] += 1
        beyond[each.first + 1 : each.last] = True
        largest[cuts] = np.maximum(largest[cuts], each.nbytes)
    return np.where((count > 1) | beyond, largest, 0)


def _crossing(held: Sequence[Held], blocks: int) -> Bytes:
    change = np.zeros(blocks + 2, np.int64)
    for each in held:
        change[each.first + 1] += each.nbytes
        change[each.last + 1] -= each.nbytes
    return np.add.accumulate(change)[:-1]
