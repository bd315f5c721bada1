"""What comes of a request: its answer, or a named reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass

from vaultline.core.errors import PeerError, RefusedError
from vaultline.core.frames import StageTimes
from vaultline.owner.arrays import Array


class RefusedByServerError(RefusedError):
    """A server will not answer a request. ``reason`` says why: a deadline, a full queue, a run
    that failed."""

    def __init__(self, message: str, *, server: str, reason: str) -> None:
        super().__init__(message, got=reason)
        self.server, self.reason = server, reason


class OverloadedError(RefusedError):
    """The gateway itself holds as many unanswered requests as it may."""


class DrainingError(RefusedError):
    """The gateway is shutting down and takes no more requests."""


class ServersLostError(PeerError):
    """No server is left that could answer."""


class ServerLostError(PeerError):
    """A server died, is silent, does not get on, or broke the protocol."""


class GatewayClosedError(PeerError):
    """The gateway was closed before the request was answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A request's outputs, and how they came about.

    Attributes:
        server: which one answered.
        latency_s: from ``submit`` to the answer, on the gateway's clock.
        times: of each step group, on the server's clock.
        attempts: servers that the request was sent to.
    """

    outputs: dict[str, Array]
    number: int
    model: str
    server: str
    latency_s: float
    times: tuple[StageTimes, ...] = ()
    attempts: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A server that was lost, and how its requests came through.

    Attributes:
        heard_s, lost_s: when it was last heard of, and when that was noticed.
        moved: requests that it held and others took over.
        unplaced: those that nobody could take.
        recovered_s: when the last of the moved ones had its answer; None: not yet.
    """

    server: str
    code: str
    message: str
    heard_s: float
    lost_s: float
    moved: int = 0
    unplaced: int = 0
    recovered_s: float | None = None

    @property
    def recovery_s(self) -> float | None:
        """From the last sign of life until all that it held was answered elsewhere."""
        return None if self.recovered_s is None else self.recovered_s - self.heard_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Of a gateway since it started.

    Attributes:
        open: without an end yet; open_bytes: of their messages.
        moved: sent again after a server was lost or had no use for them.
        late: answers that came when nobody waited any more.
    """

    submitted: int = 0
    answered: int = 0
    refused: int = 0
    failed: int = 0
    moved: int = 0
    late: int = 0
    lost_servers: int = 0
    open: int = 0
    open_bytes: int = 0
