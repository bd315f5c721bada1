"""What a segment takes of a device's memory, written down from docs/cost-model.md, slowly.

It shares no code with ``vaultline.cost``: every sum is over the profile's own list of tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from vaultline.core.profile import Held, ModelProfile
from vaultline.core.tensors import layout

TILE = 4 << 20
KIB = 1 << 10
THREAD = 72 * KIB
STEP_BLOCKS = 64


def gaps(peak: int) -> float:
    return peak * (1 + 1 / 16)


@dataclass(frozen=True, eq=False)
class StepMemory:
    """Steps of a profile's segments, in passes of so many frames."""

    profile: ModelProfile
    frames: int

    @cache  # noqa: B019
    def crossing(self, cut: int) -> list[Held]:
        return [each for each in self.profile.held if each.first < cut <= each.last]

    def foreign(self, cut: int) -> int:
        """What a message holds beyond the relaid tensors that cross, if any do."""
        relaid = sum(each.nbytes for each in self.crossing(cut) if each.relaid)
        return max(0, layout(self.profile.crossing[cut])[1] - relaid) if relaid else 0

    @cache  # noqa: B019
    def together(self, first: int, last: int, opens: bool, closes: bool) -> int:
        """Tensors of a step that runs blocks [first, last), one frame after another.

        ``opens`` its segment, ``closes`` it: whether nothing goes before or after.
        """

        def in_workspace(each: Held) -> bool:
            """Whether the step finds it, or makes it, in the workspace and not in a message."""
            return not opens or each.first >= first or each.relaid

        def leaves(each: Held) -> bool:
            return each.first < last <= each.last and (not closes)

        slots = [] if opens else self.crossing(first)
        if not closes:
            slots = slots + [
                each
                for each in self.crossing(last)
                if (each.first >= first or (opens and each.relaid)) and each not in slots
            ]
        inner = 0
        for block in range(first, last):
            alive = [
                each
                for each in self.profile.held
                if each.first <= block <= each.last
                and in_workspace(each)
                and (each.first >= first or opens)
            ]
            if block == last - 1:
                # What goes on to the next step has its own slots, or is in a message.
                alive = [
                    each
                    for each in alive
                    if not leaves(each) and not (closes and not each.relaid and each.last >= last)
                ]
            own = self.profile.blocks[block].activation_bytes
            inner = max(inner, own + sum(each.nbytes for each in alive))
        ends = (self.foreign(first) if opens else 0) + (self.foreign(last) if closes else 0)
        return self.frames * sum(each.nbytes for each in slots) + inner + ends

    @cache  # noqa: B019
    def inside(self, block: int, first: bool, last: bool) -> int:
        """A block whose nodes are steps of their own, weights included; of its segment's the
        first, the last."""
        own = self.profile.blocks[block]
        opens, closes = first and not own.alone, last and not own.alone
        before = [each for each in self.crossing(block) if each.relaid or not opens]
        after = [
            each
            for each in self.crossing(block + 1)
            if each.first == block and (each.relaid or not closes)
        ]
        ends = (self.foreign(block) if first else 0) + (self.foreign(block + 1) if last else 0)
        size = own.cut_bytes + (self.frames - 1) * own.cut_frame_bytes + ends
        return size + self.frames * sum(each.nbytes for each in (*before, *after))


@dataclass(frozen=True)
class SegmentMemory:
    """Blocks [start, end) of a profile, in passes of so many frames."""

    steps: StepMemory
    start: int
    end: int

    @property
    def profile(self) -> ModelProfile:
        return self.steps.profile

    @property
    def frames(self) -> int:
        return self.steps.frames

    @property
    def weights(self) -> int:
        return sum(block.weight_bytes for block in self.profile.blocks[self.start : self.end])

    def resident_steps(self) -> int:
        blocks = self.profile.blocks[self.start : self.end]
        return 1 + sum(1 + min(block.cut_steps, 3) for block in blocks if block.alone)

    def engine(self, steps: int) -> int:
        """What the engine takes with one thread: of nodes, one kernel, frames stacked, steps."""
        blocks = self.profile.blocks[self.start : self.end]
        ends = sum(len(self.profile.crossing[cut]) for cut in (self.start, self.end))
        twice = 2 if self.copies() else 1
        nodes = twice * (sum(block.engine_bytes for block in blocks) + 9 * KIB * ends)
        values = twice * (sum(block.values for block in blocks) + 2 * ends)
        kernel = max(block.kernel_bytes * (self.frames if block.alone else 1) for block in blocks)
        stacked = sum(block.stacked_bytes for block in blocks) if self.frames > 1 else 0
        held = nodes + kernel + self.frames * stacked + THREAD
        held += steps * (2 * KIB + self.frames * 3 * KIB) + self.frames * values * KIB // 2
        return held + min(steps, 24) * 24 * KIB

    def copies(self) -> int:
        """Of a sum that begins outside of the segment."""
        there = [each for each in self.steps.crossing(self.start) if each.relaid]
        if len(there) > 1 or any(each.last > self.start for each in there):
            return max(each.nbytes for each in there)
        return 0

    def _together(self, first: int, last: int) -> int:
        return self.steps.together(first, last, first == self.start, last == self.end)

    def _inside(self, block: int) -> int:
        return self.steps.inside(block, block == self.start, block + 1 == self.end)

    def resident(self) -> float:
        """The workspace where weights stay: as few steps as blocks that are alone allow."""
        cuts = [self.start]
        for block in range(self.start + 1, self.end):
            if self.profile.blocks[block - 1].alone or self.profile.blocks[block].alone:
                cuts.append(block)
        peak = 0
        for first, last in zip(cuts, [*cuts[1:], self.end], strict=True):
            own = self.profile.blocks[first]
            need = self.frames * own.activation_bytes
            for cut in (first, first + 1):
                held = sum(each.nbytes for each in self.steps.crossing(cut))
                need += 2 * self.frames * max(held, layout(self.profile.crossing[cut])[1])
            peak = max(peak, need if own.alone else self._together(first, last))
        return gaps(peak + self.frames * self.copies())

    def streamed(self) -> tuple[float, int]:
        """The workspace where weights are streamed, and the number of steps."""
        total = sum(block.weight_bytes for block in self.profile.blocks)
        floor = min(TILE, total // 32)

        def weights(first: int, last: int) -> int:
            blocks = self.profile.blocks[first:last]
            return sum(max(block.weight_bytes, block.step_weight_bytes) for block in blocks)

        def steps(first: int, last: int) -> list[tuple[int, int]]:
            """(bytes, number) of the ways of running blocks [first, last) between two cuts."""
            blocks, found = self.profile.blocks[first:last], []
            most = max(TILE, *(block.largest_weight_bytes for block in blocks))
            free = not any(block.alone for block in blocks) and len(blocks) <= STEP_BLOCKS
            if free and weights(first, last) <= most:
                found.append((self._together(first, last) + weights(first, last), 1))
            if last == first + 1:
                found.append((self._inside(first), blocks[0].cut_steps))
            return [(-(-max(need, floor) // 64) * 64, number) for need, number in found]

        @cache
        def best(last: int) -> tuple[int, int]:
            if last == self.start:
                return 0, 0
            return min(
                (max(best(first)[0], need), best(first)[1] + number)
                for first in range(self.start, last)
                for need, number in steps(first, last)
            )

        peak, number = best(self.end)
        workspace = gaps(peak + self.frames * self.copies())
        return min(workspace, self.weights + self.resident()), number

    def ahead(self) -> int:
        """Room for weights that are decrypted ahead."""
        blocks = self.profile.blocks[self.start : self.end]
        largest = max(TILE, *(block.largest_weight_bytes for block in blocks))
        return min(2 * largest, self.weights)
