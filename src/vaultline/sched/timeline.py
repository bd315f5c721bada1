"""What servers did and when, from their events and actions: runs on cores, what waited, what memory
was held for. Real drivers and simulated ones are watched in the same way; see ``sched.trace``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from vaultline.sched.events import (
    Action,
    Decline,
    Event,
    Evict,
    Failed,
    Finished,
    Install,
    Refuse,
    Remove,
    Run,
)
from vaultline.sched.facts import ServerFacts
from vaultline.sched.server import Server, Totals

What = Literal["evict", "remove", "decline", "refuse", "lost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreSpan:
    """What a core did from one action to the event that ended it: a run, or an installation.

    Attributes:
        ended_s: the last moment that its server is known at, where it has not ended.
        failure: why it failed, or empty.
        measured_s, load_s: of a run, as the worker measured it; of that, decrypting weights. None
            in simulations, and where a log does not say it.
    """

    server: str
    run: Run | Install
    started_s: float
    ended_s: float
    failure: str = ""
    measured_s: float | None = None
    load_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A server after an event; nothing changes until its next sample.

    Attributes:
        held: bytes by what they are held for.
        queued: requests that wait, by model; without models for which none does.
        running: cores that are busy.
    """

    now_s: float
    server: str
    held: dict[str, int]
    queued: dict[str, int]
    running: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Instant:
    """Something that takes no time, and of what: a step group, a model, a request, a server."""

    now_s: float
    server: str
    what: What
    of: str
    detail: str = ""


@dataclass(slots=True)
class Timeline:
    """Collects what servers do: call :meth:`observe` after each event that one has handled.

    Attributes:
        period_s: samples of a server are at least so far apart; 0: one for each event.
        servers: facts of all that were seen.
        totals: their own counters, as they are now.
    """

    period_s: float = 0.0
    servers: dict[str, ServerFacts] = field(default_factory=dict)
    totals: dict[str, Totals] = field(default_factory=dict)
    spans: list[CoreSpan] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    instants: list[Instant] = field(default_factory=list)
    _next_s: dict[str, float] = field(default_factory=dict)
    _last_s: dict[str, float] = field(default_factory=dict)
    _measured: dict[tuple[str, int], tuple[float, float]] = field(default_factory=dict)
    _open: dict[tuple[str, int], tuple[Run | Install, float]] = field(default_factory=dict)

    def watch(self, server: Server) -> None:
        """Take note of a server to which nothing may ever happen."""
        if server.facts.name not in self.servers:
            self.servers[server.facts.name] = server.facts
            self.totals[server.facts.name] = server.totals
            self._sample(server)

    def observe(self, server: Server, event: Event, actions: Iterable[Action]) -> None:
        """Take what a server made of an event; the server is as it is after it."""
        self.watch(server)
        name, now_s = server.facts.name, event.now_s
        self._last_s[name] = now_s
        if isinstance(event, Finished | Failed):
            self._close(name, event.core, now_s, event.reason if isinstance(event, Failed) else "")
        for action in actions:
            self._act(name, now_s, action)
        if now_s >= self._next_s[name]:
            self._sample(server)

    def ran(self, server: str, core: int, seconds: float, load_s: float) -> None:
        """Take what a worker measured of the run that a core is about to end."""
        self._measured[server, core] = seconds, load_s

    def lost(self, server: str, now_s: float) -> None:
        """A server is gone, with all that it did and held."""
        if now_s < self._last_s.get(server, 0.0) or server not in self.servers:
            return
        for name, core in list(self._open):
            if name == server:
                self._close(name, core, now_s, "lost")
        self._instant(now_s, server, "lost", server)
        nothing = Sample(now_s=now_s, server=server, held={}, queued={}, running=0)
        self.samples.append(nothing)

    def close(self) -> None:
        """End what has not ended at its server's last event: it was lost, or so was its log."""
        for name, core in list(self._open):
            self._close(name, core, self._last_s[name], "never ended")

    def _act(self, name: str, now_s: float, action: Action) -> None:
        match action:
            case Run() | Install():
                self._open[name, action.core] = action, now_s
            case Evict(model=model, group=group):
                self._instant(now_s, name, "evict", f"{model}/{group}")
            case Remove(model=model):
                self._instant(now_s, name, "remove", model)
            case Decline(model=model, reason=reason):
                self._instant(now_s, name, "decline", model, reason)
            case Refuse(request=number, reason=reason):
                self._instant(now_s, name, "refuse", f"request {number}", reason)

    def _instant(self, now_s: float, name: str, what: What, of: str, detail: str = "") -> None:
        self.instants.append(Instant(now_s=now_s, server=name, what=what, of=of, detail=detail))

    @property
    def runs(self) -> Iterator[tuple[CoreSpan, Run]]:
        """Spans that are runs of requests."""
        return ((span, span.run) for span in self.spans if isinstance(span.run, Run))

    def _close(self, name: str, core: int, now_s: float, failure: str) -> None:
        run, started_s = self._open.pop((name, core))
        measured_s, load_s = self._measured.pop((name, core), (None, None))
        self.spans.append(
            CoreSpan(
                server=name,
                run=run,
                started_s=started_s,
                ended_s=now_s,
                failure=failure,
                measured_s=measured_s,
                load_s=load_s,
            )
        )

    def _sample(self, server: Server) -> None:
        queued: dict[str, int] = {}
        for (model, _), queue in server.waiting():
            queued[model] = queued.get(model, 0) + len(queue)
        name = server.facts.name
        self._next_s[name] = server.now_s + self.period_s
        self.samples.append(
            Sample(
                now_s=server.now_s,
                server=name,
                held=server.held(),
                queued=queued,
                running=len(server.running),
            )
        )
