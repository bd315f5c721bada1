"""What a monitor reads of a gateway and its servers."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from vaultline.core.control import StageMetrics
from vaultline.sched.wire import ServerMetrics
from vaultline.serve.answers import Counters, Loss
from vaultline.serve.metrics import GatewayCollector
from vaultline.serve.status import GatewayStatus, ServerStatus

LABELS = ("server", "model", "kind")
WORKER = StageMetrics(budget_bytes=1000, streamed_bytes=5000, swapped_pages=3, evicted_pages=2)
METRICS = ServerMetrics(
    queued={"alexnet": 4, "vgg19": 0},
    held_bytes={"fixed": 10, "resident": 20, "workspace": 5, "carried": 1},
    runs=7,
    loads=2,
    evictions=1,
    answered=9,
    refused=3,
    missed_deadlines=1,
    busy_s={"alexnet": 1.5, "vgg19": 2.5},
    worker=WORKER,
)
STATUS = GatewayStatus(
    servers=(
        ServerStatus(
            name="a", cores=2, memory_bytes=1000, in_flight=4, backlog_s=0.75, metrics=METRICS
        ),
        ServerStatus(name="b", cores=1, memory_bytes=500, alive=False, metrics=METRICS),
    ),
    counters=Counters(
        submitted=40,
        answered=30,
        refused=4,
        failed=1,
        open=5,
        open_bytes=5000,
        moved=2,
        late=1,
        lost_servers=1,
    ),
    losses=(
        Loss(
            server="b",
            code="x",
            message="y",
            heard_s=99.5,
            lost_s=100.0,
            moved=2,
            recovered_s=100.0,
        ),
    ),
    decisions=42,
    decision_s=0.002,
)


def scraped(status: GatewayStatus) -> dict[tuple[str, ...], float]:
    """Every sample by its name and its labels' values."""
    registry = CollectorRegistry()
    registry.register(GatewayCollector(lambda: status))
    text = generate_latest(registry).decode()
    return {
        (sample.name, *(sample.labels[key] for key in LABELS if key in sample.labels)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_monitor_reads_each_server() -> None:
    found = scraped(STATUS)
    assert found["vaultline_server_queued_requests", "a", "alexnet"] == 4
    assert found["vaultline_server_memory_bytes", "a", "resident"] == 20
    assert found["vaultline_server_memory_budget_bytes", "a"] == 1000
    assert found["vaultline_server_core_seconds_total", "a", "vgg19"] == 2.5
    assert found["vaultline_server_loads_total", "a"] == 2
    assert found["vaultline_server_evictions_total", "a"] == 1
    assert found["vaultline_server_missed_deadlines_total", "a"] == 1
    assert found["vaultline_server_streamed_bytes_total", "a"] == 5000
    assert found["vaultline_server_swapped_pages_total", "a"] == 3
    assert found["vaultline_server_backlog_seconds", "a"] == 0.75


def test_a_lost_server_is_down_and_holds_nothing_but_its_counters_stay() -> None:
    found = scraped(STATUS)
    assert (found["vaultline_server_up", "a"], found["vaultline_server_up", "b"]) == (1, 0)
    assert found["vaultline_server_memory_bytes", "b", "resident"] == 0
    assert found["vaultline_server_queued_requests", "b", "alexnet"] == 0
    assert found["vaultline_server_runs_total", "b"] == 7
    assert found["vaultline_server_core_seconds_total", "b", "vgg19"] == 2.5
    assert found["vaultline_gateway_lost_servers_total",] == 1


def test_a_monitor_reads_the_gateway() -> None:
    found = scraped(STATUS)
    assert found["vaultline_gateway_submitted_total",] == 40
    assert found["vaultline_gateway_answered_total",] == 30
    assert found["vaultline_gateway_refused_total",] == 4
    assert found["vaultline_gateway_failed_total",] == 1
    assert found["vaultline_gateway_in_flight",] == 5
    assert found["vaultline_gateway_in_flight_bytes",] == 5000
    assert found["vaultline_gateway_moved_total",] == 2
    assert found["vaultline_gateway_late_total",] == 1
    assert found["vaultline_gateway_decisions_total",] == 42
    assert found["vaultline_gateway_decision_seconds_total",] == 0.002
    assert found["vaultline_gateway_recovery_seconds", "b"] == 0.5


def test_before_any_server_has_said_anything_all_names_are_known() -> None:
    found = scraped(GatewayStatus())
    assert found["vaultline_gateway_submitted_total",] == 0
    names = {family.name for family in GatewayCollector(GatewayStatus).describe()}
    assert "vaultline_server_memory_bytes" in names
