"""The cluster file: YAML in a person's units, into a checked cluster, with the line of a mistake.

The classes are the file's own shape, and so are their descriptions: the schema that editors use
is made from them (``vaultline cluster schema``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from vaultline.core.cluster import Cluster, ClusterError, Device, Host, Link, Trust, check_rate
from vaultline.core.errors import InputError
from vaultline.core.plan import DeviceKind
from vaultline.core.serde import Struct
from vaultline.core.units import parse_bytes, parse_bytes_per_s, parse_seconds
from vaultline.core.yaml import from_yaml, line_of

#: Device memory in the file: as much as the host has.
UNLIMITED = "unlimited"
SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"

_AT_LEAST_ONE = {"minimum": 1}
Name = Annotated[
    str,
    Meta(description="A name of its own.", extra_json_schema={"pattern": "^[^@,: \\t\\n]+$"}),
]
Size = Annotated[
    str | int,
    Meta(description="Bytes, or text such as 93MiB or 8GiB.", examples=["93MiB", "8GiB"]),
]
Rate = Annotated[
    str | float,
    Meta(description="Text such as 30Mbit/s; a number is bytes/s.", examples=["30Mbit/s"]),
]
Duration = Annotated[
    str | float, Meta(description="Text such as 5ms; a number is seconds.", examples=["5ms"])
]


class SiteEntry(Struct, frozen=True):
    """A place where hosts stand: an edge, a rack, a cloud region."""

    name: Name
    bandwidth: Annotated[
        Rate | None,
        Meta(description="Between each two hosts of the site, unless a link says else."),
    ] = None
    latency: Annotated[Duration, Meta(description="One way, between two hosts of the site.")] = 0.0

    def __post_init__(self) -> None:
        latency_s = parse_seconds(self.latency)
        if self.bandwidth is not None:
            check_rate(parse_bytes_per_s(self.bandwidth), latency_s, f"within {self.name}")


class HostEntry(Struct, frozen=True):
    """A machine."""

    name: Name
    cores: Annotated[
        int,
        Meta(description="That devices may use together.", extra_json_schema=_AT_LEAST_ONE),
    ]
    memory: Annotated[Size, Meta(description="That devices share.")]
    site: Annotated[str, Meta(description="Where it stands: one of `sites`.")] = ""
    address: Annotated[
        str, Meta(description="What its workers listen on, for TCP; 127.0.0.1 by default.")
    ] = ""
    gramine: Annotated[
        str,
        Meta(
            description="Folder of `vaultline deploy gramine`: its workers run under Gramine, "
            "`sgx` by gramine-sgx, `simulated` by gramine-direct."
        ),
    ] = ""
    launch: Annotated[
        str,
        Meta(
            description="Where a connection starts a worker, in a confidential VM or a container; "
            "on this machine by default.",
            examples=["vsock:3:7000", "tcp:10.0.0.5:7000"],
        ),
    ] = ""
    vaults: Annotated[str, Meta(description="Folder of sealed models there, with `launch`.")] = ""

    def __post_init__(self) -> None:
        parse_bytes(self.memory)


class DeviceEntry(Struct, frozen=True):
    """A place on a host where a stage can run, or `count` of the same."""

    name: Annotated[
        Name, Meta(description="A name of its own; with a count of 2, NAME-0 and NAME-1.")
    ]
    host: Annotated[str, Meta(description="The host that it is on.")]
    kind: Annotated[
        DeviceKind,
        Meta(description="What vouches for it; nothing does for an `accelerator`, CPU or GPU."),
    ]
    memory: Annotated[
        Size, Meta(description="Protected memory of each, or `unlimited`: that of the host.")
    ]
    trust: Annotated[
        Trust,
        Meta(description="`none` for accelerators: they see only what a policy releases."),
    ]
    cores: Annotated[
        int, Meta(description="Of the host, for each device.", extra_json_schema=_AT_LEAST_ONE)
    ] = 1
    count: Annotated[
        int, Meta(description="How many of the same.", extra_json_schema=_AT_LEAST_ONE)
    ] = 1
    speed_class: Annotated[
        str, Meta(description="The class of a profile that it is as fast as; its kind by default.")
    ] = ""
    portable: Annotated[
        bool, Meta(description="Give it programs that are not tied to an instruction set.")
    ] = False

    def __post_init__(self) -> None:
        if self.memory != UNLIMITED:
            parse_bytes(self.memory)


class LinkEntry(Struct, frozen=True):
    """The way between two hosts, or between all hosts of sites; both directions by default."""

    source: Annotated[str, Meta(description="A host or a site.")]
    target: Annotated[str, Meta(description="A host or a site.")]
    bandwidth: Annotated[Rate, Meta(description="From source to target.")]
    latency: Annotated[Duration, Meta(description="One way, each way.")] = 0.0
    back: Annotated[Rate | None, Meta(description="From target to source, where that differs.")] = (
        None
    )
    one_way: Annotated[bool, Meta(description="Only from source to target.")] = False

    def __post_init__(self) -> None:
        latency_s = parse_seconds(self.latency)
        text = f"{self.source} -> {self.target}"
        check_rate(parse_bytes_per_s(self.bandwidth), latency_s, text)
        if self.back is None:
            return
        check_rate(parse_bytes_per_s(self.back), latency_s, f"{text}, back")
        if self.one_way or self.source == self.target:
            raise InputError(
                "a link that has no way back has a bandwidth for it",
                got=f"{text}, back: {self.back}",
                remedy="remove `back:`, or `one_way:`",
            )


class ClusterFile(Struct, frozen=True):
    """Where the stages of a model can run, and what lies between."""

    owner: Annotated[str, Meta(description="The host that sends the frames and takes the results.")]
    hosts: tuple[HostEntry, ...]
    devices: tuple[DeviceEntry, ...]
    links: tuple[LinkEntry, ...] = ()
    sites: tuple[SiteEntry, ...] = ()


def parse_cluster(text: str, path: str) -> Cluster:
    """Read a cluster file.

    Args:
        text: the YAML.
        path: the file's name, for messages.

    Raises:
        InputError: not YAML, an unknown field, or an inconsistent cluster; the message starts
            with ``path:line:``.
    """
    file = from_yaml(text, ClusterFile, what="the cluster file", path=path)
    hosts = tuple(
        Host(
            name=entry.name,
            cores=entry.cores,
            memory_bytes=parse_bytes(entry.memory),
            site=entry.site,
            address=entry.address,
            gramine=entry.gramine,
            launch=entry.launch,
            vaults=entry.vaults,
        )
        for entry in file.hosts
    )
    memory_bytes = {host.name: host.memory_bytes for host in hosts}
    placed = _links(file)
    try:
        return Cluster(
            owner=file.owner,
            hosts=hosts,
            devices=tuple(_device(entry, memory_bytes) for entry in file.devices),
            links=tuple(link for _, link in placed),
            sites=tuple(entry.name for entry in file.sites),
        )
    except ClusterError as error:
        place = error.place
        if place[:1] == ("links",):
            place = (*placed[int(place[1])][0], *place[2:])
        raise InputError(
            f"{path}:{line_of(text, place)}: {error.message}",
            got=error.got,
            expected=error.expected,
            remedy=error.remedy,
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


def _links(file: ClusterFile) -> Sequence[tuple[tuple[str | int, ...], Link]]:
    """Every direction of every link, with its place in the file; then sites within."""
    made: list[tuple[tuple[str | int, ...], Link]] = []
    for k, entry in enumerate(file.links):
        ends = entry.source, entry.target
        made.append((("links", k), _link(*ends, entry.bandwidth, entry.latency)))
        if not entry.one_way and entry.source != entry.target:
            back = entry.bandwidth if entry.back is None else entry.back
            made.append((("links", k), _link(*ends[::-1], back, entry.latency)))
    for k, site in enumerate(file.sites):
        if site.bandwidth is not None:
            within = _link(site.name, site.name, site.bandwidth, site.latency)
            made.append((("sites", k), within))
    return made


def _link(source: str, target: str, bandwidth: str | float, latency: str | float) -> Link:
    return Link(
        source=source,
        target=target,
        bytes_per_s=parse_bytes_per_s(bandwidth),
        latency_s=parse_seconds(latency),
    )


def cluster_schema() -> dict[str, Any]:
    """The JSON Schema of cluster files, for editors and other tools."""
    return {"$schema": SCHEMA_DIALECT, "title": "cluster file", **msgspec.json.schema(ClusterFile)}
