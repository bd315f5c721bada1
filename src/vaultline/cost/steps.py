"""The workspace of every segment: what its steps take at once, besides weights that stay.

A pass runs step by step over its frames. A step of the blocks from cut k to cut l, of a pass of f
frames, needs

    weights + f * (alive at k + made since and alive at l) + inner(k, l)

and less at the ends of its segment, where tensors are in messages. A block may also be cut inside,
into steps of one node each. Streamed, a segment is cut such that its largest step is least;
resident, into as few steps as may be.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from vaultline.core.profile import TILE_BYTES, ModelProfile
from vaultline.core.tensors import ALIGNMENT_BYTES
from vaultline.cost.alive import Alive, Bytes

#: Most blocks of one step.
STEP_BLOCKS_MAX = 64
#: A step as small as this part of the model's weights is not worth cutting further.
_FLOOR_PART = 32
#: A peak and the number of steps that reach it, as one number: the peak decides.
_STEP_BITS = 24
_STEPS = (1 << _STEP_BITS) - 1
_NEVER = np.int64(1 << 62)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepNeeds:
    """Bytes of every possible step by its place in its segment, weights left out: ``[k, l]``.

    Attributes:
        middle, first, last, whole: neither at the segment's start nor at its end, and so on.
    """

    middle: Bytes
    first: Bytes
    last: Bytes
    whole: Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Streamed:
    """The cut of every segment whose largest step is least: ``[start, end]``.

    Attributes:
        peak_bytes: its largest step.
        steps: how many there are; of cuts with the same largest step, found from the segment's
            end, the fewest.
    """

    peak_bytes: Bytes
    steps: Bytes


@dataclass(frozen=True, slots=True)
class _Ends:
    """Steps that end at a cut, as keys: of several blocks, and of one that is cut inside.

    Attributes:
        rest, inside: where other steps go before.
        alone, inside_alone: where the segment begins with them.
    """

    rest: Bytes
    alone: Bytes
    inside: Bytes
    inside_alone: Bytes

    def best(self, end: int, peaks: Bytes, numbers: Bytes) -> Bytes:
        """The best cut of every segment that ends here, as keys by their start.

        Args:
            peaks, numbers: of those that end at the cuts where the last step may begin.
        """
        steps, first = len(peaks), self.rest.shape[1] - len(peaks)
        ending = self.rest[end, first:, None]
        joined = np.maximum(peaks, ending & ~_STEPS)
        joined += numbers
        joined += ending & _STEPS
        joined[np.arange(steps), np.arange(end - steps, end)] = self.alone[end, first:]
        cut = np.maximum(peaks[-1], self.inside[end - 1] & ~_STEPS)
        cut += numbers[-1]
        cut += self.inside[end - 1] & _STEPS
        cut[end - 1] = self.inside_alone[end - 1]
        least: Bytes = np.minimum(joined.min(axis=0), cut)
        return least


class Steps:
    """Steps of a profile's segments."""

    def __init__(self, profile: ModelProfile) -> None:
        blocks = profile.blocks
        self.profile, self.blocks = profile, len(blocks)
        self.alive = Alive(profile)
        self.alone = np.array([block.alone for block in blocks], dtype=bool)
        #: Steps that need less than this are not cut further.
        self.floor_bytes = min(TILE_BYTES, sum(b.weight_bytes for b in blocks) // _FLOOR_PART)
        self._before = np.array([0, *accumulate(self.step_weights(k) for k in range(self.blocks))])

    def step_weights(self, block: int) -> int:
        """Weights of a step that runs a whole block."""
        own = self.profile.blocks[block]
        return max(own.weight_bytes, own.step_weight_bytes)

    def weights(self, first: int, last: int) -> int:
        """Weights of a step of several blocks."""
        return int(self._before[last] - self._before[first])

    def together(self, frames: int) -> StepNeeds:
        """Needs of steps that run their blocks as a whole, one frame at a time."""
        alive = self.alive
        before, after = frames * alive.crossing[:, None], frames * alive.made
        extra = alive.extra
        passed = frames * (alive.relaid - alive.made_relaid)
        return StepNeeds(
            middle=before + after + alive.inner,
            first=after + passed + alive.inner_first + extra[:, None],
            last=before + alive.inner_last + extra,
            whole=alive.inner_whole + extra[:, None] + extra,
        )

    def cut_inside(self, frames: int) -> StepNeeds:
        """Needs of single blocks whose nodes are steps of their own, weights included: per block.

        Steps that stack frames keep copies of messages beside them.
        """
        alive, blocks = self.alive, self.profile.blocks
        own = np.array([b.cut_bytes + (frames - 1) * b.cut_frame_bytes for b in blocks])
        extra = alive.extra
        made = np.diagonal(alive.made, 1)
        made_relaid = np.diagonal(alive.made_relaid, 1)
        both = own + frames * (alive.crossing[:-1] + made)
        first = own + frames * (alive.relaid[:-1] + made)
        last = own + frames * (alive.crossing[:-1] + made_relaid)
        whole = own + frames * (alive.relaid[:-1] + made_relaid)
        return StepNeeds(
            middle=both,
            first=np.where(self.alone, both, first) + extra[:-1],
            last=np.where(self.alone, both, last) + extra[1:],
            whole=np.where(self.alone, both, whole) + extra[:-1] + extra[1:],
        )

    def stacked(self, frames: int) -> Bytes:
        """Needs of single blocks that stack frames in as few steps as may be, resident."""
        edges = np.maximum(self.alive.crossing, np.array(self.profile.crossing_bytes))
        own = np.array([block.activation_bytes for block in self.profile.blocks])
        # Products that are turned round hold their operand and result twice.
        need: Bytes = frames * (own + 2 * (edges[:-1] + edges[1:]))
        return need

    def streamed(self, frames: int) -> Streamed:
        """The best cut of every segment into steps, for passes of so many frames."""
        together, inside = self._keys_together(frames), self._keys_inside(frames)
        # By end and start: so what is combined lies together.
        going_on = _Ends(together.middle, together.first, inside.middle, inside.first)
        ending = _Ends(together.last, together.whole, inside.last, inside.whole)
        found = np.zeros((self.blocks + 1, self.blocks + 1), np.int64)
        peaks, numbers = np.full_like(found, _NEVER), np.zeros_like(found)
        for end in range(1, self.blocks + 1):
            steps = min(int(self._widths[end]), end)
            before = peaks[end - steps : end, :end], numbers[end - steps : end, :end]
            found[end, :end] = ending.best(end, *before)
            best = going_on.best(end, *before)
            peaks[end, :end], numbers[end, :end] = best & ~_STEPS, best & _STEPS
        found = found.T
        copies = frames * self.alive.skipping[:, None]
        return Streamed(
            peak_bytes=(found >> _STEP_BITS) * ALIGNMENT_BYTES + copies, steps=found & _STEPS
        )

    def _keys_together(self, frames: int) -> StepNeeds:
        """Every step that runs its blocks as a whole, as a key: by its end and, at most
        ``STEP_BLOCKS_MAX`` blocks before, its start."""
        needs = self.together(frames)
        width = self._allowed.shape[1]

        def keys(needs: Bytes) -> Bytes:
            found = np.full((self.blocks + 1, width), _NEVER)
            for blocks in range(1, width + 1):
                at = slice(blocks, None), width - blocks
                need = np.diagonal(needs, blocks) + self._before[blocks:] - self._before[:-blocks]
                found[at] = np.where(self._allowed[at], self._key(need, 1), _NEVER)
            return found

        return StepNeeds(
            middle=keys(needs.middle),
            first=keys(needs.first),
            last=keys(needs.last),
            whole=keys(needs.whole),
        )

    def _keys_inside(self, frames: int) -> StepNeeds:
        """Every block that is cut inside, as a key."""
        needs = self.cut_inside(frames)
        steps = np.array([block.cut_steps for block in self.profile.blocks])
        return StepNeeds(
            middle=self._key(needs.middle, steps),
            first=self._key(needs.first, steps),
            last=self._key(needs.last, steps),
            whole=self._key(needs.whole, steps),
        )

    def _key(self, need: Bytes, steps: Bytes | int) -> Bytes:
        units = -(-np.maximum(need, self.floor_bytes) // ALIGNMENT_BYTES)
        key: Bytes = (units << _STEP_BITS) + steps
        return key

    @cached_property
    def _allowed(self) -> NDArray[np.bool_]:
        """Which blocks may run as one step, placed as in ``_keys_together``: their weights are no
        more than those of a tile or of one node, and none of them is alone."""
        width = min(STEP_BLOCKS_MAX, self.blocks)
        allowed = np.zeros((self.blocks + 1, width), dtype=bool)
        most = np.full(self.blocks, TILE_BYTES)
        free = np.ones(self.blocks, dtype=bool)
        largest = np.array([block.largest_weight_bytes for block in self.profile.blocks])
        for blocks in range(1, width + 1):
            start = slice(None, self.blocks + 1 - blocks)
            most = np.maximum(most[start], largest[blocks - 1 :])
            free = free[start] & ~self.alone[blocks - 1 :]
            weights = self._before[blocks:] - self._before[:-blocks]
            allowed[blocks:, width - blocks] = free & (weights <= most)
        return allowed

    @cached_property
    def _widths(self) -> NDArray[np.int64]:
        """Per end, how many blocks the longest step has; at least one, which may be cut inside."""
        width = self._allowed.shape[1]
        return np.where(self._allowed.any(axis=1), width - self._allowed.argmax(axis=1), 1)

    def resident(self, frames: int) -> Bytes:
        """The largest step of every segment whose weights all stay: ``[start, end]``.

        Blocks that must be alone are steps, and so is each run of others.
        """
        count = self.blocks + 1
        needs, alone = self.together(frames), self.stacked(frames)
        # By end and start. ``waiting``: if the segment goes on; else with its outputs in messages.
        waiting = np.zeros((count, count), np.int64)
        found = np.zeros((count, count), np.int64)
        run = 0
        for end in range(1, count):
            if self.alone[end - 1]:
                run = end
                for target in (waiting, found):
                    target[end, :end] = np.maximum(waiting[end - 1, :end], alone[end - 1])
                continue
            for target, middle, first in (
                (waiting, needs.middle, needs.first),
                (found, needs.last, needs.whole),
            ):
                target[end, :run] = np.maximum(waiting[run, :run], middle[run, end])
                target[end, run:end] = first[run:end, end]
        return found.T + frames * self.alive.skipping[:, None]
