"""From a profile and a cluster to tables: what every segment costs on every type of device.

Devices are of one type when exchanging them changes nothing: same cost, memory and trust, and the
same links to everybody. The search counts devices by type.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vaultline.core.cluster import Cluster, Device
from vaultline.core.errors import InputError
from vaultline.core.limits import FRAME_BYTES_MAX, MIB, STAGES_MAX
from vaultline.core.plan import LeakageMetric
from vaultline.core.profile import ModelProfile
from vaultline.cost.memory import resident_bytes, streamed_bytes, working_bytes
from vaultline.cost.segments import Segments, Table
from vaultline.cost.time import link_s, stage_s

Mode = Literal["resident", "streamed"]
MODES: tuple[Mode, Mode] = ("resident", "streamed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How stages are run, where the planner has a choice.

    Attributes:
        frames_per_pass_max: most frames of one pass; fewer where memory is short or nothing is won.
        step_bytes: wanted size of a step's weights when they are streamed.
        queue_passes: passes whose frames the input queue holds: one is computed, one arrives.
    """

    frames_per_pass_max: int = 4
    step_bytes: int = 4 * MIB
    queue_passes: int = 2

    def queue_frames(self, frames: int) -> int:
        """Buffers of the input queue for passes of so many frames."""
        return self.queue_passes * frames


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What devices of trust ``none`` may see; by default nothing.

    Input privacy and model privacy are two policies, because protecting one does not protect the
    other.

    Attributes:
        cuts: per candidate cut, whether the tensors that cross it may be seen.
        blocks: per block, whether its weights may be seen.
        leakage: per candidate cut, measured with ``metric``; what the plan then states.
        limit: the most that may leak.
    """

    cuts: tuple[bool, ...] = ()
    blocks: tuple[bool, ...] = ()
    leakage: tuple[float, ...] = ()
    metric: LeakageMetric = "reconstruction"
    limit: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way of running segments on a type of device.

    Attributes:
        latency_s: per segment, for a frame alone (passes of one frame); ``inf`` if not possible.
        period_s: per segment, seconds per frame of a busy stage in passes of ``frames``.
        frames: per segment, the frames of a pass that make the period least within the memory.
        streamed: per segment, whether weights are streamed.
    """

    latency_s: Table
    period_s: Table
    frames: NDArray[np.int8]
    streamed: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceType:
    """Interchangeable devices."""

    units: tuple[Device, ...]
    scale: float
    allowed: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Everything the search needs, in seconds.

    Attributes:
        options: per type, one or two ways of running each segment.
        entry_s: per type, the hop from the owner; exit_s: the hop back.
        link_s: ``[a, b, k]``: the hop from type a to type b with what crosses cut k.
        need_bytes: per segment, the least memory that any way of running it takes.
    """

    profile: ModelProfile
    cluster: Cluster
    segments: Segments
    types: tuple[DeviceType, ...]
    options: tuple[tuple[Option, ...], ...]
    entry_s: NDArray[np.float64]
    exit_s: NDArray[np.float64]
    link_s: NDArray[np.float64]
    need_bytes: Table
    settings: Settings = field(default_factory=Settings)

    @property
    def counts(self) -> tuple[int, ...]:
        """How many devices there are of each type."""
        return tuple(len(kind.units) for kind in self.types)


def link_rate(
    profile: ModelProfile, cluster: Cluster, source: str, target: str
) -> tuple[float, float]:
    """Bytes per second and latency between two hosts; within one, the profile's loopback."""
    found = cluster.link(source, target) or profile.loopback
    return found.bytes_per_s, found.latency_s


def device_scale(profile: ModelProfile, device: Device) -> float:
    """How many times longer work takes on a device than on the recording host.

    Raises:
        InputError: the cluster names a speed class that the profile does not have.
    """
    if device.speed_class and device.speed_class not in profile.class_scale:
        raise InputError(
            f"device {device.name} is of a speed class that the profile lacks",
            got=device.speed_class,
            expected="one of " + (", ".join(sorted(profile.class_scale)) or "none"),
            remedy="profile the model on such a device, or drop `speed_class`",
        )
    return profile.class_scale.get(device.speed_class or device.kind, 1.0)


def build_problem(
    profile: ModelProfile,
    cluster: Cluster,
    units: Sequence[Device],
    *,
    settings: Settings,
    release: Release,
    alone: bool = False,
) -> Problem:
    """Tabulate costs of all segments on all types of the given devices.

    Args:
        alone: plan for frames that travel alone (the latency objective): one frame a pass.
    """
    segments = Segments(profile, stages_max=min(len(units), STAGES_MAX))
    types = tuple(
        DeviceType(
            units=tuple(group),
            scale=device_scale(profile, group[0]),
            allowed=_allowed(segments, group[0], release),
        )
        for group in group_units(profile, cluster, units)
    )
    options, need = _options(
        segments, types, settings, 1 if alone else settings.frames_per_pass_max
    )
    entry, between, leave = _hops(profile, cluster, types)
    return Problem(
        profile=profile,
        cluster=cluster,
        segments=segments,
        types=types,
        options=options,
        entry_s=entry,
        exit_s=leave,
        link_s=between,
        need_bytes=need,
        settings=settings,
    )


def group_units(
    profile: ModelProfile, cluster: Cluster, units: Sequence[Device]
) -> list[list[Device]]:
    """Group devices that can be exchanged without changing anything, in their given order."""
    groups: list[list[Device]] = []
    for unit in units:
        for group in groups:
            if _exchangeable(profile, cluster, group[0], unit, units):
                group.append(unit)
                break
        else:
            groups.append([unit])
    return groups


def _exchangeable(
    profile: ModelProfile, cluster: Cluster, a: Device, b: Device, units: Sequence[Device]
) -> bool:
    """Whether swapping two devices leaves every cost and every link as it was."""

    def traits(device: Device) -> tuple[object, ...]:
        return (
            device_scale(profile, device),
            device.kind,
            device.trust,
            device.memory_bytes,
            device.cores,
            device.portable,
        )

    def link(source: str, target: str) -> tuple[float, float]:
        return link_rate(profile, cluster, source, target)

    if traits(a) != traits(b):
        return False
    if a.host == b.host:
        return True
    others = {unit.host for unit in units if unit is not a and unit is not b} | {cluster.owner}
    same_links = all(
        link(a.host, other) == link(b.host, other) and link(other, a.host) == link(other, b.host)
        for other in others
    )
    return same_links and link(a.host, b.host) == link(b.host, a.host)


def _allowed(segments: Segments, device: Device, release: Release) -> NDArray[np.bool_]:
    """Which segments a device may run.

    A device of trust ``none`` sees every tensor from its first cut to its last and every weight
    between, so all of them must have been released.
    """
    if device.trust == "attested":
        return segments.valid
    blocks = segments.blocks
    cuts = release.cuts or (False,) * (blocks + 1)
    weights = release.blocks or (False,) * blocks
    if (len(cuts), len(weights)) != (blocks + 1, blocks):
        raise InputError(
            "the release policy does not fit the profile",
            got=f"{len(cuts)} cuts and {len(weights)} blocks",
            expected=f"{blocks + 1} and {blocks}",
        )
    shown = [a and b and weight for (a, b), weight in zip(pairwise(cuts), weights, strict=True)]
    lengths = np.arange(1, blocks + 1)[:, None]
    whole: NDArray[np.bool_] = segments.count_true(shown) == lengths
    return segments.valid & whole


def _options(
    segments: Segments, types: Sequence[DeviceType], settings: Settings, frames_max: int
) -> tuple[tuple[tuple[Option, ...], ...], Table]:
    """Per type: resident where it fits, else streamed; and streamed where its period is shorter."""
    least_need = np.full(segments.valid.shape, np.inf)
    kept = {mode: kept_bytes(segments, mode, settings) for mode in MODES}
    by_mode: dict[Mode, list[Option]] = {}
    for mode in MODES:
        built = [_empty_option(segments, mode) for _ in types]
        for frames in range(1, frames_max + 1):
            need, base_s = _mode_tables(segments, mode, kept[mode], frames, settings)
            if frames == 1:
                np.minimum(least_need, need, out=least_need)
            for kind, option in zip(types, built, strict=True):
                _offer(option, kind, frames, need, base_s)
        by_mode[mode] = built
    pairs = zip(by_mode["resident"], by_mode["streamed"], strict=True)
    return tuple(_merge(resident, streamed) for resident, streamed in pairs), least_need


def _empty_option(segments: Segments, mode: Mode) -> Option:
    shape = segments.valid.shape
    return Option(
        latency_s=np.full(shape, np.inf),
        period_s=np.full(shape, np.inf),
        frames=np.zeros(shape, dtype=np.int8),
        streamed=np.full(shape, mode == "streamed"),
    )


def kept_bytes(segments: Segments, mode: Mode, settings: Settings) -> Table:
    """Tensors of a frame that wait between the steps of each segment."""
    stacked = segments.stacked_bytes()
    if mode == "resident":
        return stacked
    return stacked + segments.between_steps_bytes(settings.step_bytes)


def need_bytes(
    segments: Segments,
    mode: Mode,
    frames: int,
    queue_frames: int,
    settings: Settings,
    kept: Table | None = None,
) -> Table:
    """Memory that each segment needs; ``kept`` saves computing it again."""
    working = working_bytes(
        kept_bytes=kept_bytes(segments, mode, settings) if kept is None else kept,
        scratch_bytes=segments.scratch_bytes,
        in_bytes=segments.in_message_bytes,
        out_bytes=segments.out_message_bytes,
        frames=frames,
        queue_frames=queue_frames,
    )
    if mode == "resident":
        return resident_bytes(segments.weight_bytes, working)
    return streamed_bytes(segments.step_bytes(settings.step_bytes), working)


def _mode_tables(
    segments: Segments, mode: Mode, kept: Table, frames: int, settings: Settings
) -> tuple[Table, Table]:
    """Memory need, and seconds per frame on the recording host, of every segment."""
    queue_frames = settings.queue_frames(frames)
    need = need_bytes(segments, mode, frames, queue_frames, settings, kept)
    weights = segments.weight_bytes
    seconds = stage_s(
        in_bytes=segments.in_bytes,
        out_bytes=segments.out_bytes,
        pass_compute_s=segments.compute_s(frames),
        stream_bytes=weights if mode == "streamed" else np.zeros_like(weights),
        frames=frames,
        rates=segments.profile.rates,
    )
    return need, seconds


def _offer(option: Option, kind: DeviceType, frames: int, need: Table, base_s: Table) -> None:
    """Let a pass of ``frames`` frames compete for the shortest period of each segment."""
    fits = kind.allowed & (need <= kind.units[0].memory_bytes)
    seconds = np.where(fits, kind.scale * base_s, np.inf)
    if frames == 1:
        option.latency_s[:] = seconds
    better = seconds < option.period_s
    np.copyto(option.period_s, seconds, where=better)
    np.copyto(option.frames, np.int8(frames), where=better)


def _merge(resident: Option, streamed: Option) -> tuple[Option, ...]:
    """One option where either dominates; a second only where streaming is slower alone but
    faster in a pipeline, because its larger passes fit."""
    fits = np.isfinite(resident.latency_s)
    first = Option(
        latency_s=np.where(fits, resident.latency_s, streamed.latency_s),
        period_s=np.where(fits, resident.period_s, streamed.period_s),
        frames=np.where(fits, resident.frames, streamed.frames),
        streamed=~fits,
    )
    rival = fits & (streamed.period_s < resident.period_s)
    if not rival.any():
        return (first,)
    second = Option(
        latency_s=np.where(rival, streamed.latency_s, np.inf),
        period_s=np.where(rival, streamed.period_s, np.inf),
        frames=streamed.frames,
        streamed=streamed.streamed,
    )
    return (first, second)


def _hops(
    profile: ModelProfile, cluster: Cluster, types: Sequence[DeviceType]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Hop times from the owner, between types at each cut, and back to the owner."""
    crossing = np.array(profile.crossing_bytes, dtype=np.float64)
    # What is too large for one frame message cannot cross a cut.
    crossing[crossing > FRAME_BYTES_MAX] = np.inf

    def hop(source: str, target: str) -> NDArray[np.float64]:
        bytes_per_s, latency_s = link_rate(profile, cluster, source, target)
        return link_s(crossing, bytes_per_s=bytes_per_s, latency_s=latency_s)

    hosts = [kind.units[0].host for kind in types]
    between = [
        [hop(a, _host_after(types, row, column)) for column in range(len(types))]
        for row, a in enumerate(hosts)
    ]
    entry = [hop(cluster.owner, host)[0] for host in hosts]
    leave = [hop(host, cluster.owner)[-1] for host in hosts]
    return np.array(entry), np.array(between), np.array(leave)


def _host_after(types: Sequence[DeviceType], before: int, after: int) -> str:
    """Where a hop between types ends: within one, at its second device (all are linked alike)."""
    units = types[after].units
    return units[1 if before == after and len(units) > 1 else 0].host
