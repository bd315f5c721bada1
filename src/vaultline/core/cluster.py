"""A cluster: sites, hosts, the devices on them, the links between, and where the owner sits.

Bytes and seconds here; the file that people write, with its units, is ``core.cluster_file``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from itertools import permutations
from math import inf
from typing import Literal

import msgspec

from vaultline.core.errors import InputError
from vaultline.core.plan import DeviceKind
from vaultline.core.profile import RATE_MIN, TIME_S_MAX
from vaultline.core.serde import Struct
from vaultline.core.units import format_bytes

Trust = Literal["attested", "none"]
#: Single devices of one cluster, counted ones expanded: the largest simulated cluster has 1,000.
DEVICES_MAX = 4096
#: Every pair of them that is in use needs a link, and is looked up.
HOSTS_MAX = 1024
_LAUNCH = re.compile(r"tcp:[^\s]+:[1-9]\d{0,4}|vsock:\d{1,10}:\d{1,10}")


class ClusterError(InputError):
    """An inconsistent cluster.

    Attributes:
        place: the part that is wrong, as keys and indices: ``("devices", 1, "host")``.
    """

    def __init__(
        self,
        message: str,
        *,
        place: tuple[str | int, ...],
        got: str | None = None,
        expected: str | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(message, got=got, expected=expected, remedy=remedy)
        self.place = place


class Host(Struct, frozen=True):
    """A machine: cores and memory that its devices share.

    Attributes:
        site: where it stands; links may be stated between sites. Empty: nowhere in particular.
        address: that its workers listen on for TCP; empty for this machine's own.
        gramine: folder with the manifest that its workers run under; empty for plain processes.
        launch: where a connection starts a worker: ``tcp:HOST:PORT`` or ``vsock:CID:PORT``; empty
            for this machine.
        vaults: folder of sealed models on the machine that is connected to.
    """

    name: str
    cores: int
    memory_bytes: int
    site: str = ""
    address: str = ""
    gramine: str = ""
    launch: str = ""
    vaults: str = ""


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
    """From one host or site to another, in this direction.

    One that names a site holds for each of its hosts; from a site to itself, between each two.
    """

    source: str
    target: str
    bytes_per_s: float
    latency_s: float


class Cluster(Struct, frozen=True, dict=True):
    """A checked cluster. Every two hosts that may talk have a link in both directions.

    Attributes:
        owner: the host from which frames are sent and to which results return.
        sites: names of places where hosts stand.
    """

    owner: str
    hosts: tuple[Host, ...]
    devices: tuple[Device, ...]
    links: tuple[Link, ...]
    sites: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_counts(self)
        _check_names(self)
        _check_hosts(self)
        _check_devices(self)
        _check_links(self)
        _check_paths(self)

    @property
    def units(self) -> tuple[Device, ...]:
        """Every single device: ``edge`` with count 2 becomes ``edge-0`` and ``edge-1``."""
        return tuple(unit for device in self.devices for unit in _units(device))

    def link(self, source: str, target: str) -> Link | None:
        """The link between two hosts; None on one host unless the file states one.

        A link that names both hosts goes before one that names a host and a site, and that
        before one between sites.
        """
        numbers = self._candidates(source, target)
        return next((self.links[number] for number in numbers), None)

    def _candidates(self, source: str, target: str) -> Iterator[int]:
        """The links that hold for a pair of hosts, closest first."""
        here, there = self._site.get(source, ""), self._site.get(target, "")
        pairs = [(source, target)]
        if source != target:  # what holds for a site is the way between its hosts, not within one
            pairs += [(source, there), (here, target), (here, there)]
        return (self._numbers[pair] for pair in pairs if pair in self._numbers)

    @cached_property
    def _numbers(self) -> dict[tuple[str, str], int]:
        return {(link.source, link.target): k for k, link in enumerate(self.links)}

    @cached_property
    def _site(self) -> dict[str, str]:
        return {host.name: host.site for host in self.hosts}

    def warnings(self) -> tuple[str, ...]:
        """What is allowed and probably not meant.

        Hosts whose devices together ask for more than there is, so that predictions will be too
        low; hosts and sites with nothing on them.
        """
        return (*self._overbooked(), *self._idle())

    def _overbooked(self) -> Iterator[str]:
        for host in self.hosts:
            here = [device for device in self.devices if device.host == host.name]
            cores = sum(device.cores * device.count for device in here)
            memory = sum(
                device.memory_bytes * device.count
                for device in here
                if device.memory_bytes < host.memory_bytes
            )
            if cores > host.cores:
                yield f"devices on host {host.name} use {cores} cores of {host.cores}"
            if memory > host.memory_bytes:
                yield (
                    f"devices on host {host.name} use {format_bytes(memory)} of memory "
                    f"of {format_bytes(host.memory_bytes)}"
                )

    def _idle(self) -> Iterator[str]:
        used = {self.owner, *(device.host for device in self.devices)}
        for host in self.hosts:
            if host.name not in used:
                yield f"host {host.name} has no devices, and the owner is elsewhere"
        peopled = {host.site for host in self.hosts}
        for site in self.sites:
            if site not in peopled:
                yield f"site {site} has no hosts"


def _units(device: Device) -> tuple[Device, ...]:
    if device.count == 1:
        return (device,)
    return tuple(
        msgspec.structs.replace(device, name=f"{device.name}-{index}", count=1)
        for index in range(device.count)
    )


def _check_counts(cluster: Cluster) -> None:
    """Before anything expands counted devices into single ones, or pairs hosts."""
    if len(cluster.hosts) > HOSTS_MAX:
        raise ClusterError(
            "the cluster has too many hosts",
            place=("hosts", HOSTS_MAX),
            got=str(len(cluster.hosts)),
            expected=f"at most {HOSTS_MAX}",
        )
    total = 0
    for k, device in enumerate(cluster.devices):
        if not 1 <= device.count <= DEVICES_MAX:
            raise ClusterError(
                f"device {device.name} has an impossible count",
                place=("devices", k, "count"),
                got=str(device.count),
                expected=f"1 to {DEVICES_MAX}",
            )
        total += device.count
        if total > DEVICES_MAX:
            raise ClusterError(
                "the cluster has too many devices",
                place=("devices", k, "count"),
                got=f"more than {DEVICES_MAX}",
                expected=f"at most {DEVICES_MAX}",
            )


def _check_names(cluster: Cluster) -> None:
    """Names are unique, also after counted devices have been expanded; the owner's host exists."""
    for key, some in (("hosts", cluster.hosts), ("devices", cluster.devices)):
        if not some:
            raise ClusterError("a cluster needs at least one host and one device", place=(key,))
    units = [(k, unit.name) for k, device in enumerate(cluster.devices) for unit in _units(device)]
    _check_unique("device", "devices", units, set())
    hosts: set[str] = set()
    _check_unique("host", "hosts", [(k, host.name) for k, host in enumerate(cluster.hosts)], hosts)
    _check_unique("host or site", "sites", list(enumerate(cluster.sites)), set(hosts))
    if cluster.owner not in hosts:
        raise ClusterError(
            "the owner is on an unknown host",
            place=("owner",),
            got=cluster.owner,
            expected="one of " + ", ".join(sorted(hosts)),
        )


def _check_unique(what: str, key: str, names: list[tuple[int, str]], seen: set[str]) -> None:
    for k, name in names:
        field = () if key == "sites" else ("name",)
        if name in seen:
            raise ClusterError(
                f"two {what}s have one name" if key != "sites" else "a site's name is taken",
                place=(key, k, *field),
                got=name,
                expected="a name of its own for each",
                remedy="rename one of them, or give one device and a `count`"
                if what == "device"
                else "rename one of them",
            )
        seen.add(name)
        if not name or any(sign in name for sign in "@,: \t\n"):
            raise ClusterError(
                f"not a {what} name",
                place=(key, k, *field),
                got=repr(name),
                expected="no @ , : or space",
            )


def _check_hosts(cluster: Cluster) -> None:
    """Each host has something to share, and stands on a known site if on any."""
    for k, host in enumerate(cluster.hosts):
        if host.cores < 1 or host.memory_bytes < 1:
            raise ClusterError(f"host {host.name} has no cores or no memory", place=("hosts", k))
        if host.site and host.site not in cluster.sites:
            raise ClusterError(
                f"host {host.name} stands on an unknown site",
                place=("hosts", k, "site"),
                got=host.site,
                expected="one of " + (", ".join(sorted(cluster.sites)) or "none: there are none"),
                remedy=f"add `- {{name: {host.site}}}` under `sites:`, or correct `site:`",
            )
        _check_launch(host, k)


def _check_launch(host: Host, k: int) -> None:
    """Workers are started in one way, which says where their models are."""
    if host.launch and not _LAUNCH.fullmatch(host.launch):
        raise ClusterError(
            f"host {host.name} has no address where workers are started",
            place=("hosts", k, "launch"),
            got=host.launch,
            expected="tcp:HOST:PORT or vsock:CID:PORT",
        )
    if host.launch and host.gramine:
        raise ClusterError(
            f"workers of host {host.name} would be started in two ways",
            place=("hosts", k, "gramine"),
            remedy="`gramine:` starts them here; with `launch:` the machine there does, "
            "under its own Gramine if it is for SGX",
        )
    if (host.launch or host.vaults) and not (host.launch and host.vaults and host.address):
        raise ClusterError(
            f"host {host.name} is another machine in part only",
            place=("hosts", k, "launch" if host.launch else "vaults"),
            expected="`launch:`, `vaults:` and `address:` together",
            remedy="`launch:` is where a connection starts a worker, `vaults:` the folder of "
            "sealed models there, `address:` what its workers listen on",
        )


def _check_devices(cluster: Cluster) -> None:
    """Each device is on a known host and asks for no more than that host has."""
    hosts = {host.name: host for host in cluster.hosts}
    for k, device in enumerate(cluster.devices):
        if device.host not in hosts:
            raise ClusterError(
                f"device {device.name} is on an unknown host",
                place=("devices", k, "host"),
                got=device.host,
                expected="one of " + ", ".join(sorted(hosts)),
                remedy="add the host under `hosts:` or correct the device's `host:`",
            )
        host = hosts[device.host]
        if not 1 <= device.cores <= host.cores:
            raise ClusterError(
                f"device {device.name} cannot have that many cores",
                place=("devices", k, "cores"),
                got=str(device.cores),
                expected=f"1 to {host.cores}, the cores of host {host.name}",
            )
        if not 1 <= device.memory_bytes <= host.memory_bytes:
            raise ClusterError(
                f"device {device.name} cannot have that much memory",
                place=("devices", k, "memory"),
                got=format_bytes(device.memory_bytes),
                expected=f"at most {format_bytes(host.memory_bytes)}, that of host {host.name}",
            )
        if (device.kind == "accelerator") != (device.trust == "none"):
            raise ClusterError(
                f"device {device.name} has a trust that its kind cannot have",
                place=("devices", k, "trust"),
                got=f"kind: {device.kind}, trust: {device.trust}",
                expected="trust: none for accelerators, which give no evidence, and only for them",
                remedy="write `kind: accelerator` for any worker that nothing vouches for",
            )


def _check_links(cluster: Cluster) -> None:
    """Links join known hosts or sites, once, at a rate that exists."""
    ends = {*(host.name for host in cluster.hosts), *cluster.sites}
    seen: set[tuple[str, str]] = set()
    for k, link in enumerate(cluster.links):
        text = f"{link.source} -> {link.target}"
        for field, end in (("source", link.source), ("target", link.target)):
            if end not in ends:
                raise ClusterError(
                    "a link joins an unknown host or site",
                    place=("links", k, field),
                    got=text,
                    expected="two of " + ", ".join(sorted(ends)),
                )
        if (link.source, link.target) in seen:
            raise ClusterError(
                "a link is given twice",
                place=("links", k),
                got=text,
                remedy="links hold in both directions; write `back:` where they differ",
            )
        check_rate(link.bytes_per_s, link.latency_s, text, ("links", k))
        seen.add((link.source, link.target))


def check_rate(
    bytes_per_s: float, latency_s: float, link: str, place: tuple[str | int, ...] = ()
) -> None:
    """Refuse a link that would never deliver, or before it was asked.

    Raises:
        ClusterError: no bandwidth, or a latency below zero or beyond reason.
    """
    if not (RATE_MIN <= bytes_per_s < inf and 0 <= latency_s <= TIME_S_MAX):
        raise ClusterError(
            "a link needs a bandwidth above zero and no negative latency", place=place, got=link
        )


def _check_paths(cluster: Cluster) -> None:
    """Every two hosts in use have one link in each direction that is closer than all others."""
    used = {cluster.owner, *(device.host for device in cluster.devices)}
    places = {host.name: k for k, host in enumerate(cluster.hosts) if host.name in used}
    for source, target in permutations(places, 2):
        numbers = list(cluster._candidates(source, target))
        if not numbers:
            raise ClusterError(
                f"there is no link from host {source} to host {target}",
                place=("hosts", max(places[source], places[target])),
                remedy=_missing(cluster, source, target),
            )
        closest = [cluster.links[number] for number in numbers[:2]]
        if len(closest) == 2 and all(_is_mixed(cluster, link) for link in closest):
            one, other = (f"{link.source} -> {link.target}" for link in closest)
            raise ClusterError(
                f"two links hold equally from host {source} to host {target}",
                place=("links", max(numbers[:2])),
                got=f"{one} and {other}",
                remedy=f"add a link from {source} to {target} itself",
            )


def _is_mixed(cluster: Cluster, link: Link) -> bool:
    """From a host to a site, or from a site to a host."""
    return (link.source in cluster.sites) != (link.target in cluster.sites)


def _missing(cluster: Cluster, source: str, target: str) -> str:
    site = cluster._site[source]
    if site and site == cluster._site[target]:
        return f"give site {site} a `bandwidth:` and a `latency:`, which hold between its hosts"
    return (
        f"add `- {{source: {source}, target: {target}, bandwidth: ..., latency: ...}}` "
        "under `links:`, or one between their sites"
    )
