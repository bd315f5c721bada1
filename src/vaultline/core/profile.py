"""A profile: what was measured of one model on one host. Every constant of the cost model is here.

A model's nodes, in topological order, are grouped into blocks between candidate cut positions.
"""

from __future__ import annotations

from itertools import pairwise

import msgspec

from vaultline.core.errors import InputError
from vaultline.core.limits import TENSOR_BYTES_MAX
from vaultline.core.program import Isa
from vaultline.core.serde import Struct, canonical_json, from_json
from vaultline.core.tensors import TensorSpec, layout

PROFILE_VERSION = 1
#: Beyond these a number is no measurement but a mistake, and sums of it would not stay finite.
TIME_S_MAX = 1e9
RATE_MIN, RATE_MAX = 1e-6, 1e24


def _is_rate(value: float) -> bool:
    return RATE_MIN <= value <= RATE_MAX


class RecordedOn(Struct, frozen=True):
    """Where, when and how the numbers were measured."""

    host: str
    cpu: str
    date: str
    command: str


class BlockProfile(Struct, frozen=True):
    """The nodes between two neighbouring positions.

    Attributes:
        compute_s: (frames in a pass, median seconds of the whole pass), ascending, from 1 frame.
            More than one entry where stacking frames changes the time.
        spread_s: spread (interquartile) of the one-frame time.
        weight_bytes: of all the weights that the block reads.
        activation_bytes: tensors of one frame between the block's own steps.
        scratch_bytes: the most that the engine holds within one call, for one frame.
        inner_bytes: all tensors of one frame that are made and used within the block: what is kept
            at most if the block itself is cut into steps.
        largest_weight_bytes: the most weights of a node that cannot be split into tiles.
        ops: how many nodes of each operator.
    """

    compute_s: tuple[tuple[int, float], ...]
    weight_bytes: int
    activation_bytes: int
    spread_s: float = 0.0
    scratch_bytes: int = 0
    inner_bytes: int = 0
    largest_weight_bytes: int = 0
    ops: dict[str, int] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        frames = [entry[0] for entry in self.compute_s]
        if not frames or frames[0] != 1 or any(b <= a for a, b in pairwise(frames)):
            raise InputError(
                "a block's times must start at one frame a pass and ascend", got=str(frames)
            )
        sizes = (
            self.weight_bytes,
            self.activation_bytes,
            self.scratch_bytes,
            self.inner_bytes,
            self.largest_weight_bytes,
        )
        times = (self.spread_s, *(entry[1] for entry in self.compute_s))
        if not all(0 <= seconds <= TIME_S_MAX for seconds in times):
            raise InputError(
                "a block has a negative time or one beyond reason",
                got=str(times),
                expected=f"seconds from 0 to {TIME_S_MAX:g}",
            )
        if min(sizes) < 0 or max(sizes) > TENSOR_BYTES_MAX:
            raise InputError(
                "a block has a negative size or one beyond reason",
                got=str(sizes),
                expected=f"bytes from 0 to {TENSOR_BYTES_MAX}",
            )

    def compute_pass_s(self, frames: int) -> float:
        """Seconds of a pass of ``frames`` frames.

        Between measured frame counts the time is interpolated; beyond the last one it grows in
        proportion, so a block measured at one frame only gains nothing from larger passes.
        """
        for (few, few_s), (many, many_s) in pairwise(self.compute_s):
            if few <= frames <= many:
                return few_s + (many_s - few_s) * (frames - few) / (many - few)
        last, last_s = self.compute_s[-1]
        return last_s * frames / last


class DeviceRates(Struct, frozen=True):
    """What the recording host does besides computing.

    Attributes:
        seal_bytes_per_s, open_bytes_per_s: records of the channel.
        decrypt_bytes_per_s: weights from the vault.
        call_s: fixed cost of a pass.
    """

    seal_bytes_per_s: float
    open_bytes_per_s: float
    decrypt_bytes_per_s: float
    call_s: float

    def __post_init__(self) -> None:
        rates = (self.seal_bytes_per_s, self.open_bytes_per_s, self.decrypt_bytes_per_s)
        if not all(map(_is_rate, rates)) or not 0 <= self.call_s <= TIME_S_MAX:
            raise InputError("a rate must be above zero and a cost not negative", got=str(self))


class LoopbackRate(Struct, frozen=True):
    """The link between two processes of one host."""

    bytes_per_s: float
    latency_s: float

    def __post_init__(self) -> None:
        if not _is_rate(self.bytes_per_s) or not 0 <= self.latency_s <= TIME_S_MAX:
            raise InputError("a loopback needs a rate above zero", got=str(self))


class ModelProfile(Struct, frozen=True):
    """Everything the planner knows of a model.

    Attributes:
        model_digest: SHA-256 (hex), as in the plan.
        positions: candidate cuts as node counts: 0 first, the number of nodes last.
        blocks: block k holds the nodes between ``positions[k]`` and ``positions[k + 1]``.
        crossing: the tensors that cross each position, in the order in which they travel; the
            model's inputs first and its outputs last.
        class_scale: for each speed class, how many times longer work takes than on the recording
            host; classes that are not listed are as fast as it is.
    """

    model_name: str
    model_digest: str
    engine_version: str
    isa: Isa
    recorded_on: RecordedOn
    positions: tuple[int, ...]
    blocks: tuple[BlockProfile, ...]
    crossing: tuple[tuple[TensorSpec, ...], ...]
    rates: DeviceRates
    loopback: LoopbackRate
    class_scale: dict[str, float] = msgspec.field(default_factory=dict)
    version: int = PROFILE_VERSION

    def __post_init__(self) -> None:
        if self.version != PROFILE_VERSION:
            raise InputError(
                "profile of another version",
                got=str(self.version),
                expected=str(PROFILE_VERSION),
                remedy="run `vaultline profile` again",
            )
        rising = all(a < b for a, b in pairwise(self.positions))
        if len(self.positions) < 2 or self.positions[0] != 0 or not rising:
            raise InputError(
                "a profile's positions must rise from 0 to the number of nodes",
                got=str(self.positions),
            )
        count = len(self.positions)
        if (len(self.blocks), len(self.crossing)) != (count - 1, count):
            raise InputError(
                "a profile needs one block between each two positions and one crossing at each",
                got=f"{len(self.blocks)} blocks and {len(self.crossing)} crossings",
                expected=f"{count - 1} and {count}",
            )
        if not all(map(_is_rate, self.class_scale.values())):
            raise InputError("a class scale must be above zero", got=str(self.class_scale))

    @property
    def crossing_bytes(self) -> tuple[int, ...]:
        """Bytes of a frame's message at each position, alignment included."""
        return tuple(layout(tensors)[1] for tensors in self.crossing)


def write_profile(profile: ModelProfile) -> bytes:
    """The canonical JSON of a profile."""
    return canonical_json(profile)


def read_profile(data: bytes) -> ModelProfile:
    """Parse a profile file.

    Raises:
        InputError: not a profile, or an inconsistent one.
    """
    return from_json(
        data, ModelProfile, what="the profile", remedy="make it again with `vaultline profile`"
    )
