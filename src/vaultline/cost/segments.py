"""Tables over all segments of a profile.

A table has a row per length and a column per end: entry ``[n, j]`` belongs to the segment of
``n + 1`` blocks that ends at candidate cut ``j``, so it starts at cut ``j - n - 1``. In this layout
a sum or maximum over the blocks of every segment is one accumulation down the rows (no differences
of prefix sums, so no cancellation), and the search reads contiguous memory. Entries that would
start before the first cut mean nothing: ``valid`` tells them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from vaultline.core.frames import FrameLayout
from vaultline.core.profile import TILE_BYTES, ModelProfile, pass_s
from vaultline.cost.memory import NODE_BYTES, engine_bytes, workspace_bytes
from vaultline.cost.steps import Steps

Table = NDArray[np.float64]
#: Steps of a block that must be alone, resident: before, in and after what stacks.
_REGIONS = 3
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
        ahead_bytes: room for the next step's weights, where they are decrypted ahead.
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
        largest = self._max([block.largest_weight_bytes for block in blocks])
        # A step's buffer and the next one's, each of which holds what any node reads, or a tile.
        self.ahead_bytes = np.minimum(2 * np.maximum(largest, TILE_BYTES), self.weight_bytes)
        crossing = np.array(profile.crossing_bytes, dtype=np.float64)
        self.in_bytes, self.out_bytes = self._ends(crossing)
        layouts = [FrameLayout(tensors, stages_max) for tensors in profile.crossing]
        messages = np.array([layout.message_bytes for layout in layouts], dtype=np.float64)
        self.in_message_bytes, self.out_message_bytes = self._ends(messages)
        # The engine changes the layout of what enters and leaves: a node each, with two values.
        ends = self._ends(np.array([len(tensors) for tensors in profile.crossing], np.float64))
        copies = self.steps.alive.skipping.astype(np.float64)
        twice = np.where(self._ends(copies)[0] > 0, 2.0, 1.0)
        engine = self._sum([block.engine_bytes for block in blocks])
        self._engine = twice * (engine + NODE_BYTES * (ends[0] + ends[1]))
        self._values = twice * (self._sum([b.values for b in blocks]) + 2 * (ends[0] + ends[1]))
        self._resident_steps = 1.0 + self._sum(
            [1 + min(block.cut_steps, _REGIONS) if block.alone else 0 for block in blocks]
        )
        self._stacked = self._sum([block.stacked_bytes for block in blocks])
        self._stacked_steps = self._sum(
            [block.cut_steps if block.stacked_bytes else 0 for block in blocks]
        )
        self._streamed: dict[int, tuple[Table, Table]] = {}
        self._resident: dict[int, Table] = {}

    @cached_property
    def steps(self) -> Steps:
        """How segments are cut into the steps of a pass."""
        return Steps(self.profile)

    def compute_s(self, frames: int, blocks: Sequence[PassTimes] | None = None) -> Table:
        """Seconds of a pass of ``frames`` frames through each segment.

        Args:
            blocks: times of each block on another class of device than the recording host.
        """
        times = [block.compute_s for block in self.profile.blocks] if blocks is None else blocks
        return self._sum([pass_s(each, frames) for each in times])

    def engine_bytes(self, frames: int, *, streamed: bool) -> Table:
        """What the engine takes for itself, with one thread."""
        kernels = self._max(
            [b.kernel_bytes * (frames if b.alone else 1) for b in self.profile.blocks]
        )
        stacked = frames * self._stacked if frames > 1 else 0.0
        return engine_bytes(
            nodes_bytes=self._engine + kernels + stacked,
            values=self._values,
            steps=self.streamed(frames)[1] if streamed else self._resident_steps,
            frames=frames,
        )

    def streamed(self, frames: int) -> tuple[Table, Table]:
        """The workspace of each segment whose weights don't all stay, and its number of steps."""
        if frames not in self._streamed:
            found = self.steps.streamed(frames)
            workspace = workspace_bytes(self._by_length(found.peak_bytes))
            # The least steps of a short segment may be more than all of it.
            np.minimum(workspace, self.weight_bytes + self.resident(frames), out=workspace)
            self._streamed[frames] = workspace, self._by_length(found.steps)
        return self._streamed[frames]

    def calls(self, layout_frames: int, frames: int, at: tuple[slice, slice]) -> Table:
        """Calls of the engine in a streamed pass of ``frames`` frames, where the stage is laid out
        for passes of ``layout_frames``: a step that stacks frames is one for all of them.

        Args:
            at: of which segments.
        """
        steps, stacked = self.streamed(layout_frames)[1][at], self._stacked_steps[at]
        table: Table = frames * (steps - stacked) + stacked
        return table

    def resident(self, frames: int) -> Table:
        """The workspace of each segment whose weights all stay."""
        if frames not in self._resident:
            found = self._by_length(self.steps.resident(frames))
            self._resident[frames] = workspace_bytes(found)
        return self._resident[frames]

    def count_true(self, flags: Sequence[bool]) -> Table:
        """How many blocks of each segment have their flag set."""
        return self._sum([float(flag) for flag in flags])

    def _by_length(self, square: NDArray[np.int64]) -> Table:
        """From a table by start and end."""
        table = np.zeros(self.valid.shape)
        for length in range(1, self.blocks + 1):
            table[length - 1, length:] = np.diagonal(square, length)
        return table

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
