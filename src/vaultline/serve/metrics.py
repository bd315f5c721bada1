"""Numbers of a gateway and its servers for a monitor: Prometheus text.

What is said of servers comes from their hosts, unauthenticated: it is for looking at. The gateway's
requests it has counted itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vaultline.serve.status import GatewayStatus, ServerStatus

_SERVER = ("server",)
#: Name -> (what it is, its label, field of the server's metrics): a time series for each key.
_BY_KEY = {
    "vaultline_server_queued_requests": ("Requests that wait.", "model", "queued"),
    "vaultline_server_memory_bytes": ("Protected memory held, by what for.", "kind", "held_bytes"),
}
#: Name -> (what it is, field of the server's metrics); each only grows.
_COUNTERS = {
    "vaultline_server_runs": ("Runs of a step group, each for one or more requests.", "runs"),
    "vaultline_server_loads": ("Step groups decrypted to stay.", "loads"),
    "vaultline_server_evictions": ("Step groups whose weights were forgotten.", "evictions"),
    "vaultline_server_answered": ("Requests answered.", "answered"),
    "vaultline_server_refused": ("Requests refused.", "refused"),
    "vaultline_server_missed_deadlines": (
        "Requests answered after their deadline.",
        "missed_deadlines",
    ),
}
#: Likewise, of what the enclave says of itself.
_WORKER_COUNTERS = {
    "vaultline_server_streamed_bytes": ("Weights decrypted for runs.", "streamed_bytes"),
    "vaultline_server_swapped_pages": (
        "Pages decrypted again by a simulated cache.",
        "swapped_pages",
    ),
    "vaultline_server_evicted_pages": ("Pages encrypted by a simulated cache.", "evicted_pages"),
}
#: Name -> (what it is, field of the gateway's counters); each only grows.
_GATEWAY_COUNTERS = {
    "vaultline_gateway_submitted": ("Requests taken from clients.", "submitted"),
    "vaultline_gateway_answered": ("Requests answered.", "answered"),
    "vaultline_gateway_refused": ("Requests refused.", "refused"),
    "vaultline_gateway_failed": ("Requests that no server was left for.", "failed"),
    "vaultline_gateway_moved": ("Requests sent again, to another server.", "moved"),
    "vaultline_gateway_late": ("Answers for which nobody waited any more: not taken.", "late"),
    "vaultline_gateway_lost_servers": ("Servers lost.", "lost_servers"),
}
#: Likewise of the balancer.
_BALANCER_COUNTERS = {
    "vaultline_gateway_decisions": ("Decisions of the balancer.", "decisions"),
    "vaultline_gateway_decision_seconds": ("Time spent on these.", "decision_s"),
}
_GATEWAY_GAUGES = {
    "vaultline_gateway_in_flight": ("Requests without an end yet.", "open"),
    "vaultline_gateway_in_flight_bytes": ("Of their messages.", "open_bytes"),
}


class GatewayCollector(Collector):
    """Asks for a gateway's status whenever a monitor asks."""

    def __init__(self, status: Callable[[], GatewayStatus]) -> None:
        self._status = status

    def describe(self) -> list[Metric]:
        """Its names, so that nothing has to be collected when it is registered."""
        return list(_families(GatewayStatus()))

    def collect(self) -> Iterator[Metric]:
        """Every time series as it is now."""
        return _families(self._status())


def _families(status: GatewayStatus) -> Iterator[Metric]:
    yield from _gateway(status)
    yield from _servers(status.servers)


def _gateway(status: GatewayStatus) -> Iterator[Metric]:
    for name, (text, field) in _GATEWAY_COUNTERS.items():
        yield CounterMetricFamily(name, text, value=getattr(status.counters, field))
    for name, (text, field) in _BALANCER_COUNTERS.items():
        yield CounterMetricFamily(name, text, value=getattr(status, field))
    for name, (text, field) in _GATEWAY_GAUGES.items():
        yield GaugeMetricFamily(name, text, value=getattr(status.counters, field))
    recovery = GaugeMetricFamily(
        "vaultline_gateway_recovery_seconds",
        "From a lost server's last sign of life until all that it held was answered by others.",
        labels=_SERVER,
    )
    for loss in status.losses:
        if loss.recovery_s is not None:
            recovery.add_metric([loss.server], loss.recovery_s)
    yield recovery


def _servers(servers: Sequence[ServerStatus]) -> Iterator[Metric]:
    up = GaugeMetricFamily("vaultline_server_up", "1 while it is there.", labels=_SERVER)
    cores = GaugeMetricFamily("vaultline_server_cores", "Cores.", labels=_SERVER)
    budget = GaugeMetricFamily(
        "vaultline_server_memory_budget_bytes", "Protected memory granted.", labels=_SERVER
    )
    backlog = GaugeMetricFamily(
        "vaultline_server_backlog_seconds", "Core time of what waits or runs.", labels=_SERVER
    )
    for server in servers:
        up.add_metric([server.name], float(server.alive))
        cores.add_metric([server.name], server.cores)
        budget.add_metric([server.name], server.memory_bytes)
        backlog.add_metric([server.name], server.backlog_s if server.alive else 0.0)
    yield from (up, cores, budget, backlog)
    for name, (text, label, field) in _BY_KEY.items():
        gauge = GaugeMetricFamily(name, text, labels=(*_SERVER, label))
        for server in servers:
            _add_each(gauge, server, field, server.alive)
        yield gauge
    busy = CounterMetricFamily(
        "vaultline_server_core_seconds", "Core time by model.", labels=(*_SERVER, "model")
    )
    for server in servers:
        _add_each(busy, server, "busy_s", True)
    yield busy
    for name, (text, field) in _COUNTERS.items():
        counter = CounterMetricFamily(name, text, labels=_SERVER)
        for server in servers:
            counter.add_metric([server.name], getattr(server.metrics, field))
        yield counter
    for name, (text, field) in _WORKER_COUNTERS.items():
        counter = CounterMetricFamily(name, text, labels=_SERVER)
        for server in servers:
            counter.add_metric([server.name], getattr(server.metrics.worker, field))
        yield counter


def _add_each(family: Any, server: ServerStatus, field: str, alive: bool) -> None:
    """A dead server holds nothing and nothing waits there."""
    for key, value in getattr(server.metrics, field).items():
        family.add_metric([server.name, key], value if alive else 0.0)
