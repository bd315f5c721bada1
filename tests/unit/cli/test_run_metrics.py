"""Numbers for a monitor: their names, where they are served, and addresses that are none."""

from __future__ import annotations

import socket
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from vaultline.bench.cutting import cut_plan
from vaultline.cli.run_metrics import (
    StageCollector,
    memory_rows,
    parse_address,
    serving,
    worker_uses,
)
from vaultline.core.control import StageMetrics
from vaultline.core.errors import InputError
from vaultline.core.plan import Plan
from vaultline.graph.model import load_model

DIGITS = Path(__file__).parents[3] / "examples" / "digits" / "digits.onnx"

LABELS = ("stage", "replica", "device", "kind")
FIRST = StageMetrics(
    budget_bytes=1000,
    held_bytes={"resident": 300, "tile": 0, "idle": 600},
    peak_bytes={"resident": 300, "tile": 500, "idle": 600},
    streamed_bytes=12_000,
    passes=7,
)
SECOND = StageMetrics(budget_bytes=2000, swapped_pages=11, evicted_pages=13)


@dataclass
class Said:
    """What a session has heard of its workers."""

    worker_frames: tuple[int, ...] = ()
    worker_metrics: tuple[StageMetrics, ...] = ()


@pytest.fixture(scope="module")
def plan() -> Plan:
    """A stage, and another one of two replicas."""
    return cut_plan(load_model(DIGITS), [23], replicas=[1, 2])


def scraped(address: str) -> dict[tuple[str, ...], float]:
    """Every sample by its name and its labels' values."""
    with urllib.request.urlopen(address, timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, *(sample.labels[label] for label in LABELS if label in sample.labels)): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_monitor_reads_what_each_worker_last_said(plan: Plan) -> None:
    collector = StageCollector(plan)
    session: Any = Said()
    with serving("127.0.0.1:0", collector) as address:
        assert scraped(address) == {}, "before a session"
        collector.watch(session)
        assert scraped(address) == {}, "before a worker has said anything"
        session.worker_frames, session.worker_metrics = (28, 3, 4), (FIRST, SECOND, SECOND)
        found = scraped(address)
        session.worker_frames = (29, 3, 4)
        assert scraped(address)["vaultline_frames_total", "0", "0", "enclave-0"] == 29
    one, other = ("0", "0", "enclave-0"), ("1", "1", "enclave-1-1")
    assert {key: value for key, value in found.items() if key[1:4] == one} == {
        ("vaultline_memory_bytes", *one, "resident"): 300,
        ("vaultline_memory_bytes", *one, "tile"): 0,
        ("vaultline_memory_bytes", *one, "idle"): 600,
        ("vaultline_memory_peak_bytes", *one, "resident"): 300,
        ("vaultline_memory_peak_bytes", *one, "tile"): 500,
        ("vaultline_memory_peak_bytes", *one, "idle"): 600,
        ("vaultline_memory_budget_bytes", *one): 1000,
        ("vaultline_streamed_bytes_total", *one): 12_000,
        ("vaultline_frames_total", *one): 28,
        ("vaultline_passes_total", *one): 7,
        ("vaultline_swapped_pages_total", *one): 0,
        ("vaultline_evicted_pages_total", *one): 0,
    }
    assert found["vaultline_swapped_pages_total", *other] == 11
    assert found["vaultline_evicted_pages_total", *other] == 13
    assert found["vaultline_frames_total", *other] == 4


def test_nobody_listens_after_the_run(plan: Plan) -> None:
    with serving("127.0.0.1:0", StageCollector(plan)) as address:
        port = int(address.split(":")[2].split("/")[0])
        scraped(address)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=10).close()


def test_the_summary_says_what_was_used_of_the_budget(plan: Plan) -> None:
    session: Any = Said((28, 3, 4), (FIRST, SECOND, SECOND))
    rows = memory_rows(worker_uses(plan, session))
    assert [(row["stage"], row["replica"], row["device"]) for row in rows] == [
        (0, 0, "enclave-0"),
        (1, 0, "enclave-1-0"),
        (1, 1, "enclave-1-1"),
    ]
    assert rows[0]["held_bytes"] == 900
    assert rows[0]["budget_bytes"] == 1000
    assert rows[0]["peak_bytes"]["tile"] == 500
    assert (rows[0]["streamed_bytes"], rows[0]["passes"]) == (12_000, 7)
    nobody: Any = Said()
    assert memory_rows(worker_uses(plan, nobody)) == []


ADDRESSES = {
    "127.0.0.1:9464": ("127.0.0.1", 9464),
    "localhost:0": ("localhost", 0),
    "[::1]:80": ("::1", 80),
    "0.0.0.0:65535": ("0.0.0.0", 65535),
}


@pytest.mark.parametrize("text", ADDRESSES)
def test_addresses(text: str) -> None:
    assert parse_address(text) == ADDRESSES[text]


WRONG = {
    "nothing": "",
    "no port": "127.0.0.1",
    "an empty port": "127.0.0.1:",
    "no host": ":9464",
    "empty brackets": "[]:9464",
    "a port too large": "127.0.0.1:65536",
    "a port much too large": "127.0.0.1:" + "9" * 5000,
    "a negative port": "127.0.0.1:-1",
    "a port in words": "127.0.0.1:http",
    "a port in other digits": "127.0.0.1:٩٤٦٤",
    "an IPv6 address without brackets": "::1:9464",
    "a URL": "http://127.0.0.1:9464",
    "half a bracket": "[::1:9464",
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_address_is_refused(case: str) -> None:
    with pytest.raises(InputError, match="not an address") as caught:
        parse_address(WRONG[case])
    assert caught.value.expected


@pytest.mark.parametrize(
    "host", ["192.0.2.1", "no-such-host.invalid", "a" * 300, "with space", "\x00"]
)
def test_an_address_of_another_machine_is_refused(host: str, plan: Plan) -> None:
    with (
        pytest.raises(InputError, match="metrics") as caught,
        serving(f"{host}:0", StageCollector(plan)),
    ):
        pass
    assert caught.value.got


def test_a_port_in_use_is_refused(plan: Plan) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(InputError, match="can't be served") as caught,
            serving(f"127.0.0.1:{port}", StageCollector(plan)),
        ):
            pass
    assert caught.value.remedy
