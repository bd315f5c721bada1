"""A profile: what was measured of one model on one host. Every constant of the cost model is here.

A model's nodes, in topological order, are grouped into blocks between candidate cut positions.
"""

from __future__ import annotations

from itertools import pairwise

import msgspec

from vaultline.core.errors import InputError
from vaultline.core.limits import TENSOR_BYTES_MAX
from vaultline.core.program import Isa, PageMode
from vaultline.core.serde import Struct, canonical_json, from_json
from vaultline.core.tensors import TensorSpec, align, layout

PROFILE_VERSION = 3
#: The largest tile of a product whose weights are streamed: blocks are measured with it.
TILE_BYTES = 4 << 20
#: More nodes than any model has.
NODES_MAX = 1 << 18
#: Beyond these a number is no measurement but a mistake, and sums of it would not stay finite.
TIME_S_MAX = 1e9
RATE_MIN, RATE_MAX = 1e-6, 1e24


def _is_rate(value: float) -> bool:
    return RATE_MIN <= value <= RATE_MAX


#: What a profile is of unless it says else: a simulated enclave is a plain process.
BASE_CLASS = "simulated"


class RecordedOn(Struct, frozen=True):
    """Where, when and how the numbers were measured.

    Attributes:
        device_class: the class of devices that they hold for.
    """

    host: str
    cpu: str
    date: str
    command: str
    device_class: str = BASE_CLASS


def pass_s(compute_s: tuple[tuple[int, float], ...], frames: int) -> float:
    """Seconds of a pass of ``frames`` frames, from measured (frames, seconds).

    Between measured frame counts the time is interpolated; beyond the last one it grows in
    proportion, so a block measured at one frame only gains nothing from larger passes.
    """
    for (few, few_s), (many, many_s) in pairwise(compute_s):
        if few <= frames <= many:
            return few_s + (many_s - few_s) * (frames - few) / (many - few)
    last, last_s = compute_s[-1]
    return last_s * frames / last


def _check_times(compute_s: tuple[tuple[int, float], ...], spread_s: float = 0.0) -> None:
    frames = [entry[0] for entry in compute_s]
    if not frames or frames[0] != 1 or any(b <= a for a, b in pairwise(frames)):
        raise InputError(
            "a block's times must start at one frame a pass and ascend", got=str(frames)
        )
    times = (spread_s, *(entry[1] for entry in compute_s))
    if not all(0 <= seconds <= TIME_S_MAX for seconds in times):
        raise InputError(
            "a block has a negative time or one beyond reason",
            got=str(times),
            expected=f"seconds from 0 to {TIME_S_MAX:g}",
        )


class BlockProfile(Struct, frozen=True):
    """The nodes between two neighbouring positions.

    Sizes are as compiled, each weight and tensor aligned. Those of tensors leave out what lives
    beyond the block: see ``Held``.

    Attributes:
        compute_s: (frames in a pass, median seconds of the whole pass), ascending, from 1 frame.
            More than one entry where stacking frames changes the time.
        spread_s: spread (interquartile) of the one-frame time.
        weight_bytes: of all the weights that the block reads.
        step_weight_bytes: of a step that runs all of it. The engine may move work of the block
            before into it where both are in one stage; at least ``weight_bytes``.
        activation_bytes: the most that its own tensors take while one frame runs through it in one
            step.
        cut_bytes: the largest step, its weights included, if each node is a step of its own, for
            passes of one frame; cut_frame_bytes: more for each further frame.
        cut_steps: how many steps those are.
        largest_weight_bytes: the most weights that one of them reads.
        engine_bytes: what the engine takes for its nodes, besides kernels.
        kernel_bytes: the largest buffer that one of its kernels allocates, for one frame.
        values: how many values its nodes read and write.
        stacked_bytes: what the engine itself allocates of each frame in steps that stack them.
        alone: no step may hold both its nodes and another block's: it is cut into tiles, or it
            stacks frames.
        ops: how many nodes of each operator.
    """

    compute_s: tuple[tuple[int, float], ...]
    weight_bytes: int
    activation_bytes: int
    spread_s: float = 0.0
    step_weight_bytes: int = 0
    cut_bytes: int = 0
    cut_frame_bytes: int = 0
    cut_steps: int = 1
    largest_weight_bytes: int = 0
    engine_bytes: int = 0
    kernel_bytes: int = 0
    values: int = 0
    stacked_bytes: int = 0
    alone: bool = False
    ops: dict[str, int] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_times(self.compute_s, self.spread_s)
        sizes = (
            self.weight_bytes,
            self.step_weight_bytes,
            self.activation_bytes,
            self.cut_bytes,
            self.cut_frame_bytes,
            self.largest_weight_bytes,
            self.stacked_bytes,
            self.engine_bytes,
            self.kernel_bytes,
        )
        if min(sizes) < 0 or max(sizes) > TENSOR_BYTES_MAX:
            raise InputError(
                "a block has a negative size or one beyond reason",
                got=str(sizes),
                expected=f"bytes from 0 to {TENSOR_BYTES_MAX}",
            )
        most = self.largest_weight_bytes
        if self.cut_bytes < most or self.cut_steps * most < self.weight_bytes:
            raise InputError(
                "a block's steps hold less than its weights",
                got=f"{self.cut_steps} steps of at most {most} bytes of weights",
                expected=f"{self.weight_bytes} bytes of weights in steps of {self.cut_bytes}",
            )
        counts = (self.cut_steps, self.values)
        if min(counts) < 0 or max(counts) > NODES_MAX:
            raise InputError(
                "a block has an impossible number of steps or values",
                got=str(counts),
                expected=f"0 to {NODES_MAX}",
            )

    def compute_pass_s(self, frames: int) -> float:
        """Seconds of a pass of ``frames`` frames: see ``pass_s``."""
        return pass_s(self.compute_s, frames)


class DeviceRates(Struct, frozen=True):
    """What the recording host does besides computing.

    Attributes:
        seal_bytes_per_s: a stage's output sealed and put into its socket.
        open_bytes_per_s: its input taken from the socket, opened and laid out for the engine.
        decrypt_bytes_per_s: weights from the vault.
        call_s: fixed cost of a pass.
        step_s: one more call of the engine.
        frame_s: fixed cost of a frame: threads woken, buffers handed over.
        page_s: what evicting one page of protected memory and loading another takes, by what was
            counted: ``crypto`` only the cipher's work, measured; ``sgx1`` all of it, as published.
    """

    seal_bytes_per_s: float
    open_bytes_per_s: float
    decrypt_bytes_per_s: float
    call_s: float
    frame_s: float = 0.0
    step_s: float = 0.0
    page_s: dict[PageMode, float] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        rates = (self.seal_bytes_per_s, self.open_bytes_per_s, self.decrypt_bytes_per_s)
        costs = (self.call_s, self.frame_s, self.step_s, *self.page_s.values())
        if not all(map(_is_rate, rates)) or not all(0 <= cost <= TIME_S_MAX for cost in costs):
            raise InputError("a rate must be above zero and a cost not negative", got=str(self))

    def __hash__(self) -> int:
        # Of the dictionary too, which has none of its own.
        rates = (self.seal_bytes_per_s, self.open_bytes_per_s, self.decrypt_bytes_per_s)
        costs = (self.call_s, self.frame_s, self.step_s)
        return hash((*rates, *costs, *sorted(self.page_s.items())))


class Held(Struct, frozen=True):
    """A tensor of the compiled model that lives beyond the block that makes it.

    Attributes:
        nbytes: of one frame, in the engine's layout, aligned.
        first, last: the block that makes it and the last one that reads it.
        relaid: its layout is the engine's own: in a message it has another one, so that a stage
            that it enters or leaves holds a copy.
    """

    nbytes: int
    first: int
    last: int
    relaid: bool = False

    def __post_init__(self) -> None:
        if not (0 <= self.nbytes <= TENSOR_BYTES_MAX and 0 <= self.first < self.last):
            raise InputError(
                "a tensor between blocks has an impossible size or life", got=str(self)
            )


def held_between(crossing: tuple[tuple[TensorSpec, ...], ...]) -> tuple[Held, ...]:
    """The tensors that cross the inner ones of a model's cuts, in no layout but their own."""
    lives: dict[str, tuple[int, int, int]] = {}
    for cut, tensors in enumerate(crossing):
        for spec in tensors:
            first, _, nbytes = lives.get(spec.name, (max(cut - 1, 0), cut, align(spec.nbytes)))
            lives[spec.name] = (first, cut, nbytes)
    inputs = {spec.name for spec in crossing[0]}
    blocks = len(crossing) - 1
    return tuple(
        Held(nbytes=nbytes, first=first, last=min(last, blocks - 1))
        for name, (first, last, nbytes) in lives.items()
        if name not in inputs and first < min(last, blocks - 1)
    )


class LoopbackRate(Struct, frozen=True):
    """The link between two processes of one host."""

    bytes_per_s: float
    latency_s: float

    def __post_init__(self) -> None:
        if not _is_rate(self.bytes_per_s) or not 0 <= self.latency_s <= TIME_S_MAX:
            raise InputError("a loopback needs a rate above zero", got=str(self))


class ClassProfile(Struct, frozen=True):
    """The same blocks, measured on another class of device.

    Attributes:
        name: the speed class, as the cluster file names it.
        compute_s: per block, as in ``BlockProfile``.
    """

    name: str
    recorded_on: RecordedOn
    isa: Isa
    compute_s: tuple[tuple[tuple[int, float], ...], ...]
    rates: DeviceRates

    def __post_init__(self) -> None:
        for times in self.compute_s:
            _check_times(times)


class ModelProfile(Struct, frozen=True):
    """Everything the planner knows of a model.

    Attributes:
        model_digest: SHA-256 (hex), as in the plan.
        positions: candidate cuts as node counts: 0 first, the number of nodes last.
        blocks: block k holds the nodes between ``positions[k]`` and ``positions[k + 1]``.
        crossing: the tensors that cross each position, in the order in which they travel; the
            model's inputs first and its outputs last.
        held: tensors of the compiled model that live beyond the block that makes them.
        classes: measured on other classes of devices.
        owner_s: what a core of the owner's host gives up for each frame: laying it out, sealing it,
            sending it, taking the result.
        class_scale: for classes that nobody has measured, how many times longer work is estimated
            to take than on the recording host; a class in neither is as fast as it is.
        class_notes: where an estimate comes from, by class, in the words of whoever made it.
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
    owner_s: float = 0.0
    held: tuple[Held, ...] = ()
    classes: tuple[ClassProfile, ...] = ()
    class_scale: dict[str, float] = msgspec.field(default_factory=dict)
    class_notes: dict[str, str] = msgspec.field(default_factory=dict)
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
        if any(each.last >= len(self.blocks) for each in self.held):
            raise InputError("a tensor lives in blocks that the profile lacks")
        if sum(block.cut_steps for block in self.blocks) > NODES_MAX:
            raise InputError("a profile has more steps than any model")
        if not 0 <= self.owner_s <= TIME_S_MAX:
            raise InputError("the owner's time is negative", got=str(self.owner_s))
        if not all(map(_is_rate, self.class_scale.values())):
            raise InputError("a class scale must be above zero", got=str(self.class_scale))
        self._check_classes()

    def _check_classes(self) -> None:
        """Each class once, measured or estimated, with a time for every block."""
        names = [*(each.name for each in self.classes), *self.class_scale]
        if len(set(names)) < len(names) or "" in names:
            raise InputError(
                "a speed class is given twice or has no name",
                got=", ".join(names),
                expected="each class once, measured or estimated",
            )
        for each in self.classes:
            if len(each.compute_s) != len(self.blocks):
                raise InputError(
                    f"speed class {each.name} was measured on other blocks",
                    got=str(len(each.compute_s)),
                    expected=f"{len(self.blocks)} blocks",
                    remedy="merge profiles of one model, made with one version of vaultline",
                )

    def class_named(self, name: str) -> ClassProfile | None:
        """What was measured on a class of devices, if anything was."""
        return next((each for each in self.classes if each.name == name), None)

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
