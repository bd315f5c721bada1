"""What every segment takes on every type of device, in memory and time, and the ways to run it.

Memory depends on how many neighbours a stage may have, since each has a record buffer. So options
exist once for each *space* of plans: those whose stages have at most m replicas, with room for m
neighbours on either side. Where memory is not that tight, one space is all there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vaultline.core.cluster import Device
from vaultline.core.limits import REPLICAS_MAX
from vaultline.cost.memory import io_bytes, more_threads_bytes, record_bytes, streamed_bytes
from vaultline.cost.segments import Segments, Table
from vaultline.cost.time import stage_s
from vaultline.planner.devices import DeviceType, Speed
from vaultline.planner.settings import MODES, Mode, Settings

#: Lengths that are computed at a time, so that what lies between stays in the cache.
_ROWS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way of running segments on a type of device.

    Attributes:
        latency_s: per segment, for a frame alone (passes of one frame); ``inf`` if not possible.
        period_s: per segment, seconds per frame of a busy device in passes of ``frames``.
        frames: per segment, the frames of a pass that make the period least within the memory.
        streamed: per segment, whether weights that do not fit are streamed.
        prefetch: per segment, whether those are decrypted ahead.
    """

    latency_s: Table
    period_s: Table
    frames: NDArray[np.int8]
    streamed: NDArray[np.bool_]
    prefetch: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """Plans whose stages have at most so many replicas, with memory for as many neighbours.

    Attributes:
        options: per type, which of its options belong to this space.
    """

    replicas: int
    options: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """Memory that segments need in one mode at one size of pass, with one neighbour each side."""

    mode: Mode
    frames: int
    need: Table


def need_bytes(
    segments: Segments,
    mode: Mode,
    frames: int,
    queue_frames: int,
    *,
    sources: int = 1,
    targets: int = 1,
) -> Table:
    """The least memory that each segment needs in a mode, with one thread.

    Args:
        sources, targets: neighbours before and after: each has a record buffer.
    """
    io = io_bytes(
        in_bytes=segments.in_message_bytes,
        out_bytes=segments.out_message_bytes,
        frames=frames,
        queue_frames=queue_frames,
        sources=sources,
        targets=targets,
    )
    held: Table = io + segments.engine_bytes(frames, streamed=mode == "streamed")
    if mode == "resident":
        return held + segments.weight_bytes + segments.resident(frames)
    return held + segments.streamed(frames)[0]


def build_options(
    segments: Segments, types: Sequence[DeviceType], settings: Settings, *, frames_max: int
) -> tuple[tuple[tuple[Option, ...], ...], tuple[Space, ...], Table]:
    """Options per type, the spaces that they belong to, and the least memory of each segment."""
    ways = [
        _Way(
            mode=mode,
            frames=frames,
            need=need_bytes(segments, mode, frames, settings.queue_frames(frames)),
        )
        for mode in MODES
        for frames in range(1, frames_max + 1)
    ]
    most = min(settings.replicas_max, REPLICAS_MAX, max(len(kind.units) for kind in types))
    per_neighbour = per_neighbour_bytes(segments)
    ahead = segments.ahead_bytes
    steps = [_tight_at(kind, ways, per_neighbour, ahead, most) for kind in types]
    members = sorted({most}.union(*steps))
    options: list[tuple[Option, ...]] = []
    chosen: list[list[tuple[int, ...]]] = []
    times = _PassTimes(segments)
    for kind, tight in zip(types, steps, strict=True):
        own: list[Option] = []
        mine: list[tuple[int, ...]] = []
        for place, replicas in enumerate(members):
            if place == 0 or members[place - 1] in tight:
                built = _ways_of(kind, ways, per_neighbour, replicas, times)
                mine.append(tuple(range(len(own), len(own) + len(built))))
                own += built
            else:
                mine.append(mine[-1])
        options.append(tuple(own))
        chosen.append(mine)
    spaces = tuple(
        Space(replicas=replicas, options=tuple(mine[place] for mine in chosen))
        for place, replicas in enumerate(members)
    )
    least = np.minimum(*(way.need for way in ways if way.frames == 1))
    return tuple(options), spaces, least


def per_neighbour_bytes(segments: Segments) -> Table:
    """What one more neighbour on either side costs. The owner is one, at the model's two ends."""
    arriving, leaving = segments.in_message_bytes, segments.out_message_bytes
    before = np.where(segments.from_start, 0.0, record_bytes(arriving))
    after = np.where(segments.to_end, 0.0, record_bytes(leaving))
    table: Table = before + after
    return table


def _tight_at(
    kind: DeviceType, ways: list[_Way], per_neighbour: Table, ahead: Table, most: int
) -> set[int]:
    """Numbers of neighbours below ``most`` beyond which some segment no longer fits, or no longer
    with room for weights that are decrypted ahead."""
    found: set[int] = set()
    budget = memory_for(kind.units[0])
    for way in ways if most > 1 else ():
        for row in range(0, len(per_neighbour), _ROWS):
            at = (slice(row, row + _ROWS), slice(row + 1, None))
            spares = [budget - way.need[at]]
            if way.mode == "streamed" and prefetches(kind):
                spares.append(spares[0] - ahead[at])
            for spare in spares:
                binds = kind.allowed[at] & (spare >= 0) & (spare < (most - 1) * per_neighbour[at])
                if binds.any():
                    fitting = 1 + np.floor_divide(spare[binds], per_neighbour[at][binds])
                    found.update(int(number) for number in np.unique(fitting))
    return found


class _PassTimes:
    """Seconds of every segment on devices of a type; sums over blocks are computed once."""

    def __init__(self, segments: Segments) -> None:
        self.segments = segments
        self._known: dict[tuple[object, ...], Table] = {}

    def seconds(
        self,
        kind: DeviceType,
        way: _Way,
        frames: int,
        compute_s: Table,
        at: tuple[slice, slice],
        *,
        prefetch: bool,
    ) -> Table:
        """Of some segments, per frame, in passes of ``frames`` frames of the way's most.

        Record buffers of further neighbours take from the weights that stay, which is neglected: a
        MiB each is decrypted in less than a millisecond.
        """
        segments, speed = self.segments, kind.speed
        streamed = calls = np.zeros((1, 1))
        if way.mode == "streamed":
            spare = memory_for(kind.units[0]) - way.need[at]
            if prefetch:
                spare -= segments.ahead_bytes[at]
            streamed = streamed_bytes(segments.weight_bytes[at], spare)
            calls = segments.calls(way.frames, frames, at)
        base_s = stage_s(
            in_bytes=segments.in_bytes[at],
            out_bytes=segments.out_bytes[at],
            pass_compute_s=compute_s[at],
            stream_bytes=streamed,
            calls=calls,
            frames=frames,
            rates=speed.rates,
            prefetch=prefetch,
        )
        return speed.scale * base_s + speed.owner_share_s

    def compute_s(self, speed: Speed, frames: int) -> Table:
        """Of a pass through every segment, computing alone."""
        key = (speed.compute_s, frames)
        if key not in self._known:
            self._known[key] = self.segments.compute_s(frames, speed.compute_s)
        return self._known[key]


def _ways_of(
    kind: DeviceType, ways: list[_Way], per_neighbour: Table, neighbours: int, times: _PassTimes
) -> tuple[Option, ...]:
    """Resident where it fits, else streamed; and streamed where its period is shorter."""
    shape = per_neighbour.shape
    by_mode = {mode: _empty_option(shape, mode) for mode in MODES}
    for way in ways:
        full_s, alone_s = (times.compute_s(kind.speed, n) for n in (way.frames, 1))
        for ahead in (False, True) if way.mode == "streamed" and prefetches(kind) else (False,):
            option = by_mode[way.mode]
            for row in range(0, shape[0], _ROWS):
                # Longer segments end later: what is left of the diagonal means nothing.
                at = (slice(row, row + _ROWS), slice(row + 1, None))
                need = way.need[at] + (neighbours - 1) * per_neighbour[at]
                if ahead:
                    need += times.segments.ahead_bytes[at]
                fits = kind.allowed[at] & (need <= memory_for(kind.units[0]))
                period_s = times.seconds(kind, way, way.frames, full_s, at, prefetch=ahead)
                better = fits & (period_s < option.period_s[at])
                latency_s = times.seconds(kind, way, 1, alone_s, at, prefetch=ahead)
                np.copyto(option.period_s[at], period_s, where=better)
                np.copyto(option.latency_s[at], latency_s, where=better)
                np.copyto(option.frames[at], np.int8(way.frames), where=better)
                np.copyto(option.prefetch[at], ahead, where=better)
    return _merge(by_mode["resident"], by_mode["streamed"])


def memory_for(unit: Device) -> int:
    """Of a device, less what its threads beyond the first take."""
    return unit.memory_bytes - more_threads_bytes(unit.cores)


def prefetches(kind: DeviceType) -> bool:
    """Whether devices have a core to decrypt weights on while another one computes."""
    return kind.units[0].cores > 1


def _empty_option(shape: tuple[int, ...], mode: Mode) -> Option:
    return Option(
        latency_s=np.full(shape, np.inf),
        period_s=np.full(shape, np.inf),
        frames=np.zeros(shape, dtype=np.int8),
        streamed=np.full(shape, mode == "streamed"),
        prefetch=np.zeros(shape, dtype=np.bool_),
    )


def _merge(resident: Option, streamed: Option) -> tuple[Option, ...]:
    """One option where either dominates; a second only where streaming is slower alone but
    faster in a pipeline, because its larger passes fit."""
    fits = np.isfinite(resident.latency_s)
    first = Option(
        latency_s=np.where(fits, resident.latency_s, streamed.latency_s),
        period_s=np.where(fits, resident.period_s, streamed.period_s),
        frames=np.where(fits, resident.frames, streamed.frames),
        streamed=~fits,
        prefetch=~fits & streamed.prefetch,
    )
    rival = fits & (streamed.period_s < resident.period_s)
    if not rival.any():
        return (first,)
    second = Option(
        latency_s=np.where(rival, streamed.latency_s, np.inf),
        period_s=np.where(rival, streamed.period_s, np.inf),
        frames=streamed.frames,
        streamed=streamed.streamed,
        prefetch=streamed.prefetch,
    )
    return (first, second)
