from __future__ import annotations

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from vaultline.cli.cluster import schema_text
from vaultline.core.cluster import HOSTS_MAX, Cluster, ClusterError
from vaultline.core.cluster_file import cluster_schema, parse_cluster
from vaultline.core.errors import InputError

ROOT = Path(__file__).parents[3]
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


def test_a_link_may_state_its_way_back() -> None:
    text = GOOD.replace("latency: 5ms}", "latency: 5ms, back: 1Gbit/s}")
    assert parse_cluster(text, "c.yaml") == parse_cluster(
        GOOD.replace("latency: 5ms}", "latency: 5ms, one_way: true}")
        + ONE_WAY.replace("one_way", "latency: 5ms, one_way"),
        "c.yaml",
    )


SITES = """\
owner: door
sites:
  - {name: street}
  - {name: rack, bandwidth: 10Gbit/s, latency: 100us}
hosts:
  - {name: door, site: street, cores: 4, memory: 8GiB}
  - {name: r1, site: rack, cores: 4, memory: 8GiB}
  - {name: r2, site: rack, cores: 4, memory: 8GiB}
devices:
  - {name: a, host: r1, kind: simulated, trust: attested, memory: 93MiB}
  - {name: b, host: r2, kind: simulated, trust: attested, memory: 93MiB}
links:
  - {source: street, target: rack, bandwidth: 30Mbit/s, back: 100Mbit/s, latency: 5ms}
"""


def mbit(cluster: Cluster, source: str, target: str) -> float:
    link = cluster.link(source, target)
    assert link is not None
    return link.bytes_per_s * 8 / 1e6


def test_a_link_between_sites_holds_for_all_their_hosts() -> None:
    cluster = parse_cluster(SITES, "c.yaml")
    assert cluster.sites == ("street", "rack")
    assert mbit(cluster, "door", "r1") == mbit(cluster, "door", "r2") == 30
    assert mbit(cluster, "r1", "door") == mbit(cluster, "r2", "door") == 100


def test_a_sites_own_network_is_between_its_hosts_and_not_within_one() -> None:
    cluster = parse_cluster(SITES, "c.yaml")
    assert mbit(cluster, "r1", "r2") == mbit(cluster, "r2", "r1") == 10_000
    assert cluster.link("r1", "r1") is None


def test_the_closest_link_holds() -> None:
    to_site = "  - {source: door, target: rack, bandwidth: 40Mbit/s}\n"
    to_host = "  - {source: door, target: r2, bandwidth: 50Mbit/s, one_way: true}\n"
    cluster = parse_cluster(SITES + to_site + to_host, "c.yaml")
    assert mbit(cluster, "door", "r1") == 40
    assert mbit(cluster, "door", "r2") == 50
    assert mbit(cluster, "r2", "door") == 40


def test_a_link_of_a_host_with_itself_replaces_the_loopback() -> None:
    loop = "  - {source: r1, target: r1, bandwidth: 1Gbit/s}\n"
    assert mbit(parse_cluster(SITES + loop, "c.yaml"), "r1", "r1") == 1000


def test_hosts_and_sites_with_nothing_on_them_are_warned_of() -> None:
    text = SITES.replace("  - {name: street}\n", "  - {name: street}\n  - {name: moon}\n")
    text = text.replace("host: r2,", "host: r1,")
    assert parse_cluster(text, "c.yaml").warnings() == (
        "host r2 has no devices, and the owner is elsewhere",
        "site moon has no hosts",
    )


#: Case -> (what is replaced, by what, the line that is named, words of the message).
BAD = {
    "an unknown field": ("memory: 93MiB}", "memory: 93MiB, epc: 1}", 6, "unknown field `epc`"),
    "a unit that does not exist": ("93MiB", "93MiBit", 6, "not a size"),
    "a bad latency": ("5ms", "soon", 10, "not a duration"),
    "a device on an unknown host": ("host: edge-box", "host: moon", 6, "unknown host"),
    "two devices of one name": ("name: gpu", "name: edge", 8, "two devices have one name"),
    "a name that a counted device takes": (
        "name: gpu",
        "name: vm-1",
        8,
        "two devices have one name",
    ),
    "two hosts of one name": ("name: cloud,", "name: edge-box,", 4, "two hosts have one name"),
    "a name that a partition could not spell": ("name: gpu", "name: 'g@u'", 8, "not a device name"),
    "an owner nowhere": ("owner: edge-box", "owner: moon", 1, "unknown host"),
    "a missing link": ("links:\n  -", "links: []\n#", 4, "no link from host"),
    "a missing way back": ("latency: 5ms", "one_way: true", 4, "no link from host cloud"),
    "a link to nowhere": ("target: cloud", "target: moon", 10, "unknown host"),
    "more memory than the host has": ("93MiB", "93GiB", 6, "that much memory"),
    "no memory": ("93MiB", "0MiB", 6, "that much memory"),
    "more cores than the host has": ("cores: 2}", "cores: 20}", 7, "that many cores"),
    "fewer cores than one": ("cores: 2}", "cores: -1}", 7, "that many cores"),
    "a host without cores": ("cores: 16", "cores: 0", 4, "no cores or no memory"),
    "no devices of a kind": ("count: 2", "count: 0", 7, "impossible count"),
    "a negative count": ("count: 2", "count: -2", 7, "impossible count"),
    "more devices than there can be": ("count: 2", "count: 4095", 8, "too many devices"),
    "a kind that does not exist": ("kind: accelerator", "kind: magic", 8, "magic"),
    "an accelerator that claims trust": (
        "trust: none",
        "trust: attested",
        8,
        "trust that its kind cannot have",
    ),
    "no bandwidth": ("30Mbit/s", "0Mbit/s", 10, "bandwidth above zero"),
    "no bandwidth back": ("latency: 5ms", "back: 0", 10, "bandwidth above zero"),
    "a way back of a link that has none": (
        "latency: 5ms",
        "one_way: true, back: 1Gbit/s",
        10,
        "no way back",
    ),
    "a site that is nowhere": ("memory: 64GiB}", "memory: 64GiB, site: x}", 4, "unknown site"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_in_words_with_its_line(case: str) -> None:
    old, new, line, message = BAD[case]
    refused(GOOD, old, new, line, message)


BAD_SITES = {
    "a site that has a host's name": ("name: street", "name: r1", 3, "name is taken"),
    "two sites of one name": ("{name: street}", "{name: rack}", 4, "name is taken"),
    "a site without a name": ("{name: street}", "{name: ''}", 3, "not a host or site name"),
    "hosts of one site without a network": (
        ", bandwidth: 10Gbit/s, latency: 100us}",
        "}",
        8,
        "no link from host r1 to host r2",
    ),
    "a site's network without bandwidth": ("10Gbit/s", "0", 4, "bandwidth above zero"),
    "a site's network with a bad latency": ("100us", "soon", 4, "not a duration"),
    "a network of a site that is stated as a link too": (
        "  - {source: street",
        "  - {source: rack, target: rack, bandwidth: 1Gbit/s}\n  - {source: street",
        4,
        "given twice",
    ),
    "a link from a site to nowhere": ("target: rack", "target: moon", 13, "unknown host or site"),
    "two links that hold equally": (
        "  - {source: street",
        "  - {source: door, target: rack, bandwidth: 1Gbit/s, one_way: true}\n"
        "  - {source: street, target: r2, bandwidth: 1Gbit/s, one_way: true}\n"
        "  - {source: street",
        14,
        "two links hold equally",
    ),
}


@pytest.mark.parametrize("case", BAD_SITES)
def test_bad_sites_are_refused_in_words_with_their_line(case: str) -> None:
    old, new, line, message = BAD_SITES[case]
    refused(SITES, old, new, line, message)


def refused(good: str, old: str, new: str, line: int, message: str) -> None:
    assert old in good
    with pytest.raises(InputError) as caught:
        parse_cluster(good.replace(old, new), "c.yaml")
    assert caught.value.message.startswith(f"c.yaml:{line}:")
    assert message in caught.value.diagnostics()


@pytest.mark.parametrize(
    "text, line",
    {
        "no hosts": ("owner: a\nhosts: []\ndevices: []\n", 2),
        "no devices": ("owner: a\nhosts:\n- {name: a, cores: 1, memory: 1}\n\ndevices: []\n", 5),
    }.values(),
)
def test_a_cluster_of_nothing_is_refused(text: str, line: int) -> None:
    with pytest.raises(InputError, match=rf"c\.yaml:{line}: .*at least one host and one device"):
        parse_cluster(text, "c.yaml")


def test_a_missing_network_of_a_site_says_how_to_add_it() -> None:
    text = SITES.replace(", bandwidth: 10Gbit/s, latency: 100us}", "}")
    with pytest.raises(InputError) as caught:
        parse_cluster(text, "c.yaml")
    assert "give site rack a `bandwidth:`" in caught.value.diagnostics()


def test_a_link_given_twice_is_refused() -> None:
    with pytest.raises(InputError, match=r"c\.yaml:11: a link is given twice"):
        parse_cluster(GOOD + ONE_WAY, "c.yaml")


def test_too_many_hosts_are_refused_before_their_pairs_are_looked_at() -> None:
    more = "".join(f"  - {{name: h{k}, cores: 1, memory: 1GiB}}\n" for k in range(HOSTS_MAX))
    with pytest.raises(InputError, match="too many hosts"):
        parse_cluster(GOOD.replace("devices:\n", more + "devices:\n"), "c.yaml")


def test_a_cluster_made_in_code_is_held_to_the_same_rules() -> None:
    good = parse_cluster(SITES, "c.yaml")
    with pytest.raises(ClusterError) as caught:
        replace(good, links=())
    assert caught.value.place == ("hosts", 1)
    assert caught.value.exit_code == 2


def test_the_published_schema_is_the_codes() -> None:
    path = ROOT / "docs/schemas/cluster.schema.json"
    assert path.read_text() == schema_text(), (
        f"run: vaultline cluster schema > {path.relative_to(ROOT)}"
    )


def test_every_field_of_the_schema_is_described() -> None:
    definitions = cluster_schema()["$defs"]
    for name in ("SiteEntry", "HostEntry", "DeviceEntry", "LinkEntry"):
        for field, kind in definitions[name]["properties"].items():
            assert kind.get("description"), f"{name}.{field}"
    assert "pattern" in json.dumps(definitions)


EXAMPLES = sorted((ROOT / "examples/clusters").glob("*.yaml"))


def test_the_examples_that_the_documentation_names_are_there() -> None:
    assert {path.stem for path in EXAMPLES} >= {
        "one-box",
        "two-sgx1-boxes",
        "edge-and-cloud",
        "enclave-and-gpu",
        "four-unequal-enclaves",
    }


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_valid(path: Path) -> None:
    text = path.read_text()
    assert parse_cluster(text, path.name).warnings() == ()
    schema = text.splitlines()[0].partition("$schema=")[2]
    assert (path.parent / schema).resolve() == ROOT / "docs/schemas/cluster.schema.json"
