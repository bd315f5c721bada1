"""Which request is where: the balancer's decisions, and one end for each request.

No I/O, no clock and no threads: the gateway calls this under one lock.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Literal

from vaultline.sched.balancer import Balancer
from vaultline.sched.events import Request
from vaultline.sched.replay import (
    BalancerEntry,
    BalancerEvent,
    Ended,
    LogEntry,
    Lost,
    Placed,
    Reported,
    Returned,
    SentEntry,
    Submitted,
)
from vaultline.sched.report import Report
from vaultline.serve.answers import Answer, Counters, Loss


@dataclass(slots=True, eq=False)
class Pending:
    """A request without an end.

    Attributes:
        message: what is sealed for a server, in the clear; ``model`` is the model's number.
        server: where it is.
    """

    request: Request
    model: int
    message: memoryview = field(repr=False)
    future: Future[Answer]
    server: str = ""
    attempts: int = 0


@dataclass(slots=True)
class _Recovery:
    loss: Loss
    left: set[int]


class Dispatcher:
    """Requests from submission to their end, over servers that come and go."""

    def __init__(
        self, balancer: Balancer, to_log: Callable[[LogEntry], None] | None = None
    ) -> None:
        self._balancer = balancer
        self._to_log = to_log
        self._recoveries: list[_Recovery] = []
        self.open: dict[int, Pending] = {}
        self.open_bytes = 0
        self._counts = dict.fromkeys(
            ("submitted", "answered", "refused", "failed", "moved", "late"), 0
        )

    def submit(self, pending: Pending, now_s: float) -> str | None:
        """Where a new request goes; None: nobody can take it, and it is not held."""
        request = pending.request
        self._log(Submitted(now_s=now_s, request=request))
        server = self._balancer.submit(request, now_s)
        self._log_sent(request.number, server)
        if server is not None:
            self.open[request.number] = pending
            self.open_bytes += len(pending.message)
            self._counts["submitted"] += 1
            self._place(pending, server)
        return server

    def ended(
        self, server: str, number: int, how: Literal["answered", "refused"], now_s: float
    ) -> Pending | None:
        """A server has ended a request; None if nobody waits for that any more."""
        pending = self.open.get(number)
        if pending is None or pending.server != server:
            self._counts["late"] += 1
            return None
        self._log(Ended(number=number))
        self._balancer.done(number)
        self._counts[how] += 1
        self._close(pending, now_s)
        return pending

    def returned(self, server: str, number: int, now_s: float) -> Pending | None:
        """A server refused a request that another may take, and one does; None if nobody does or
        nobody waits for it any more: then it is still to be ended."""
        pending = self.open.get(number)
        if pending is None or pending.server != server:
            return None
        self._log(Returned(now_s=now_s, number=number))
        other = self._balancer.returned(number, now_s)
        self._log_sent(number, other)
        if other is None:
            return None
        self._place(pending, other)
        self._counts["moved"] += 1
        return pending

    def placed(self, server: str, model: str, *, there: bool) -> bool:
        """A server is told that it gets a model or loses it; False if it is gone."""
        self._log(Placed(server=server, model=model, there=there))
        return self._balancer.placed(server, model, there=there)

    def reported(self, report: Report, now_s: float) -> None:
        """A server's report has come."""
        self._log(Reported(now_s=now_s, report=report))
        self._balancer.reported(report, now_s)

    def lost(self, loss: Loss) -> tuple[list[Pending], list[Pending]]:
        """A server is gone: requests that go to others now, and those that nobody can take."""
        self._log(Lost(now_s=loss.lost_s, server=loss.server))
        moved, unplaced = [], []
        for request, server in self._balancer.lost(loss.server, loss.lost_s):
            self._log_sent(request.number, server)
            pending = self.open[request.number]
            if server is None:
                self._close(pending, loss.lost_s)
                unplaced.append(pending)
            else:
                self._place(pending, server)
                moved.append(pending)
        self._counts["moved"] += len(moved)
        self._counts["failed"] += len(unplaced)
        left = {pending.request.number for pending in moved}
        recovered_s = None if left or unplaced else loss.lost_s
        counted = replace(loss, moved=len(moved), unplaced=len(unplaced), recovered_s=recovered_s)
        self._recoveries.append(_Recovery(counted, left))
        return moved, unplaced

    def losses(self) -> tuple[Loss, ...]:
        """Servers that were lost, in that order, and when all that each held had been answered."""
        return tuple(each.loss for each in self._recoveries)

    def counters(self) -> Counters:
        """Requests so far."""
        return Counters(
            **self._counts,
            lost_servers=len(self._recoveries),
            open=len(self.open),
            open_bytes=self.open_bytes,
        )

    def name_loss(self, server: str, code: str, message: str) -> None:
        """The reason of a loss is often known a moment later."""
        for each in self._recoveries:
            if each.loss.server == server:
                each.loss = replace(each.loss, code=code, message=message)

    def take_all(self) -> list[Pending]:
        """Every request that is open; none is any more."""
        pending = list(self.open.values())
        self.open.clear()
        self.open_bytes = 0
        return pending

    def _place(self, pending: Pending, server: str) -> None:
        pending.server = server
        pending.attempts += 1

    def _close(self, pending: Pending, now_s: float) -> None:
        number = pending.request.number
        del self.open[number]
        self.open_bytes -= len(pending.message)
        for each in self._recoveries:
            if number in each.left:
                each.left.discard(number)
                if not each.left and not each.loss.unplaced:
                    each.loss = replace(each.loss, recovered_s=now_s)

    def _log(self, event: BalancerEvent) -> None:
        if self._to_log is not None:
            self._to_log(BalancerEntry(event=event))

    def _log_sent(self, number: int, server: str | None) -> None:
        if self._to_log is not None:
            self._to_log(SentEntry(number=number, server=server))
