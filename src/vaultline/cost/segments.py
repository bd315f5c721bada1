"""Tables over all segments of a profile.

A table has a row per length and a column per end: entry ``[n, j]`` belongs to the segment of
``n + 1`` blocks that ends at candidate cut ``j``, so it starts at cut ``j - n - 1``. In this layout
a sum or maximum over the blocks of every segment is one accumulation down the rows (no differences
of prefix sums, so no cancellation), and the search reads contiguous memory. Entries that would
start before the first cut mean nothing: ``valid`` tells them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from vaultline.core.frames import FrameLayout
from vaultline.core.plan import STEP_WORTH_BYTES
from vaultline.core.profile import ModelProfile, pass_s
from vaultline.cost.memory import step_bytes

Table = NDArray[np.float64]
#: Of a block: (frames in a pass, seconds of the whole pass), ascending.
PassTimes: TypeAlias = tuple[tuple[int, float], ...]


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
    """Sums, maxima and end points of every segment of a profile, as tables.

    Attributes:
        in_bytes, out_bytes: tensors of a frame on the hops before and after.
        in_message_bytes, out_message_bytes: the messages that carry them.
        scratch_bytes: the engine's tensors within a call, at most.
    """

    def __init__(self, profile: ModelProfile, stages_max: int = 1) -> None:
        self.profile = profile
        self.blocks = len(profile.blocks)
        blocks = profile.blocks
        self.valid = np.isfinite(shifted(np.zeros(self.blocks + 1), self.blocks, np.inf))
        # Whether a segment starts where the model does, and whether it ends there.
        first = np.arange(self.blocks + 1) == 0
        self.from_start = shifted(first.astype(np.float64), self.blocks, 0.0) > 0
        self.to_end = np.broadcast_to(first[::-1], self.valid.shape)
        self.weight_bytes = self._sum([block.weight_bytes for block in blocks])
        self.largest_weight_bytes = self._max([block.largest_weight_bytes for block in blocks])
        self._crossing = np.array(profile.crossing_bytes, dtype=np.float64)
        self.in_bytes, self.out_bytes = self._ends(self._crossing)
        layouts = [FrameLayout(tensors, stages_max) for tensors in profile.crossing]
        messages = np.array([layout.message_bytes for layout in layouts], dtype=np.float64)
        self.in_message_bytes, self.out_message_bytes = self._ends(messages)
        self.scratch_bytes = self._scratch()

    def compute_s(self, frames: int, blocks: Sequence[PassTimes] | None = None) -> Table:
        """Seconds of a pass of ``frames`` frames through each segment.

        Args:
            blocks: times of each block on another class of device than the recording host.
        """
        times = [block.compute_s for block in self.profile.blocks] if blocks is None else blocks
        return self._sum([pass_s(each, frames) for each in times])

    def step_bytes(self, wanted_bytes: int) -> Table:
        """Weights of one step of each segment, when they are streamed."""
        return step_bytes(self.weight_bytes, self.largest_weight_bytes, wanted_bytes)

    def count_true(self, flags: Sequence[bool]) -> Table:
        """How many blocks of each segment have their flag set."""
        return self._sum([float(flag) for flag in flags])

    def stacked_bytes(self) -> Table:
        """Tensors of a frame that are laid side by side with other frames' for stacked steps.

        Runs of blocks that stack become steps of their own: what crosses the ends of each run.
        """
        stacks = np.array([len(block.compute_s) > 1 for block in self.profile.blocks], dtype=bool)
        starts = np.append(stacks, False)
        ends = np.append(False, stacks)
        turns = np.where(starts != ends, self._crossing, 0.0)
        turns[[0, -1]] = 0.0
        inner = self._sum(list(turns[:-1])) - shifted(turns, self.blocks, 0.0)
        first = shifted(np.where(starts, self._crossing, 0.0), self.blocks, 0.0)
        stacked: Table = inner + first + np.where(ends, self._crossing, 0.0)
        return stacked

    def between_steps_bytes(self, wanted_bytes: int) -> Table:
        """Tensors of a frame that wait between steps when weights are streamed: an upper bound.

        A step ends where its weights would exceed ``wanted_bytes``. The compiler makes least the
        sum of what crosses and of what its steps are worth, over all cuts between nodes. The same
        sum over cuts between blocks, which are fewer, is no smaller; less what the fewest steps
        are worth, it bounds what is kept. A block with more weights is cut inside: at most all of
        its own tensors are kept too.
        """
        worth = self._least_cuts(wanted_bytes, self._crossing + STEP_WORTH_BYTES)
        largest = max(block.largest_weight_bytes for block in self.profile.blocks)
        fewest = self._least_cuts(
            max(wanted_bytes, largest), np.full(self.blocks + 1, STEP_WORTH_BYTES)
        )
        inside = [
            float(block.inner_bytes)
            if block.weight_bytes > max(wanted_bytes, block.largest_weight_bytes)
            else 0.0
            for block in self.profile.blocks
        ]
        table: Table = worth - fewest + self._sum(inside)
        return table

    def _least_cuts(self, wanted_bytes: int, price: NDArray[np.float64]) -> Table:
        """The least sum of prices of cuts that keep each step's weights within bounds."""
        cuts = self.blocks + 1
        weights = [block.weight_bytes for block in self.profile.blocks]
        total = np.concatenate([[0], np.cumsum(weights)])
        # kept[j, i]: of the segment from cut i to cut j.
        kept = np.full((cuts, cuts), np.inf)
        for end in range(1, cuts):
            first = min(int(np.searchsorted(total, total[end] - wanted_bytes)), end - 1)
            last_step = kept[max(first, 1) : end] + price[max(first, 1) : end, None]
            if len(last_step):
                kept[end] = last_step.min(axis=0)
            kept[end, first:end] = 0.0
        table: Table = np.zeros(self.valid.shape)
        for end in range(1, cuts):
            table[:end, end] = kept[end, :end][::-1]
        return table

    def _scratch(self) -> Table:
        """While a block runs its own tensors and those crossing before and after it are alive;
        what crosses the segment's ends is in the messages, not here."""
        crossing = self._crossing
        own = np.array(
            [block.scratch_bytes + block.activation_bytes for block in self.profile.blocks],
            dtype=np.float64,
        )
        before, after = crossing[:-1], crossing[1:]
        middle = np.zeros(self.valid.shape)
        middle[2:, 1:] = self._max(list(own + before + after))[:-2, :-1]
        first = shifted(np.append(own + after, 0.0), self.blocks, 0.0)
        last = np.broadcast_to(np.append(0.0, own + before), middle.shape)
        found: Table = np.maximum(np.maximum(first, last), middle)
        found[0] = np.append(0.0, own)
        return found

    def _ends(self, values: NDArray[np.float64]) -> tuple[Table, Table]:
        starts = shifted(values, self.blocks, 0.0)
        return starts, np.broadcast_to(values, starts.shape)

    def _per_block(self, values: Sequence[float]) -> Table:
        # The block that starts at cut j - n - 1; no block starts at the last cut.
        return shifted(np.array([*values, 0.0], dtype=np.float64), self.blocks, 0.0)

    def _sum(self, values: Sequence[float]) -> Table:
        return np.add.accumulate(self._per_block(values), axis=0)

    def _max(self, values: Sequence[float]) -> Table:
        return np.maximum.accumulate(self._per_block(values), axis=0)
