"""The live table of ``vaultline serve``: what every server does right now."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.table import Table

from vaultline.cli.common import table
from vaultline.core.limits import MIB
from vaultline.serve.status import GatewayStatus, ServerStatus

#: Rates are over about so long.
_WINDOW_S = 2.0
#: Kinds of memory as a server's scheduler counts them.
KINDS = ("fixed", "resident", "workspace", "carried")
#: Models whose queues are named.
_QUEUES = 4


class Rates:
    """Answers a second and busy shares, from counters that only grow."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._before: dict[str, list[tuple[float, int, float]]] = {}

    def take(self, server: ServerStatus) -> tuple[float, float]:
        """Answers a second, and the share of the cores that is busy, lately."""
        use, now_s = server.metrics, self._now_s()
        points = self._before.setdefault(server.name, [])
        points.append((now_s, use.answered, sum(use.busy_s.values())))
        while len(points) > 2 and points[1][0] <= now_s - _WINDOW_S:
            points.pop(0)
        (then_s, answered, busy_s), (_, answered_now, busy_now_s) = points[0], points[-1]
        seconds = now_s - then_s
        if seconds <= 0:
            return 0.0, 0.0
        share = (busy_now_s - busy_s) / (seconds * server.cores)
        return (answered_now - answered) / seconds, min(1.0, share)


def live_table(status: GatewayStatus, rates: Rates, *, draining: bool) -> Table:
    """All servers, and the gateway in the title."""
    counters = status.counters
    title = (
        f"{'DRAINING: ' * draining}{counters.open} under way, {counters.answered} answered, "
        f"{counters.refused} refused, {counters.failed} failed"
    )
    return table(title, COLUMNS, server_rows(status, rates))


COLUMNS = (
    "server",
    "answers/s",
    "busy",
    "waiting",
    "for",
    *KINDS,
    "MiB of",
    "loads",
    "evictions",
)


def server_rows(status: GatewayStatus, rates: Rates) -> list[tuple[str, ...]]:
    """A row for each server."""
    return [_row(server, *rates.take(server)) for server in status.servers]


def _row(server: ServerStatus, per_s: float, busy: float) -> tuple[str, ...]:
    if not server.alive:
        return (server.name, "LOST", *[""] * (len(COLUMNS) - 2))
    use = server.metrics
    longest = sorted(((count, name) for name, count in use.queued.items() if count), reverse=True)
    named = " ".join(f"{name} {count}" for count, name in longest[:_QUEUES])
    return (
        server.name,
        f"{per_s:.1f}",
        f"{busy:.0%}",
        str(sum(use.queued.values())),
        named + (" ..." if len(longest) > _QUEUES else ""),
        *(f"{use.held_bytes.get(kind, 0) / MIB:.1f}" for kind in KINDS),
        f"{server.memory_bytes / MIB:.0f}",
        str(use.loads),
        str(use.evictions),
    )
