"""A cluster: hosts, the devices on them, the links between them, and where the owner sits.

The file speaks in units (``93MiB``, ``30Mbit/s``, ``5ms``); the structs here in bytes and seconds.
"""

from __future__ import annotations

from math import inf
from typing import Any, Literal

import msgspec

from vaultline.core.errors import InputError
from vaultline.core.plan import DeviceKind
from vaultline.core.profile import RATE_MIN, TIME_S_MAX
from vaultline.core.serde import Struct
from vaultline.core.units import format_bytes, parse_bytes, parse_bytes_per_s, parse_seconds
from vaultline.core.yaml import from_yaml

Trust = Literal["attested", "none"]
#: Device memory in the file: as much as the host has.
UNLIMITED = "unlimited"
#: Single devices of one cluster, counted ones expanded: the largest simulated cluster has 1,000.
DEVICES_MAX = 4096


class Host(Struct, frozen=True):
    """A machine: cores and memory that its devices share."""

    name: str
    cores: int
    memory_bytes: int


class Device(Struct, frozen=True):
    """``count`` identical places on one host where a stage can run.

    Attributes:
        trust: ``attested`` devices may hold secrets once their evidence has been appraised;
            ``none`` see only what a policy releases.
        memory_bytes: protected memory of each; the host's memory where the file says ``unlimited``.
        cores: threads that the engine may use on each: this device's share of the host.
        speed_class: whose time scale of the profile applies; the device's kind by default.
        portable: give it programs that are not tied to an instruction set.
    """

    name: str
    host: str
    kind: DeviceKind
    trust: Trust
    memory_bytes: int
    cores: int
    count: int = 1
    speed_class: str = ""
    portable: bool = False


class Link(Struct, frozen=True):
    """From one host to another, in this direction."""

    source: str
    target: str
    bytes_per_s: float
    latency_s: float


class Cluster(Struct, frozen=True):
    """A checked cluster. Every two hosts that may talk have a link in both directions.

    Attributes:
        owner: the host from which frames are sent and to which results return.
    """

    owner: str
    hosts: tuple[Host, ...]
    devices: tuple[Device, ...]
    links: tuple[Link, ...]

    def __post_init__(self) -> None:
        _check_counts(self)
        _check_names(self)
        _check_devices(self)
        _check_links(self)

    @property
    def units(self) -> tuple[Device, ...]:
        """Every single device: ``edge`` with count 2 becomes ``edge-0`` and ``edge-1``."""
        return tuple(unit for device in self.devices for unit in _units(device))

    def link(self, source: str, target: str) -> Link | None:
        """The link between two hosts; None on one host unless the file states one."""
        for link in self.links:
            if (link.source, link.target) == (source, target):
                return link
        return None

    def warnings(self) -> tuple[str, ...]:
        """Hosts whose devices together ask for more than there is: predictions will be too low."""
        found = []
        for host in self.hosts:
            here = [device for device in self.devices if device.host == host.name]
            cores = sum(device.cores * device.count for device in here)
            memory = sum(
                device.memory_bytes * device.count
                for device in here
                if device.memory_bytes < host.memory_bytes
            )
            if cores > host.cores:
                found.append(f"devices on host {host.name} use {cores} cores of {host.cores}")
            if memory > host.memory_bytes:
                found.append(
                    f"devices on host {host.name} use {format_bytes(memory)} of memory "
                    f"of {format_bytes(host.memory_bytes)}"
                )
        return tuple(found)


def _units(device: Device) -> tuple[Device, ...]:
    if device.count == 1:
        return (device,)
    return tuple(
        msgspec.structs.replace(device, name=f"{device.name}-{index}", count=1)
        for index in range(device.count)
    )


def _check_counts(cluster: Cluster) -> None:
    """Before anything expands counted devices into single ones."""
    for device in cluster.devices:
        if not 1 <= device.count <= DEVICES_MAX:
            raise InputError(
                f"device {device.name} has an impossible count",
                got=str(device.count),
                expected=f"1 to {DEVICES_MAX}",
            )
    total = sum(device.count for device in cluster.devices)
    if total > DEVICES_MAX:
        raise InputError(
            "the cluster has too many devices", got=str(total), expected=f"at most {DEVICES_MAX}"
        )


def _check_names(cluster: Cluster) -> None:
    """Names are unique, also after counted devices have been expanded; the owner's host exists."""
    if not cluster.hosts or not cluster.devices:
        raise InputError("a cluster needs at least one host and one device")
    for what, names in (
        ("host", [host.name for host in cluster.hosts]),
        ("device", [unit.name for unit in cluster.units]),
    ):
        seen: set[str] = set()
        for name in names:
            if name in seen:
                raise InputError(
                    f"two {what}s have one name",
                    got=name,
                    expected="a name of its own for each",
                    remedy=f"rename one of them, or give one {what} and a `count`"
                    if what == "device"
                    else "rename one of them",
                )
            seen.add(name)
            if not name or any(sign in name for sign in "@,: \t\n"):
                raise InputError(f"not a {what} name", got=repr(name), expected="no @ , : or space")
    known = {host.name for host in cluster.hosts}
    if cluster.owner not in known:
        raise InputError(
            "the owner is on an unknown host",
            got=cluster.owner,
            expected="one of " + ", ".join(sorted(known)),
        )


def _check_devices(cluster: Cluster) -> None:
    """Each device is on a known host and asks for no more than that host has."""
    hosts = {host.name: host for host in cluster.hosts}
    for host in cluster.hosts:
        if host.cores < 1 or host.memory_bytes < 1:
            raise InputError(f"host {host.name} has no cores or no memory")
    for device in cluster.devices:
        if device.host not in hosts:
            raise InputError(
                f"device {device.name} is on an unknown host",
                got=device.host,
                expected="one of " + ", ".join(sorted(hosts)),
                remedy="add the host under `hosts:` or correct the device's `host:`",
            )
        host = hosts[device.host]
        if not 1 <= device.cores <= host.cores:
            raise InputError(
                f"device {device.name} cannot have that many cores",
                got=str(device.cores),
                expected=f"1 to {host.cores}, the cores of host {host.name}",
            )
        if not 1 <= device.memory_bytes <= host.memory_bytes:
            raise InputError(
                f"device {device.name} cannot have that much memory",
                got=format_bytes(device.memory_bytes),
                expected=f"at most {format_bytes(host.memory_bytes)}, that of host {host.name}",
            )
        if (device.kind == "accelerator") != (device.trust == "none"):
            raise InputError(
                f"device {device.name} has a trust that its kind cannot have",
                got=f"kind: {device.kind}, trust: {device.trust}",
                expected="trust: none for accelerators, which give no evidence, and only for them",
                remedy="write `kind: accelerator` for any worker that nothing vouches for",
            )


def _check_links(cluster: Cluster) -> None:
    """Links join known hosts, once, and every two hosts in use have one in each direction."""
    hosts = {host.name for host in cluster.hosts}
    seen: set[tuple[str, str]] = set()
    for link in cluster.links:
        pair = (link.source, link.target)
        text = f"{link.source} -> {link.target}"
        if not hosts.issuperset(pair):
            raise InputError("a link joins an unknown host", got=text)
        if pair in seen:
            raise InputError(
                "a link is given twice",
                got=text,
                remedy="links hold in both directions; write `one_way: true` where they differ",
            )
        if not (RATE_MIN <= link.bytes_per_s < inf and 0 <= link.latency_s <= TIME_S_MAX):
            raise InputError(
                "a link needs a bandwidth above zero and no negative latency", got=text
            )
        seen.add(pair)
    used = sorted({cluster.owner, *(device.host for device in cluster.devices)})
    for source in used:
        for target in used:
            if source != target and (source, target) not in seen:
                raise InputError(
                    f"there is no link from host {source} to host {target}",
                    remedy=f"add `- {{source: {source}, target: {target}, bandwidth: ..., "
                    "latency: ...}` under `links:`",
                )


class HostEntry(Struct, frozen=True):
    """A host as the file has it."""

    name: str
    cores: int
    memory: str | int

    def __post_init__(self) -> None:
        parse_bytes(self.memory)


class DeviceEntry(Struct, frozen=True):
    """A device as the file has it."""

    name: str
    host: str
    kind: DeviceKind
    memory: str | int
    trust: Trust
    cores: int = 1
    count: int = 1
    speed_class: str = ""
    portable: bool = False

    def __post_init__(self) -> None:
        if self.memory != UNLIMITED:
            parse_bytes(self.memory)


class LinkEntry(Struct, frozen=True):
    """A link as the file has it: both directions unless ``one_way``."""

    source: str
    target: str
    bandwidth: str | float
    latency: str | float = 0.0
    one_way: bool = False

    def __post_init__(self) -> None:
        parse_bytes_per_s(self.bandwidth)
        parse_seconds(self.latency)


class ClusterFile(Struct, frozen=True):
    """The file's own shape."""

    owner: str
    hosts: tuple[HostEntry, ...]
    devices: tuple[DeviceEntry, ...]
    links: tuple[LinkEntry, ...] = ()


def parse_cluster(text: str, path: str) -> Cluster:
    """Read a cluster file.

    Args:
        text: the YAML.
        path: the file's name, for messages.

    Raises:
        InputError: not YAML, an unknown field (with its line), or an inconsistent cluster.
    """
    file = from_yaml(text, ClusterFile, what="the cluster file", path=path)
    hosts = tuple(
        Host(name=entry.name, cores=entry.cores, memory_bytes=parse_bytes(entry.memory))
        for entry in file.hosts
    )
    memory_bytes = {host.name: host.memory_bytes for host in hosts}
    devices = tuple(_device(entry, memory_bytes) for entry in file.devices)
    links = tuple(link for entry in file.links for link in _links(entry))
    try:
        return Cluster(owner=file.owner, hosts=hosts, devices=devices, links=links)
    except InputError as error:
        message = f"{path}: {error.message}"
        raise InputError(
            message, got=error.got, expected=error.expected, remedy=error.remedy
        ) from error


def _device(entry: DeviceEntry, host_memory_bytes: dict[str, int]) -> Device:
    if entry.memory == UNLIMITED:
        memory_bytes = host_memory_bytes.get(entry.host, 1)
    else:
        memory_bytes = parse_bytes(entry.memory)
    return Device(
        name=entry.name,
        host=entry.host,
        kind=entry.kind,
        trust=entry.trust,
        memory_bytes=memory_bytes,
        cores=entry.cores,
        count=entry.count,
        speed_class=entry.speed_class,
        portable=entry.portable,
    )


def _links(entry: LinkEntry) -> tuple[Link, ...]:
    there = Link(
        source=entry.source,
        target=entry.target,
        bytes_per_s=parse_bytes_per_s(entry.bandwidth),
        latency_s=parse_seconds(entry.latency),
    )
    if entry.one_way or entry.source == entry.target:
        return (there,)
    return (there, msgspec.structs.replace(there, source=entry.target, target=entry.source))


def cluster_schema() -> dict[str, Any]:
    """The JSON Schema of cluster files, for editors and other tools."""
    return msgspec.json.schema(ClusterFile)
