"""A profile of a model: its measured parts put together.

:func:`profile_model` measures in this process, for tools that have the model at hand;
``bench.profile_process`` in a worker that is started as a device's workers are.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from msgspec.structs import replace

from vaultline.bench.hops import HopRates
from vaultline.bench.measuring import Parts, Step, Wanted, measure, timed_block
from vaultline.bench.neighbours import neighbours
from vaultline.bench.rates import cpu_name
from vaultline.bench.stage_bench import PASS_FRAMES, InMemoryWeights
from vaultline.core.errors import MachineError
from vaultline.core.profile import (
    BASE_CLASS,
    BlockProfile,
    DeviceRates,
    ModelProfile,
    RecordedOn,
)
from vaultline.graph.cuts import candidates, cuts
from vaultline.graph.structure import Model

__all__ = [
    "InMemoryWeights",
    "ProfileRequest",
    "assembled",
    "cpu_name",
    "opening_rate",
    "profile_model",
    "settled",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRequest:
    """How thoroughly to measure, and what to say of it.

    ``neighbours`` copies of the model run on other cores meanwhile: enclaves that share a host
    share its memory bandwidth, and layers with many weights feel it most.
    """

    repeats: int = 9
    neighbours: int = 0
    command: str = "vaultline profile"
    date: str = ""
    host: str = field(default_factory=lambda: os.uname().nodename)
    device_class: str = BASE_CLASS


def profile_model(
    model: Model,
    request: ProfileRequest,
    progress: Callable[[int, int], None] | None = None,
    hops: HopRates | None = None,
) -> ModelProfile:
    """Measure every block between candidate cuts, the whole model, and the machine's rates."""
    parts = Parts(len(candidates(model)) - 1)
    with _apart(model, request.neighbours):
        for part in measure(model, Wanted.after(parts, request.repeats)):
            if not isinstance(part, Step):
                parts.add(part)
            elif progress is not None and part.what.startswith("compiling"):
                progress(part.done, part.total)
    return assembled(model, request, parts, hops)


@contextmanager
def _apart(model: Model, count: int) -> Iterator[None]:
    """Neighbours on other cores, and this process on the first."""
    before = os.sched_getaffinity(0)
    cores = sorted(before)
    with neighbours(model, count, cores):
        try:
            if count:
                os.sched_setaffinity(0, cores[:1])
            yield
        finally:
            os.sched_setaffinity(0, before)


def assembled(
    model: Model, request: ProfileRequest, parts: Parts, hops: HopRates | None = None
) -> ModelProfile:
    """The profile that complete parts make.

    Args:
        hops: what a frame's way costs; ciphers alone where it was not measured.

    Raises:
        MachineError: a part is missing.
    """
    found, inside, rates = parts.blocks, parts.inside, parts.rates
    if found is None or inside is None or rates is None or not parts.rounds[1]:
        raise MachineError("the profile is not complete", remedy="run `vaultline profile` again")
    positions = candidates(model)
    all_cuts = cuts(model)
    crossing = tuple(all_cuts[position].tensors for position in positions)
    whole_s, *one_s = zip(*parts.rounds[1], strict=True)
    many_s = dict(zip(found.stacked, zip(*parts.rounds[PASS_FRAMES], strict=True), strict=False))
    alone = [
        timed_block(block, one_s[k], many_s.get(k, ())) for k, block in enumerate(found.blocks)
    ]
    crossing_bytes = [sum(spec.nbytes for spec in tensors) for tensors in crossing]
    device = rates.device if hops is None else hops.applied(rates.device)
    open_bytes_per_s = opening_rate(device, alone, inside.seconds, crossing_bytes)
    return ModelProfile(
        model_name=model.name,
        model_digest=model.digest,
        engine_version=found.engine_version,
        isa=found.isa,
        recorded_on=RecordedOn(
            host=request.host,
            cpu=cpu_name(),
            date=request.date,
            command=request.command,
            device_class=request.device_class,
        ),
        positions=positions,
        blocks=tuple(settled(alone, inside.seconds, statistics.median(whole_s))),
        crossing=crossing,
        held=found.held,
        rates=replace(device, open_bytes_per_s=open_bytes_per_s),
        owner_s=0.0 if hops is None else hops.owner_s(sum(spec.nbytes for spec in model.inputs)),
        loopback=rates.loopback,
    )


def settled(
    alone: Sequence[BlockProfile], inside_s: Sequence[float], whole_s: float
) -> Iterator[BlockProfile]:
    """Blocks with the times that they take inside the model, adding up to the whole's.

    Timed alone, a block also pays for entering and leaving the engine's blocked layout. Blocks
    that stack frames keep their own times: they hold few activations, and stacking shows only
    there.
    """
    if not sum(inside_s):  # too small for the engine's clock
        inside_s = [block.compute_s[0][1] for block in alone]
    stacked_s = sum(block.compute_s[0][1] for block in alone if len(block.compute_s) > 1)
    inner_s = sum(s for s, block in zip(inside_s, alone, strict=True) if len(block.compute_s) == 1)
    scale = max(whole_s - stacked_s, 0.1 * whole_s) / inner_s if inner_s else 1.0
    for block, seconds in zip(alone, inside_s, strict=True):
        if len(block.compute_s) > 1:
            yield block
        else:
            yield replace(block, compute_s=((1, seconds * scale),))


def opening_rate(
    rates: DeviceRates,
    alone: Sequence[BlockProfile],
    inside_s: Sequence[float],
    crossing_bytes: Sequence[int],
) -> float:
    """Bytes per second of taking a stage's input in: deciphering it, and the engine's change of
    layout on both sides of a cut, which is what blocks cost more alone than inside the model."""
    extra_s = converted = 0.0
    for k, (block, seconds) in enumerate(zip(alone, inside_s, strict=True)):
        if len(block.compute_s) == 1:
            extra_s += block.compute_s[0][1] - seconds
            converted += (crossing_bytes[k] + crossing_bytes[k + 1]) / 2
    layout_s_per_byte = max(extra_s, 0.0) / converted if converted else 0.0
    return 1.0 / (1.0 / rates.open_bytes_per_s + layout_s_per_byte)
