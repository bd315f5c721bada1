from __future__ import annotations

import json
from pathlib import Path

import pytest

from vaultline.core.cluster import cluster_schema, parse_cluster
from vaultline.core.errors import InputError

GOOD = """\
owner: edge-box
hosts:
  - {name: edge-box, cores: 4, memory: 8GiB}
  - {name: cloud, cores: 16, memory: 64GiB}
devices:
  - {name: edge, host: edge-box, kind: simulated, trust: attested, memory: 93MiB}
  - {name: vm, host: cloud, kind: simulated, trust: attested, memory: 1GiB, count: 2, cores: 2}
  - {name: gpu, host: cloud, kind: accelerator, trust: none, memory: unlimited}
links:
  - {source: edge-box, target: cloud, bandwidth: 30Mbit/s, latency: 5ms}
"""


def test_units_become_bytes_and_seconds_and_links_hold_both_ways() -> None:
    cluster = parse_cluster(GOOD, "c.yaml")
    assert [unit.name for unit in cluster.units] == ["edge", "vm-0", "vm-1", "gpu"]
    assert cluster.units[0].memory_bytes == 93 << 20
    assert cluster.units[3].memory_bytes == 64 << 30
    for pair in (("edge-box", "cloud"), ("cloud", "edge-box")):
        link = cluster.link(*pair)
        assert link is not None
        assert (link.bytes_per_s, link.latency_s) == (30e6 / 8, 0.005)
    assert cluster.link("cloud", "cloud") is None
    assert cluster.warnings() == ()


def test_a_host_that_is_asked_for_more_than_it_has_is_warned_of() -> None:
    text = GOOD.replace("memory: 1GiB, count: 2, cores: 2", "memory: 40GiB, count: 2, cores: 9")
    assert parse_cluster(text, "c.yaml").warnings() == (
        "devices on host cloud use 19 cores of 16",
        "devices on host cloud use 80.0 GiB of memory of 64.0 GiB",
    )


ONE_WAY = "  - {source: cloud, target: edge-box, bandwidth: 1Gbit/s, one_way: true}\n"


def test_a_link_may_differ_by_direction() -> None:
    text = GOOD.replace("latency: 5ms}", "latency: 5ms, one_way: true}") + ONE_WAY
    cluster = parse_cluster(text, "c.yaml")
    back = cluster.link("cloud", "edge-box")
    assert back is not None
    assert back.bytes_per_s == 1e9 / 8


BAD = {
    "an unknown field, with its line": ("memory: 93MiB}", "memory: 93MiB, epc: 1}", "c.yaml:6"),
    "a unit that does not exist, with its line": ("93MiB", "93MiBit", "c.yaml:6"),
    "a bad latency, with its line": ("5ms", "soon", "c.yaml:10"),
    "a device on an unknown host": ("host: edge-box", "host: moon", "unknown host"),
    "two devices of one name": ("name: gpu", "name: edge", "two devices have one name"),
    "a name that a counted device takes": ("name: gpu", "name: vm-1", "two devices have one name"),
    "two hosts of one name": ("name: cloud,", "name: edge-box,", "two hosts have one name"),
    "a name that a partition could not spell": ("name: gpu", "name: 'g@u'", "not a device name"),
    "an owner nowhere": ("owner: edge-box", "owner: moon", "unknown host"),
    "a missing link": ("links:\n  -", "links: []\n#", "no link from host"),
    "a link to nowhere": ("target: cloud", "target: moon", "unknown host"),
    "more memory than the host has": ("93MiB", "93GiB", "that much memory"),
    "more cores than the host has": ("cores: 2}", "cores: 20}", "that many cores"),
    "no devices of a kind": ("count: 2", "count: 0", "impossible count"),
    "a kind that does not exist": ("kind: accelerator", "kind: magic", "c.yaml:8"),
    "an accelerator that claims trust": (
        "trust: none",
        "trust: attested",
        "trust that its kind cannot have",
    ),
    "no bandwidth": ("30Mbit/s", "0Mbit/s", "bandwidth above zero"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_in_words(case: str) -> None:
    old, new, message = BAD[case]
    assert old in GOOD
    with pytest.raises(InputError) as caught:
        parse_cluster(GOOD.replace(old, new), "c.yaml")
    assert message in caught.value.message
    assert "c.yaml" in caught.value.message


def test_a_link_given_twice_is_refused() -> None:
    with pytest.raises(InputError, match="given twice"):
        parse_cluster(GOOD + ONE_WAY, "c.yaml")


def test_the_schema_names_every_field_of_the_file() -> None:
    text = json.dumps(cluster_schema())
    for field in ("owner", "hosts", "memory", "speed_class", "one_way", "bandwidth"):
        assert f'"{field}"' in text


EXAMPLES = sorted((Path(__file__).parents[3] / "examples/clusters").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_valid(path: Path) -> None:
    assert parse_cluster(path.read_text(), path.name).warnings() == ()
