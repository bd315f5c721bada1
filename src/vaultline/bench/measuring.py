"""Measuring a model block by block: what is measured, in which order, and the parts of a profile.

Everything that needs files is made first; then ``ready`` is called, which may give up the right to
open any; then the clock runs. Each part is complete in itself, so measuring can stop after any and
go on later, in another process, with those that are missing.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from msgspec.structs import replace

from vaultline.bench.noise import frames_of
from vaultline.bench.rates import EngineCalls, SealedWeight, device_rates, loopback_rate
from vaultline.bench.stage_bench import PASS_FRAMES, StageBench, segment_bench
from vaultline.core.errors import RemoteProtocolError
from vaultline.core.profile import TIME_S_MAX, BlockProfile, DeviceRates, Held, LoopbackRate
from vaultline.core.program import Isa
from vaultline.core.serde import Struct
from vaultline.graph.cuts import candidates
from vaultline.graph.needs import block_needs
from vaultline.graph.node_times import NodeClock
from vaultline.graph.structure import Model


class Blocks(Struct, frozen=True, tag="blocks"):
    """What compiling tells of the blocks; their times are still zero.

    Attributes:
        held: the tensors between them.
        stacked: which of them are also timed at ``PASS_FRAMES`` frames a pass.
    """

    engine_version: str
    isa: Isa
    blocks: tuple[BlockProfile, ...]
    stacked: tuple[int, ...]
    held: tuple[Held, ...] = ()


class Round(Struct, frozen=True, tag="round"):
    """One pass of each: of one frame, the whole model first and then every block; of more frames,
    the stacked blocks."""

    frames: int
    seconds: tuple[float, ...]


class Inside(Struct, frozen=True, tag="inside"):
    """Seconds of each block's nodes while the whole model runs."""

    seconds: tuple[float, ...]


class Rates(Struct, frozen=True, tag="rates"):
    """What the machine does besides computing."""

    device: DeviceRates
    loopback: LoopbackRate


Part = Blocks | Round | Inside | Rates


class Step(Struct, frozen=True, tag="step"):
    """How far the phase at hand has come."""

    what: str
    done: int
    total: int


class Parts:
    """The parts that are there, checked as they come."""

    def __init__(self, block_count: int) -> None:
        self._block_count = block_count
        self.blocks: Blocks | None = None
        self.rounds: dict[int, list[tuple[float, ...]]] = {1: [], PASS_FRAMES: []}
        self.inside: Inside | None = None
        self.rates: Rates | None = None

    def add(self, part: Part) -> None:
        """Take a part.

        Raises:
            RemoteProtocolError: it doesn't fit the model, or has an impossible time.
        """
        if isinstance(part, Blocks):
            self._fits(len(part.blocks), self._block_count)
            if not all(0 <= k < self._block_count for k in part.stacked):
                raise RemoteProtocolError("a stacked block that isn't there", got=str(part.stacked))
            if self.blocks is not None and self.blocks.stacked != part.stacked:
                raise RemoteProtocolError("the same model was compiled into other blocks")
            self.blocks = part
        elif isinstance(part, Round):
            expected = {1: self._block_count + 1}
            if self.blocks is not None:
                expected[PASS_FRAMES] = len(self.blocks.stacked)
            self._fits(len(part.seconds), expected.get(part.frames))
            self._possible(part.seconds)
            self.rounds[part.frames].append(part.seconds)
        elif isinstance(part, Inside):
            self._fits(len(part.seconds), self._block_count)
            self._possible(part.seconds)
            self.inside = part
        else:
            self.rates = part

    @property
    def anything(self) -> bool:
        """Whether any part is there that takes time."""
        return bool(any(self.rounds.values()) or self.inside or self.rates)

    @property
    def round_count(self) -> int:
        """Rounds of one frame: what a person calls rounds."""
        return len(self.rounds[1])

    @staticmethod
    def _fits(count: int, expected: int | None) -> None:
        if count != expected:
            raise RemoteProtocolError(
                "a measurement of other blocks", got=str(count), expected=str(expected)
            )

    @staticmethod
    def _possible(seconds: Sequence[float]) -> None:
        if not all(0 <= value <= TIME_S_MAX for value in seconds):
            raise RemoteProtocolError("a measured time is impossible", got=str(seconds)[:200])


class Wanted(Struct, frozen=True):
    """What is still to be measured: rounds by frames of a pass, and the other parts."""

    single_rounds: int
    stacked_rounds: int
    node_runs: int
    rates: bool = True

    @classmethod
    def after(cls, parts: Parts, repeats: int) -> Wanted:
        """What is missing of a profile with so many repeats."""
        nothing_stacks = parts.blocks is not None and not parts.blocks.stacked
        stacked_rounds = 0 if nothing_stacks else repeats - len(parts.rounds[PASS_FRAMES])
        return cls(
            single_rounds=max(0, repeats - len(parts.rounds[1])),
            stacked_rounds=max(0, stacked_rounds),
            node_runs=0 if parts.inside else repeats,
            rates=parts.rates is None,
        )

    @property
    def anything(self) -> bool:
        """Whether there is work left."""
        return bool(self.single_rounds or self.stacked_rounds or self.node_runs or self.rates)


def measure(
    model: Model,
    wanted: Wanted,
    ready: Callable[[], None] = lambda: None,
    far_cores: Sequence[int] = (),
) -> Iterator[Part | Step]:
    """Measure what is wanted of a model: yields parts as they are done, and how far it has come.

    Args:
        ready: called when all files have been made and read, before anything is timed.
        far_cores: see ``loopback_rate``.
    """
    positions = candidates(model)
    clock = _clock(model) if wanted.node_runs else None
    weight = SealedWeight() if wanted.rates else None
    calls = EngineCalls() if wanted.rates else None
    timed: list[StageBench] = []
    needs = block_needs(model, positions)
    if wanted.single_rounds or wanted.stacked_rounds:
        timed.append(segment_bench(model, 0, model.node_count))
        timed[0].pass_s(1)
        for bench in _benches(model, positions):
            timed.append(bench)
            yield Step(what="compiling blocks", done=len(timed) - 1, total=len(positions) - 1)
    ready()
    if timed:
        yield from _timed_rounds(needs, timed, wanted)
    if clock is not None:
        yield from _inside(clock, positions, wanted.node_runs)
    if weight is not None and calls is not None:
        yield Rates(device=device_rates(weight, calls), loopback=loopback_rate(far_cores))
        weight.close()


def _timed_rounds(
    needs: tuple[tuple[BlockProfile, ...], tuple[Held, ...]],
    timed: Sequence[StageBench],
    wanted: Wanted,
) -> Iterator[Part | Step]:
    """Times of all in turn: a noisy moment of the machine hits one round of all blocks rather
    than all rounds of one."""
    whole, *benches = timed
    stacked = tuple(k for k, bench in enumerate(benches) if _stacks(bench))
    yield Blocks(
        engine_version=whole.program.engine_version,
        isa=whole.program.isa,
        blocks=needs[0],
        held=needs[1],
        stacked=stacked,
    )
    total = wanted.single_rounds + (wanted.stacked_rounds if stacked else 0)
    for done in range(total):
        single = done < wanted.single_rounds
        frames, some = (1, timed) if single else (PASS_FRAMES, [benches[k] for k in stacked])
        yield Round(frames=frames, seconds=tuple(bench.pass_s(frames) for bench in some))
        yield Step(what="measuring rounds", done=done + 1, total=total)


def _inside(clock: NodeClock, positions: Sequence[int], runs: int) -> Iterator[Part | Step]:
    for done in range(clock.warm_runs + runs):
        clock.run()
        total = clock.warm_runs + runs
        yield Step(what="measuring inside the model", done=done + 1, total=total)
    nodes_s = clock.seconds(runs)
    yield Inside(seconds=tuple(sum(nodes_s[first:last]) for first, last in pairwise(positions)))


def _clock(model: Model) -> NodeClock:
    return NodeClock(model, feeds_of(model))


def feeds_of(model: Model) -> Mapping[str, Any]:
    """A frame of seeded noise, by input."""
    frame = frames_of(model.inputs, 1)[0]
    return {spec.name: tensor for spec, tensor in zip(model.inputs, frame, strict=True)}


def _benches(model: Model, positions: Sequence[int]) -> Iterator[StageBench]:
    """Every block, fed with what the block before it makes of seeded noise."""
    carried = [tensor.tobytes() for tensor in frames_of(model.inputs, 1)[0]]
    for first, last in pairwise(positions):
        bench = segment_bench(model, first, last)
        for buffer in bench.inputs:
            for part, data in zip(buffer.parts, carried, strict=True):
                part[:] = np.frombuffer(data, np.uint8)
        bench.pass_s(bench.program.settings.frames_per_pass)
        carried = [part.tobytes() for part in bench.outputs[0].parts]
        yield bench


def _stacks(bench: StageBench) -> bool:
    return any(step.stackable for step in bench.program.steps)


def timed_block(
    block: BlockProfile, one_s: Sequence[float], many_s: Sequence[float]
) -> BlockProfile:
    """A block with medians of its rounds, and the spread of those of one frame."""
    ordered = sorted(one_s)
    quarter = len(ordered) // 4
    times = [(1, statistics.median(ordered))]
    if many_s:
        times.append((PASS_FRAMES, statistics.median(many_s)))
    return replace(block, compute_s=tuple(times), spread_s=ordered[-1 - quarter] - ordered[quarter])
