"""How the worker of each device is started: by its kind and by what is known of its host."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from vaultline.attest.sgx_quote import Platform
from vaultline.core.cluster import Cluster
from vaultline.core.control import ProviderName
from vaultline.core.errors import InputError
from vaultline.core.hostline import Start
from vaultline.core.plan import DeviceKind
from vaultline.core.serde import from_json

Transport = Literal["unix", "tcp"]
_HARDWARE: Mapping[str, ProviderName] = {"sgx": "gramine", "tdx": "tdx", "snp": "snp"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a host of the plan is, and how workers come to be there.

    Attributes:
        bind: the address that its workers listen on, for TCP.
        netns: a network namespace of this machine that stands for another machine.
        gramine: folder with the manifest that its workers run under; None for plain processes.
        launch: where a connection starts a worker; None for this machine.
        vaults: folder of sealed models there, with ``launch``.
    """

    bind: str = "127.0.0.1"
    netns: str | None = None
    gramine: str | None = None
    launch: str | None = None
    vaults: str | None = None

    def vault(self, vault: Path) -> str:
        """A sealed model's path where the worker runs."""
        if self.vaults is None:
            return str(vault.absolute())
        return str(PurePosixPath(self.vaults) / vault.name)


def parse_place(text: str) -> tuple[str, Place]:
    """Read ``HOST=ADDRESS`` or ``HOST=ADDRESS%NETNS``.

    Raises:
        InputError: not of that form.
    """
    host, equals, rest = text.partition("=")
    address, _, netns = rest.partition("%")
    if not (host and equals and address):
        raise InputError("not a place", got=text, expected="HOST=ADDRESS or HOST=ADDRESS%NETNS")
    return host, Place(bind=address, netns=netns or None)


def places_of(cluster: Cluster) -> dict[str, Place]:
    """What a cluster file says of where its hosts are and how workers are started there."""
    return {
        host.name: Place(
            bind=host.address or Place().bind,
            gramine=host.gramine or None,
            launch=host.launch or None,
            vaults=host.vaults or None,
        )
        for host in cluster.hosts
    }


def merge_places(known: Mapping[str, Place], stated: Mapping[str, Place]) -> dict[str, Place]:
    """Addresses as stated, everything else as known."""
    return {**known} | {
        host: replace(known.get(host, place), bind=place.bind, netns=place.netns)
        for host, place in stated.items()
    }


def check_platform(path: Path) -> None:
    """Read a simulated platform's file as its worker will, for a better message than it can send.

    Raises:
        InputError: there is no such file, or it holds no platform.
    """
    remedy = "name one with --platform; `vaultline policy dev` makes one"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            "cannot read the simulated platform", got=f"{path}: {error.strerror}", remedy=remedy
        ) from error
    from_json(data, Platform, what="the simulated platform", remedy=remedy)


def start_of(
    name: str,
    kind: DeviceKind,
    place: Place,
    *,
    platform_file: Path | None,
    accelerator_key: Path | None = None,
) -> Start:
    """How a device's worker is started, and who makes its evidence: never a fallback.

    Args:
        name: the device's, for messages.

    Raises:
        InputError: its kind takes a file or a way to start it that nobody named.
    """
    if kind in _HARDWARE:
        return _hardware(name, kind, place)
    if kind == "simulated":
        file = platform_file
        message = f"simulated device {name} has no platform"
        remedy = "name one with --platform; `vaultline policy dev` makes one"
    else:
        file = accelerator_key
        message = f"accelerator {name} has no key"
        remedy = "name one with --accelerator-key; `vaultline policy accelerator` makes one"
    if file is None:
        raise InputError(message, remedy=remedy)
    provider: Literal["simulated", "pinned"] = "simulated" if kind == "simulated" else "pinned"
    path = str(file.absolute())
    if kind == "accelerator" and place.gramine is not None:
        place = replace(place, gramine=None)  # no enclave: nothing would vouch for it anyway
    return Start(provider=provider, platform_file=path, gramine=place.gramine, at=place.launch)


def _hardware(name: str, kind: DeviceKind, place: Place) -> Start:
    """A worker whose evidence the processor makes."""
    if kind == "sgx" and place.gramine is None and place.launch is None:
        raise InputError(
            f"nothing says how the SGX worker of device {name} is started",
            got="neither `gramine:` nor `launch:` of its host",
            expected="the folder of a signed manifest, or where a connection starts a worker",
            remedy="render it with `vaultline deploy gramine`, name the folder as `gramine:` of "
            "the host in the cluster file, and that file with --cluster",
        )
    if kind != "sgx" and place.gramine is not None:
        raise InputError(
            f"device {name} can't run under Gramine",
            got=f"kind: {kind}, gramine: {place.gramine}",
            expected="kind: sgx, or simulated for a manifest of --mode direct",
            remedy="put devices of other kinds on a host of their own in the cluster file",
        )
    return Start(provider=_HARDWARE[kind], gramine=place.gramine, at=place.launch)


def transport_for(starts: Iterable[Start], asked: Transport | None) -> Transport:
    """Sockets between places: Unix ones on one machine, unless some worker can't use them.

    Raises:
        InputError: they were asked for, and can't be used.
    """
    needing = sum(start.needs_tcp for start in starts)
    if needing and asked == "unix":
        raise InputError(
            "workers under Gramine or on other machines can't be reached over Unix sockets",
            got=f"--transport unix, {needing} such workers",
            expected="--transport tcp",
        )
    return asked or ("tcp" if needing else "unix")
