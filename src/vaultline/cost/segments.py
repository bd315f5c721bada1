"""Tables over all segments of a profile.

A table has a row per length and a column per end: entry ``[n, j]`` belongs to the segment of
``n + 1`` blocks that ends at candidate cut ``j``, so it starts at cut ``j - n - 1``. In this layout
a sum or maximum over the blocks of every segment is one accumulation down the rows (no differences
of prefix sums, so no cancellation), and the search reads contiguous memory. Entries that would
start before the first cut mean nothing: ``valid`` tells them apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from vaultline.core.profile import ModelProfile
from vaultline.cost.memory import step_bytes

Table = NDArray[np.float64]


def shifted(values: NDArray[np.float64], lengths: int, fill: float) -> Table:
    """Table whose entry ``[n, j]`` is ``values[j - n - 1]``: a view, not a copy.

    Args:
        values: one per cut.
        lengths: rows of the table.
        fill: where a segment would start before the first cut.
    """
    padded = np.concatenate([np.full(lengths, fill), values])
    return sliding_window_view(padded, len(values))[lengths - 1 :: -1]


class Segments:
    """Sums, maxima and end points of every segment of a profile, as tables."""

    def __init__(self, profile: ModelProfile) -> None:
        self.profile = profile
        self.blocks = len(profile.blocks)
        blocks = profile.blocks
        self.valid = np.isfinite(shifted(np.zeros(self.blocks + 1), self.blocks, np.inf))
        self.weight_bytes = self._sum([block.weight_bytes for block in blocks])
        self.activation_bytes = self._max([block.activation_bytes for block in blocks])
        self.scratch_bytes = self._max([block.scratch_bytes for block in blocks])
        self.largest_weight_bytes = self._max([block.largest_weight_bytes for block in blocks])
        crossing = np.array(profile.crossing_bytes, dtype=np.float64)
        self.in_bytes = shifted(crossing, self.blocks, 0.0)
        self.out_bytes = np.broadcast_to(crossing, self.in_bytes.shape)

    def compute_s(self, frames: int) -> Table:
        """Seconds of a pass of ``frames`` frames through each segment."""
        return self._sum([block.compute_pass_s(frames) for block in self.profile.blocks])

    def step_bytes(self, wanted_bytes: int) -> Table:
        """Weights of one step of each segment, when they are streamed."""
        return step_bytes(self.weight_bytes, self.largest_weight_bytes, wanted_bytes)

    def count_true(self, flags: Sequence[bool]) -> Table:
        """How many blocks of each segment have their flag set."""
        return self._sum([float(flag) for flag in flags])

    def _per_block(self, values: Sequence[float]) -> Table:
        # The block that starts at cut j - n - 1; no block starts at the last cut.
        return shifted(np.array([*values, 0.0], dtype=np.float64), self.blocks, 0.0)

    def _sum(self, values: Sequence[float]) -> Table:
        return np.add.accumulate(self._per_block(values), axis=0)

    def _max(self, values: Sequence[float]) -> Table:
        return np.maximum.accumulate(self._per_block(values), axis=0)
