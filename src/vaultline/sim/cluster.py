"""A cluster in virtual time: the same balancer and servers as for real, with service times from
measured facts. Events are ordered by (time, priority, sequence), so that a seed gives one trace."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import simpy

from vaultline.sched.balancer import Balancer, Chooser
from vaultline.sched.events import (
    Action,
    Answer,
    Arrived,
    Event,
    Evict,
    Finished,
    Refuse,
    Request,
    Run,
)
from vaultline.sched.facts import ModelFacts, ServerFacts
from vaultline.sched.server import Policy, Server


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a request ended: ``reason`` says why it was refused."""

    request: Request
    server: str
    ended_s: float
    reason: str = ""

    @property
    def latency_s(self) -> float:
        """From arrival to answer."""
        return self.ended_s - self.request.arrived_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One run on one core."""

    server: str
    run: Run
    started_s: float
    ended_s: float


@dataclass(slots=True, kw_only=True)
class Trace:
    """All that happened."""

    outcomes: list[Outcome] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    evictions: list[tuple[float, str, Evict]] = field(default_factory=list)
    events: list[tuple[str, Event]] = field(default_factory=list)
    actions: list[tuple[str, Action]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What the cluster's environment takes.

    Attributes:
        report_s: between reports of a server; they arrive ``delay_s`` later.
        hop_s: from the balancer to a server, and back.
        keep_events: write the event log, which replays need and large runs don't.
    """

    report_s: float = 0.1
    delay_s: float = 0.0
    hop_s: float = 0.0
    keep_events: bool = False


#: Sees a server after each event that it has handled, and what it made of it.
Observer = Callable[[Server, Event, list[Action]], None]


class Simulation:
    """Runs one workload."""

    def __init__(
        self,
        servers: Sequence[ServerFacts],
        models: Mapping[str, ModelFacts],
        chooser: Chooser,
        policy: Callable[[], Policy],
        timing: Timing | None = None,
        observe: Observer | None = None,
    ) -> None:
        self._env = simpy.Environment()
        self._observe = observe
        self._timing = timing or Timing()
        self.balancer = Balancer(servers, models, chooser)
        self.servers = {each.name: Server(each, models, policy()) for each in servers}
        self._requests: dict[int, Request] = {}
        self._open = 0
        self.trace = Trace()

    def run(
        self, requests: Sequence[Request], progress: Callable[[int], None] | None = None
    ) -> Trace:
        """Simulate until every request has ended; requests are in the order of their arrival."""
        self._open = len(requests)
        self._env.process(self._arrivals(requests, progress))
        for name in self.servers:
            self._env.process(self._reports(name))
        self._env.run()
        return self.trace

    def _arrivals(
        self, requests: Sequence[Request], progress: Callable[[int], None] | None
    ) -> Generator[Any, Any, None]:
        for number, request in enumerate(requests):
            if request.arrived_s > self._env.now:
                yield self._env.timeout(request.arrived_s - self._env.now)
            self._requests[request.number] = request
            name = self.balancer.submit(request, self._env.now)
            if name is None:
                self._end(request.number, "", "no server has the model")
            else:
                there_s = self._env.now + self._timing.hop_s
                self._at(name, Arrived(now_s=there_s, request=request))
            if progress is not None:
                progress(number + 1)

    def _at(self, name: str, event: Event) -> None:
        """Let an event happen at a server when its time has come."""
        timeout = self._env.timeout(max(0.0, event.now_s - self._env.now))
        timeout.callbacks.append(lambda _: self._handle(name, event))

    def _handle(self, name: str, event: Event) -> None:
        server = self.servers[name]
        actions = server.handle(event)
        if self._observe is not None:
            self._observe(server, event, actions)
        if self._timing.keep_events:
            self.trace.events.append((name, event))
            self.trace.actions += [(name, action) for action in actions]
        for action in actions:
            self._act(name, server, action)

    def _act(self, name: str, server: Server, action: Action) -> None:
        now_s = self._env.now
        if isinstance(action, Run):
            ended_s = now_s + server.running[action.core].expected_s
            self._at(name, Finished(now_s=ended_s, core=action.core))
            self.trace.spans.append(Span(server=name, run=action, started_s=now_s, ended_s=ended_s))
        elif isinstance(action, Evict):
            self.trace.evictions.append((now_s, name, action))
        elif isinstance(action, Answer):
            self._end(action.request, name, "")
        elif isinstance(action, Refuse):
            self._end(action.request, name, action.reason)

    def _end(self, number: int, name: str, reason: str) -> None:
        request = self._requests.pop(number)
        self.balancer.done(number)
        self._open -= 1
        ended_s = self._env.now + self._timing.hop_s
        outcome = Outcome(request=request, server=name, ended_s=ended_s, reason=reason)
        self.trace.outcomes.append(outcome)

    def _reports(self, name: str) -> Generator[Any, Any, None]:
        while self._open:
            yield self._env.timeout(self._timing.report_s)
            report = self.servers[name].report()
            if self._timing.delay_s:
                yield self._env.timeout(self._timing.delay_s)
            self.balancer.reported(report, self._env.now)
