"""The servers of a cluster file: each of its enclaves is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vaultline.core.cluster import Cluster
from vaultline.core.errors import InputError
from vaultline.core.hostline import Start
from vaultline.core.plan import DeviceKind
from vaultline.owner.deploy import share_cores
from vaultline.owner.starting import Place, places_of, start_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSpec:
    """A server to start.

    Attributes:
        cores: runs at the same time.
        memory_bytes: protected memory.
        cpus: of this machine, that its host and its worker may use; empty for any.
        kind: of enclave; another kind is not granted anything.
        place: where it is, and how it is started there.
    """

    name: str
    cores: int
    memory_bytes: int
    cpus: tuple[int, ...] = ()
    kind: DeviceKind = "simulated"
    place: Place = field(default_factory=Place)

    def __post_init__(self) -> None:
        if not self.name or self.cores < 1 or self.memory_bytes < 1:
            raise InputError("a server has a name, a core and some memory", got=str(self))

    def start(self, platform_file: Path | None) -> Start:
        """How its worker is started.

        Raises:
            InputError: nothing says how.
        """
        return start_of(self.name, self.kind, self.place, platform_file=platform_file)


def servers_of(cluster: Cluster, cpus: Sequence[int] | None = None) -> list[ServerSpec]:
    """A server for each enclave, on cores of its own where there are enough.

    Args:
        cpus: of this machine, to be taken in turn; by default all that this process may use.

    Raises:
        InputError: a device that is no enclave.
    """
    specs, shares = [], share_cores([device.cores for device in cluster.units], cpus)
    places = places_of(cluster)
    for device, share in zip(cluster.units, shares, strict=True):
        if device.kind == "accelerator":
            raise InputError(
                f"no server can be started on device {device.name}",
                got=f"kind: {device.kind}",
                expected="kind: simulated, sgx, tdx or snp",
                remedy="leave the device out: requests go to enclaves only",
            )
        specs.append(
            ServerSpec(
                name=device.name,
                cores=device.cores,
                memory_bytes=device.memory_bytes,
                cpus=share,
                kind=device.kind,
                place=places[device.host],
            )
        )
    return specs
