"""What a gateway knows of its servers and has done so far: for metrics, tables and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass

from vaultline.sched.wire import ServerMetrics

_NO_METRICS = ServerMetrics()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """A server, by its host's last report.

    Attributes:
        in_flight: requests that it has been sent and not answered.
        reason: why it is not alive.
    """

    name: str
    cores: int
    memory_bytes: int
    alive: bool = True
    in_flight: int = 0
    backlog_s: float = 0.0
    metrics: ServerMetrics = _NO_METRICS
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayStatus:
    """A gateway since it started.

    Attributes:
        failed: requests that no server was left for, or whose answer was not genuine.
        resubmitted: requests sent to another server, after theirs was lost or declined.
        late_answers: to requests that had an answer already; nobody got those.
        decision_s: time that the balancer took for all decisions.
        noticed_s: this machine's clock (``time.perf_counter``) when the requests of the last server
            that was lost were with others; recovered_s: when the last of them was answered.
    """

    servers: tuple[ServerStatus, ...] = ()
    submitted: int = 0
    answered: int = 0
    refused: int = 0
    failed: int = 0
    in_flight: int = 0
    resubmitted: int = 0
    late_answers: int = 0
    decisions: int = 0
    decision_s: float = 0.0
    noticed_s: float = 0.0
    recovered_s: float = 0.0

    @property
    def recovery_s(self) -> float:
        """From when a loss was noticed to the last answer to what that server held."""
        return max(0.0, self.recovered_s - self.noticed_s)
