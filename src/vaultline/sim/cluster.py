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
    Install,
    Installing,
    Refuse,
    Removing,
    Request,
    Run,
)
from vaultline.sched.facts import ModelFacts, ServerFacts
from vaultline.sched.replay import (
    ActionEntry,
    BalancerEntry,
    BalancerEvent,
    Ended,
    EventEntry,
    LogEntry,
    Lost,
    Placed,
    Reported,
    Returned,
    SentEntry,
    Submitted,
)
from vaultline.sched.replicas import Change, ReplicaControl, ReplicaSettings
from vaultline.sched.server import Policy, Server
from vaultline.sim.sharing import SharedCores, Sharing


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


@dataclass(slots=True, kw_only=True)
class Trace:
    """All that happened.

    Attributes:
        changes: of replicas, and when.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    evictions: list[tuple[float, str, Evict]] = field(default_factory=list)
    changes: list[tuple[float, Change]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What the cluster's environment takes.

    Attributes:
        report_s: between reports of a server; they arrive ``delay_s`` later.
        hop_s: from the balancer to a server, and back.
        sharing: what runs take besides what the facts say, and all the longer where servers share
            one machine.
        control_s: between decisions about replicas.
    """

    report_s: float = 0.1
    delay_s: float = 0.0
    hop_s: float = 0.0
    sharing: Sharing = field(default_factory=Sharing)
    control_s: float = 1.0


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
        *,
        replicas: ReplicaSettings | None = None,
        losses: Mapping[str, float] | None = None,
        balancer: type[Balancer] = Balancer,
        log: Callable[[LogEntry], None] | None = None,
    ) -> None:
        """A cluster in which nothing has happened.

        Args:
            observe: called after each event of a server.
            replicas: models come and go by these rules; None: they stay where they are.
            losses: when servers are lost, by name.
            log: takes all that happens and is decided, but for the header.
        """
        self._env = simpy.Environment()
        self._observe, self._log = observe, log
        self._timing = timing or Timing()
        self.balancer = balancer(servers, models, chooser)
        self.servers = {each.name: Server(each, models, policy()) for each in servers}
        sharing, cores = self._timing.sharing, sum(each.cores for each in servers)
        self._cores = None if sharing.apart else SharedCores(self._env, sharing, cores)
        self._control = ReplicaControl(self.balancer, replicas) if replicas is not None else None
        self._losses = dict(losses or {})
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
        for name, lost_s in sorted(self._losses.items(), key=lambda loss: loss[1]):
            self._later(lost_s - self._env.now, lambda name=name: self._lose(name))  # type: ignore[misc]
        if self._control is not None:
            self._env.process(self._controls(self._control))
        self._env.run()
        return self.trace

    def _arrivals(
        self, requests: Sequence[Request], progress: Callable[[int], None] | None
    ) -> Generator[Any, Any, None]:
        for number, request in enumerate(requests):
            if request.arrived_s > self._env.now:
                yield self._env.timeout(request.arrived_s - self._env.now)
            self._requests[request.number] = request
            if self._control is not None:
                self._control.arrived(request.model, self._env.now)
            self._note(Submitted(now_s=self._env.now, request=request))
            name = self.balancer.submit(request, self._env.now)
            self._note_sent(request, name)
            self._send(request, name)
            if progress is not None:
                progress(number + 1)

    def _note(self, event: BalancerEvent) -> None:
        if self._log is not None:
            self._log(BalancerEntry(event=event))

    def _note_sent(self, request: Request, name: str | None) -> None:
        if self._log is not None:
            self._log(SentEntry(number=request.number, server=name))

    def _send(
        self,
        request: Request,
        name: str | None,
        last: str = "",
        reason: str = "no server has the model",
    ) -> None:
        """Do what the balancer has decided."""
        if name is None:
            self._end(request.number, last, reason)
        else:
            self._tell(name, lambda now_s: Arrived(now_s=now_s, request=request))

    def _tell(self, name: str, event: Callable[[float], Event]) -> None:
        """Let the balancer's word reach a server."""
        self._later(self._timing.hop_s, lambda: self._handle(name, event(self._env.now)))

    def _later(self, after_s: float, what: Callable[[], None]) -> None:
        timeout = self._env.timeout(max(0.0, after_s))
        timeout.callbacks.append(lambda _: what())

    def _finish(self, name: str, core: int, after_s: float) -> None:
        """Let a core be done; times are read when it is, so that none is earlier than another."""
        self._later(after_s, lambda: self._handle(name, Finished(now_s=self._env.now, core=core)))

    def _run(self, name: str, core: int, alone_s: float) -> None:
        """Let a core run."""
        if self._cores is None:
            self._finish(name, core, alone_s)
        else:
            self._cores.start(name, core, alone_s, lambda: self._finish(name, core, 0.0))

    def _handle(self, name: str, event: Event) -> None:
        server = self.servers.get(name)
        if server is None:  # lost
            return
        if self._cores is not None and isinstance(event, Arrived):
            self._cores.arrived(name)
        actions = server.handle(event)
        if self._observe is not None:
            self._observe(server, event, actions)
        if self._log is not None:
            self._log(EventEntry(server=name, event=event))
            for action in actions:
                self._log(ActionEntry(server=name, action=action))
        for action in actions:
            self._act(name, server, action)

    def _act(self, name: str, server: Server, action: Action) -> None:
        now_s = self._env.now
        if isinstance(action, Run):
            expected_s = server.running[action.core].expected_s
            self._run(name, action.core, self._timing.sharing.alone_s(expected_s))
        elif isinstance(action, Install):
            install_s = server.models[action.model].install_s + self._timing.sharing.run_s
            self._finish(name, action.core, install_s)
        elif isinstance(action, Evict):
            self.trace.evictions.append((now_s, name, action))
        elif isinstance(action, Answer):
            self._end(action.request, name, "")
        elif isinstance(action, Refuse):
            self._refused(action, name)

    def _refused(self, refusal: Refuse, name: str) -> None:
        if refusal.elsewhere:
            self._note(Returned(now_s=self._env.now, number=refusal.request))
            request = self._requests[refusal.request]
            other = self.balancer.returned(refusal.request, self._env.now)
            self._note_sent(request, other)
            self._send(request, other, name, refusal.reason)
        else:
            self._end(refusal.request, name, refusal.reason)

    def _end(self, number: int, name: str, reason: str) -> None:
        request = self._requests.pop(number)
        self._note(Ended(number=number))
        self.balancer.done(number)
        self._open -= 1
        ended_s = self._env.now + self._timing.hop_s
        outcome = Outcome(request=request, server=name, ended_s=ended_s, reason=reason)
        self.trace.outcomes.append(outcome)

    def _lose(self, name: str) -> None:
        """A server is gone, with all that it held."""
        if self._open and self.servers.pop(name, None) is not None:
            self._note(Lost(now_s=self._env.now, server=name))
            if self._cores is not None:
                self._cores.lost(name)
            moved = self.balancer.lost(name, self._env.now)
            for request, other in moved:
                self._note_sent(request, other)
            for request, other in moved:
                self._send(request, other)

    def _reports(self, name: str) -> Generator[Any, Any, None]:
        while self._open and name in self.servers:
            yield self._env.timeout(self._timing.report_s)
            server = self.servers.get(name)
            if server is None:
                return
            report = server.report()
            if self._timing.delay_s:
                yield self._env.timeout(self._timing.delay_s)
            self._note(Reported(now_s=self._env.now, report=report))
            self.balancer.reported(report, self._env.now)

    def _controls(self, control: ReplicaControl) -> Generator[Any, Any, None]:
        while self._open:
            yield self._env.timeout(self._timing.control_s)
            for change in control.decide(self._env.now):
                self._change(change)

    def _change(self, change: Change) -> None:
        self._note(Placed(server=change.server, model=change.model, there=change.there))
        if self.balancer.placed(change.server, change.model, there=change.there):
            kind = Installing if change.there else Removing
            self._tell(change.server, lambda now_s: kind(now_s=now_s, model=change.model))
            self.trace.changes.append((self._env.now, change))
