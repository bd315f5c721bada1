"""How the worker of each kind of device is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from vaultline.core.cluster_file import parse_cluster
from vaultline.core.errors import InputError
from vaultline.core.hostline import Start
from vaultline.core.plan import DeviceKind
from vaultline.owner.starting import (
    Place,
    merge_places,
    parse_place,
    places_of,
    start_of,
    transport_for,
)

FILE = Path("/trust/file.json")
HERE, GRAMINE = Place(), Place(gramine="/opt/worker")
AWAY = Place(bind="10.0.0.5", launch="vsock:3:7000", vaults="/vaults")
RIGHT: dict[str, tuple[DeviceKind, Place, Start]] = {
    "a simulated enclave is a process": (
        "simulated",
        HERE,
        Start(provider="simulated", platform_file=str(FILE)),
    ),
    "or one under gramine-direct": (
        "simulated",
        GRAMINE,
        Start(provider="simulated", platform_file=str(FILE), gramine="/opt/worker"),
    ),
    "SGX is under gramine-sgx": ("sgx", GRAMINE, Start(provider="gramine", gramine="/opt/worker")),
    "or on a machine that has it": ("sgx", AWAY, Start(provider="gramine", at="vsock:3:7000")),
    "a trust domain is elsewhere": ("tdx", AWAY, Start(provider="tdx", at="vsock:3:7000")),
    "or here, where this is one": ("tdx", HERE, Start(provider="tdx")),
    "so is a SEV-SNP guest": ("snp", AWAY, Start(provider="snp", at="vsock:3:7000")),
    "an accelerator is a process": (
        "accelerator",
        GRAMINE,
        Start(provider="pinned", platform_file=str(FILE)),
    ),
}


@pytest.mark.parametrize("case", RIGHT)
def test_each_kind_has_its_provider_and_its_way(case: str) -> None:
    kind, place, expected = RIGHT[case]
    found = start_of("d", kind, place, platform_file=FILE, accelerator_key=FILE)
    assert found == expected
    under = kind == "sgx" or found.gramine is not None
    assert found.platform == ("gramine" if under else "process")
    assert found.needs_tcp == (under or place is AWAY)


WRONG: dict[str, tuple[DeviceKind, Place, str]] = {
    "SGX without a manifest": ("sgx", HERE, "nothing says how"),
    "TDX under Gramine": ("tdx", GRAMINE, "can't run under Gramine"),
    "a simulated enclave without its platform": ("simulated", HERE, "has no platform"),
    "an accelerator without its key": ("accelerator", HERE, "has no key"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_nobody_said_is_not_guessed(case: str) -> None:
    kind, place, message = WRONG[case]
    with pytest.raises(InputError, match=message) as caught:
        start_of("d", kind, place, platform_file=None)
    assert caught.value.remedy


def test_no_hardware_gets_a_simulated_platform() -> None:
    for kind in ("sgx", "tdx", "snp"):
        place = GRAMINE if kind == "sgx" else AWAY
        start = start_of("d", kind, place, platform_file=FILE)  # type: ignore[arg-type]
        assert start.platform_file is None
        assert start.provider != "simulated"


def test_two_ways_at_once_are_none() -> None:
    with pytest.raises(InputError, match="not both"):
        Start(provider="gramine", gramine="/opt/worker", at="vsock:3:7000")
    with pytest.raises(InputError, match="without a manifest"):
        Start(provider="gramine")


def test_unix_sockets_are_for_processes_of_this_machine() -> None:
    process, elsewhere = Start(provider="tdx"), Start(provider="tdx", at="vsock:3:7000")
    assert transport_for([process], None) == "unix"
    assert transport_for([process], "tcp") == "tcp"
    assert transport_for([process, elsewhere], None) == "tcp"
    with pytest.raises(InputError, match="Unix sockets"):
        transport_for([process, elsewhere], "unix")


CLUSTER = """
owner: box
hosts:
  - {name: box, cores: 1, memory: 1GiB, gramine: /opt/worker}
  - {name: vm, cores: 1, memory: 1GiB, address: 10.0.0.5, launch: "vsock:3:7000", vaults: /vaults}
devices:
  - {name: a, host: vm, kind: tdx, trust: attested, memory: 93MiB}
links: [{source: box, target: vm, bandwidth: 1Gbit/s}]
"""


def test_a_cluster_file_says_where_and_how() -> None:
    places = places_of(parse_cluster(CLUSTER, "c.yaml"))
    assert places == {"box": GRAMINE, "vm": AWAY}
    assert places["vm"].vault(Path("there/model.vault")) == "/vaults/model.vault"
    assert places["box"].vault(Path("/there/model.vault")) == "/there/model.vault"


def test_a_stated_address_goes_before_the_file_s_and_changes_nothing_else() -> None:
    merged = merge_places(
        {"vm": AWAY}, dict([parse_place("vm=10.0.0.9"), parse_place("x=1.2.3.4")])
    )
    assert merged["vm"] == Place(bind="10.0.0.9", launch="vsock:3:7000", vaults="/vaults")
    assert merged["x"] == Place(bind="1.2.3.4")


BAD = {
    "no address": ("address: 10.0.0.5, ", ""),
    "no folder of models": (", vaults: /vaults", ""),
    "no launch": ('launch: "vsock:3:7000", ', ""),
    "no such address": ("vsock:3:7000", "somewhere"),
    "two ways": ("vaults: /vaults", "vaults: /vaults, gramine: /opt/worker"),
}


@pytest.mark.parametrize("case", BAD)
def test_half_a_machine_is_refused_with_its_line(case: str) -> None:
    old, new = BAD[case]
    with pytest.raises(InputError, match=r"c.yaml:5: "):
        parse_cluster(CLUSTER.replace(old, new), "c.yaml")
