"""What a gateway knows of its servers and has done so far: for metrics, tables and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass

from vaultline.sched.wire import ServerMetrics
from vaultline.serve.answers import Counters, Loss

_NO_METRICS = ServerMetrics()
_NO_COUNTERS = Counters()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """A server, by its host's last report.

    Attributes:
        turn: of that report; backlog_s: core time of what waited or ran then.
        in_flight: requests that it has been sent and has not ended.
    """

    name: str
    cores: int
    memory_bytes: int
    alive: bool = True
    in_flight: int = 0
    turn: int = 0
    backlog_s: float = 0.0
    metrics: ServerMetrics = _NO_METRICS


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayStatus:
    """A gateway since it started.

    Attributes:
        losses: servers that were lost, in that order.
        decisions: of the balancer; decision_s: time that they took.
    """

    servers: tuple[ServerStatus, ...] = ()
    counters: Counters = _NO_COUNTERS
    losses: tuple[Loss, ...] = ()
    decisions: int = 0
    decision_s: float = 0.0
