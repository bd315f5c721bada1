"""The servers of a cluster file."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from vaultline.core.cluster import Cluster, Device, Host
from vaultline.core.errors import InputError
from vaultline.core.hostline import Start
from vaultline.core.plan import DeviceKind
from vaultline.serve.cluster import ServerSpec, servers_of

MIB = 1 << 20


def cluster(kind: DeviceKind = "simulated", cores: int = 1, count: int = 2) -> Cluster:
    return Cluster(
        owner="here",
        hosts=(Host(name="here", cores=4, memory_bytes=1 << 30),),
        devices=(
            Device(
                name="enclave",
                host="here",
                kind=kind,
                trust="none" if kind == "accelerator" else "attested",
                memory_bytes=93 * MIB,
                cores=cores,
                count=count,
            ),
        ),
        links=(),
    )


def test_each_simulated_device_is_a_server_on_cores_of_its_own() -> None:
    assert servers_of(cluster(cores=2), [0, 1, 2, 3]) == [
        ServerSpec(name="enclave-0", cores=2, memory_bytes=93 * MIB, cpus=(0, 1)),
        ServerSpec(name="enclave-1", cores=2, memory_bytes=93 * MIB, cpus=(2, 3)),
    ]


def test_cores_are_shared_where_there_are_too_few() -> None:
    found = servers_of(cluster(count=3), [4, 5])
    assert [spec.cpus for spec in found] == [(4,), (5,), (4,)]


def test_an_accelerator_is_no_server() -> None:
    with pytest.raises(InputError, match="no server can be started"):
        servers_of(cluster("accelerator"))


def test_a_server_in_hardware_is_started_as_its_host_says() -> None:
    known = cluster("sgx", count=1)
    (host,) = known.hosts
    here = replace(host, gramine="/opt/worker")
    (spec,) = servers_of(replace(known, hosts=(here,)), [0])
    assert spec.kind == "sgx"
    assert spec.start(None) == Start(provider="gramine", gramine="/opt/worker")
    (unknown,) = servers_of(known, [0])
    with pytest.raises(InputError, match="nothing says how the SGX worker"):
        unknown.start(None)


@pytest.mark.parametrize("change", [{"name": ""}, {"cores": 0}, {"memory_bytes": 0}])
def test_a_server_has_a_name_a_core_and_memory(change: dict[str, object]) -> None:
    right: dict[str, object] = {"name": "s", "cores": 1, "memory_bytes": 1}
    with pytest.raises(InputError):
        ServerSpec(**{**right, **change})  # type: ignore[arg-type]
