"""What the stages of a run use, for a monitor (Prometheus text over HTTP) and for the summary.

The numbers come from the host, unauthenticated: they are for looking at, and decide nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vaultline.core.control import StageMetrics
from vaultline.core.errors import InputError
from vaultline.core.plan import Plan
from vaultline.owner.session import Session

_LABELS = ("stage", "replica", "device")
_PORT_MAX = (1 << 16) - 1
#: Name -> (what it is, field of the metrics by kind of memory).
_BY_KIND = {
    "vaultline_memory_bytes": ("Protected memory held, by what for.", "held_bytes"),
    "vaultline_memory_peak_bytes": ("The most ever held of each kind.", "peak_bytes"),
}
#: Name -> (what it is, field of the metrics); each only grows.
_COUNTERS = {
    "vaultline_streamed_bytes": ("Weights decrypted in passes.", "streamed_bytes"),
    "vaultline_passes": ("Passes, each of one or more frames.", "passes"),
    "vaultline_swapped_pages": ("Pages decrypted again by a simulated cache.", "swapped_pages"),
    "vaultline_evicted_pages": ("Pages encrypted by a simulated cache.", "evicted_pages"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerUse:
    """One worker of a plan, and what it last said of itself."""

    stage: int
    replica: int
    device: str
    frames: int
    metrics: StageMetrics

    @property
    def labels(self) -> tuple[str, str, str]:
        """Of its time series."""
        return str(self.stage), str(self.replica), self.device


def worker_uses(plan: Plan, session: Session) -> list[WorkerUse]:
    """What each worker last said; none before the first of them has."""
    places = [
        (number, replica, device.name)
        for number, stage in enumerate(plan.stages)
        for replica, device in enumerate(stage.devices)
    ]
    # Another thread fills in both: one of them may be there a moment before the other.
    said = zip(places, session.worker_frames, session.worker_metrics, strict=False)
    return [
        WorkerUse(stage=stage, replica=replica, device=device, frames=frames, metrics=metrics)
        for (stage, replica, device), frames, metrics in said
    ]


class StageCollector(Collector):
    """Reads a session's latest word whenever it is asked."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._session: Session | None = None

    def watch(self, session: Session) -> None:
        """From now on."""
        self._session = session

    def describe(self) -> list[Metric]:
        """Its names, so that nothing has to be collected when it is registered."""
        return list(_families([]))

    def collect(self) -> Iterator[Metric]:
        """Every time series as it is now."""
        session = self._session
        return _families([] if session is None else worker_uses(self._plan, session))


def _families(uses: Sequence[WorkerUse]) -> Iterator[Metric]:
    for name, (text, field) in _BY_KIND.items():
        by_kind = GaugeMetricFamily(name, text, labels=[*_LABELS, "kind"])
        for use in uses:
            for kind, size in getattr(use.metrics, field).items():
                by_kind.add_metric([*use.labels, kind], size)
        yield by_kind
    budget = GaugeMetricFamily(
        "vaultline_memory_budget_bytes", "Protected memory granted.", labels=_LABELS
    )
    frames = CounterMetricFamily("vaultline_frames", "Frames done.", labels=_LABELS)
    for use in uses:
        budget.add_metric(use.labels, use.metrics.budget_bytes)
        frames.add_metric(use.labels, use.frames)
    yield from (budget, frames)
    for name, (text, field) in _COUNTERS.items():
        counter = CounterMetricFamily(name, text, labels=_LABELS)
        for use in uses:
            counter.add_metric(use.labels, getattr(use.metrics, field))
        yield counter


def parse_address(text: str) -> tuple[str, int]:
    """Read ``HOST:PORT``; an IPv6 address stands in brackets.

    Raises:
        InputError: not of that form.
    """
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    fine = colon and port.isascii() and port.isdecimal() and len(port) <= len(str(_PORT_MAX))
    if not fine or int(port) > _PORT_MAX or not host.strip("[]") or (":" in host) != bracketed:
        raise InputError(
            "not an address to serve metrics on",
            got=text,
            expected=f"HOST:PORT with a port up to {_PORT_MAX}, such as 127.0.0.1:9464",
        )
    return host.strip("[]"), int(port)


@contextmanager
def serving(address: str, collector: Collector) -> Iterator[str]:
    """Serve a collector's numbers as Prometheus text, and nothing else; yields where.

    Raises:
        InputError: not an address of this machine, or one that is in use.
    """
    host, port = parse_address(address)
    registry = CollectorRegistry()
    registry.register(collector)
    try:
        server, thread = start_http_server(port, host, registry)
    except (OSError, UnicodeError) as error:
        raise InputError(
            "metrics can't be served there",
            got=f"{address}: {error}",
            expected="an address of this machine and a port that nobody uses",
            remedy="choose another one, or port 0 for any that is free",
        ) from error
    try:
        shown = f"[{host}]" if ":" in host else host
        yield f"http://{shown}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def memory_rows(uses: Sequence[WorkerUse]) -> list[dict[str, Any]]:
    """For ``--json``: what every worker used, in bytes, against its budget.

    ``held_bytes`` is constant once a stage is in memory; ``peak_bytes`` says what for, at most.
    """
    return [
        {
            "stage": use.stage,
            "replica": use.replica,
            "device": use.device,
            "budget_bytes": use.metrics.budget_bytes,
            "held_bytes": sum(use.metrics.held_bytes.values()),
            "peak_bytes": dict(use.metrics.peak_bytes),
            "streamed_bytes": use.metrics.streamed_bytes,
            "passes": use.metrics.passes,
            "swapped_pages": use.metrics.swapped_pages,
            "evicted_pages": use.metrics.evicted_pages,
        }
        for use in uses
    ]
