"""Devices by type: which ones can be exchanged, how fast they are, and what they may see.

Devices are of one type when exchanging them changes nothing: same speed, memory and trust, and the
same links to everybody. The search counts devices by type, and replicas of a stage are of one type.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vaultline.core.cluster import Cluster, Device
from vaultline.core.errors import InputError
from vaultline.core.profile import DeviceRates, ModelProfile
from vaultline.core.program import Isa
from vaultline.cost.segments import Segments
from vaultline.cost.time import owner_share_s
from vaultline.planner.settings import Release


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What is known of how fast devices of a class are.

    Attributes:
        compute_s: per block, (frames, seconds of the whole pass).
        scale: how many times longer all of it takes; 1 for what was measured on the class itself.
        owner_share_s: what the device loses to the owner for each frame, where they share cores.
        estimated: nobody measured the class; its times are another one's, scaled.
    """

    compute_s: tuple[tuple[tuple[int, float], ...], ...]
    rates: DeviceRates
    isa: Isa
    scale: float = 1.0
    owner_share_s: float = 0.0
    estimated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceType:
    """Interchangeable devices, and per segment whether they may run it."""

    units: tuple[Device, ...]
    speed: Speed
    allowed: NDArray[np.bool_]


def speed_class(device: Device) -> str:
    """The class that says how fast a device is."""
    return device.speed_class or device.kind


def device_speed(profile: ModelProfile, device: Device) -> Speed:
    """Measured times of the device's class, else scaled ones, else the recording host's.

    Raises:
        InputError: the cluster names a speed class that the profile does not have.
    """
    name = speed_class(device)
    measured = profile.class_named(name)
    if measured is not None:
        return Speed(compute_s=measured.compute_s, rates=measured.rates, isa=measured.isa)
    scale = profile.class_scale.get(name)
    own = profile.recorded_on.device_class
    if scale is None and device.speed_class not in ("", own):
        known = sorted({own, *profile.class_scale, *(each.name for each in profile.classes)})
        raise InputError(
            f"device {device.name} is of a speed class that the profile lacks",
            got=name,
            expected="one of " + ", ".join(known),
            remedy="profile the model on such a device and merge the profiles, or drop "
            "`speed_class` to plan as if it were the recording host",
        )
    return Speed(
        compute_s=tuple(block.compute_s for block in profile.blocks),
        rates=profile.rates,
        isa=profile.isa,
        scale=1.0 if scale is None else scale,
        estimated=scale is not None,
    )


def link_rate(
    profile: ModelProfile, cluster: Cluster, source: str, target: str
) -> tuple[float, float]:
    """Bytes per second and latency between two hosts; within one, the profile's loopback."""
    found = cluster.link(source, target) or profile.loopback
    return found.bytes_per_s, found.latency_s


def device_types(
    segments: Segments, cluster: Cluster, units: Sequence[Device], release: Release
) -> tuple[DeviceType, ...]:
    """The given devices by type, in their order."""
    profile = segments.profile
    return tuple(
        DeviceType(
            units=tuple(group),
            speed=replace(
                device_speed(profile, group[0]),
                owner_share_s=owner_share(profile, cluster, group[0], units),
            ),
            allowed=_allowed(segments, group[0], release),
        )
        for group in group_units(profile, cluster, units)
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


def owner_share(
    profile: ModelProfile, cluster: Cluster, device: Device, units: Sequence[Device]
) -> float:
    """Seconds that a device loses to the owner for each frame."""
    if device.host != cluster.owner:
        return 0.0
    host = next(host for host in cluster.hosts if host.name == cluster.owner)
    used = sum(unit.cores for unit in units if unit.host == cluster.owner)
    return owner_share_s(profile.owner_s, host_cores=host.cores, device_cores=used)


def _traits(device: Device) -> tuple[object, ...]:
    return (
        speed_class(device),
        device.kind,
        device.trust,
        device.memory_bytes,
        device.cores,
        device.portable,
    )


def _exchangeable(
    profile: ModelProfile, cluster: Cluster, a: Device, b: Device, units: Sequence[Device]
) -> bool:
    """Whether swapping two devices leaves every cost and every link as it was."""

    def link(source: str, target: str) -> tuple[float, float]:
        return link_rate(profile, cluster, source, target)

    shares = [owner_share(profile, cluster, device, units) for device in (a, b)]
    if _traits(a) != _traits(b) or shares[0] != shares[1]:
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
