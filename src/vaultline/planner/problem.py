"""From a profile and a cluster to tables: what every segment costs on every type of device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vaultline.core.cluster import Cluster, Device
from vaultline.core.limits import FRAME_BYTES_MAX, STAGES_MAX
from vaultline.core.profile import ModelProfile
from vaultline.cost.segments import Segments, Table
from vaultline.cost.time import link_s
from vaultline.planner.devices import DeviceType, device_types, group_units, link_rate
from vaultline.planner.options import (
    Option,
    Space,
    build_options,
    memory_for,
    need_bytes,
    per_neighbour_bytes,
)
from vaultline.planner.settings import MODES, Mode, Release, Settings

__all__ = [
    "MODES",
    "DeviceType",
    "Mode",
    "Option",
    "Problem",
    "Release",
    "Settings",
    "Space",
    "build_problem",
    "group_units",
    "link_rate",
    "need_bytes",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Everything the search needs, in seconds.

    Attributes:
        options: per type, the ways of running each segment, in all spaces.
        spaces: what is searched, fewest replicas first; the last one has the most of them and the
            least memory, so that each may hold plans that the others don't.
        entry_s: per type, the hop from the owner; exit_s: the hop back.
        link_s: ``[a, b, k]``: the hop from type a to type b with what crosses cut k.
        need_bytes: per segment, the least memory that any way of running it takes, with one
            neighbour on each side.
    """

    profile: ModelProfile
    cluster: Cluster
    segments: Segments
    types: tuple[DeviceType, ...]
    options: tuple[tuple[Option, ...], ...]
    spaces: tuple[Space, ...]
    entry_s: NDArray[np.float64]
    exit_s: NDArray[np.float64]
    link_s: NDArray[np.float64]
    need_bytes: Table
    settings: Settings = field(default_factory=Settings)

    @property
    def counts(self) -> tuple[int, ...]:
        """How many devices there are of each type."""
        return tuple(len(kind.units) for kind in self.types)

    def least_need(self, start: int, end: int, unit: Device) -> int:
        """The least memory of a segment on a device, with as many neighbours as the last space
        allows."""
        at = (end - start - 1, end)
        further = self.spaces[-1].replicas - 1
        need = self.need_bytes[at] + further * per_neighbour_bytes(self.segments)[at]
        return int(need) + unit.memory_bytes - memory_for(unit)


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
    types = device_types(segments, cluster, units, release)
    frames_max = 1 if alone else settings.frames_per_pass_max
    options, spaces, need = build_options(segments, types, settings, frames_max=frames_max)
    entry, between, leave = _hops(profile, cluster, types)
    return Problem(
        profile=profile,
        cluster=cluster,
        segments=segments,
        types=types,
        options=options,
        spaces=spaces,
        entry_s=entry,
        exit_s=leave,
        link_s=between,
        need_bytes=need,
        settings=settings,
    )


def _hops(
    profile: ModelProfile, cluster: Cluster, types: Sequence[DeviceType]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Hop times from the owner, between types at each cut, and back to the owner.

    All frames of a hop share its link, however many replicas send or receive them.
    """
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
