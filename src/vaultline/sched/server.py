"""One server: what it is told to do when something happens. Decisions are its policy's.

Tasks are pairs of a request and a step group. A request waits in the queue of its next group; a run
takes some of one queue through that group on one core; afterwards they wait for the next one, so
requests that arrived apart may go on together, and any other model may come between.

Memory is held for what is installed, for resident weights, for each run's workspace, and for what
requests carry from one group to the next. ``held + free == memory`` after every event.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from vaultline.core.errors import LocalProtocolError
from vaultline.sched.events import (
    Action,
    Answer,
    Arrived,
    Draining,
    Event,
    Evict,
    Failed,
    Finished,
    Installing,
    Refuse,
    Removing,
    Request,
    Run,
)
from vaultline.sched.state import Choice, Key, Policy, Running, ServerState, Totals, order

__all__ = ["Choice", "Key", "Policy", "Running", "Server", "Totals"]


class Server(ServerState):
    """A server, changed by events only."""

    def handle(self, event: Event) -> list[Action]:
        """Change the state, and say what is to be done now.

        Raises:
            LocalProtocolError: the event can't be: a core that isn't running, time that goes back.
        """
        if event.now_s < self.now_s:
            raise LocalProtocolError("an event of the past", got=str(event))
        self.now_s = event.now_s
        actions: list[Action] = []
        match event:
            case Arrived(request=request):
                actions += self._arrive(request)
            case Finished(core=core):
                actions += self._finish(core)
            case Failed(core=core, reason=reason):
                actions += self._fail(core, reason)
            case Draining():
                self.draining = True
            case Installing(model=model):
                actions += self.hosting.wanted(model, self.draining)
            case Removing(model=model):
                self.hosting.unwanted(model)
        actions += self._settle()
        actions += self._fill_cores()
        return actions

    # Transitions.

    def _arrive(self, request: Request) -> list[Action]:
        self._taken += 1
        if self.draining:
            return [self._refuse(request, "the server is shutting down", elsewhere=True)]
        if not self.hosting.takes(request.model):
            return [self._refuse(request, "the model is not installed here", elsewhere=True)]
        reason = self.policy.admit(self, request)
        if reason is not None:
            return [self._refuse(request, reason)]
        self._enqueue((request.model, 0), request)
        self.hosting.entered(request.model, self.now_s)
        self._dated += request.deadline_s is not None
        return []

    def _finish(self, core: int) -> list[Action]:
        if self.hosting.busy_with(core):
            self.hosting.installed(core, self.now_s)
            return []
        run = self._stopped(core)
        name, number = run.key
        model = self.hosting.models[name]
        output_bytes = model.groups[number].output_bytes
        self.memory.carried -= len(run.requests) * model.input_of(number)
        if number + 1 < len(model.groups):
            for request in run.requests:
                self._enqueue((name, number + 1), request)
            return []
        self.memory.carried -= len(run.requests) * output_bytes
        for request in run.requests:
            late = request.deadline_s is not None and request.deadline_s < self.now_s
            self.totals.missed += late
        self.totals.answered += len(run.requests)
        self._left(name, run.requests, begun=True)
        return [Answer(request=request.number) for request in run.requests]

    def _fail(self, core: int, reason: str) -> list[Action]:
        if self.hosting.busy_with(core):
            return self._not_installed(core, reason)
        run = self._stopped(core)
        name, number = run.key
        model = self.hosting.models[name]
        each = model.input_of(number) + model.groups[number].output_bytes
        self.memory.carried -= len(run.requests) * each
        self.totals.failed += len(run.requests)
        self._left(name, run.requests, begun=True)
        actions: list[Action] = [
            Refuse(request=request.number, reason=reason) for request in run.requests
        ]
        if run.key in self.resident and run.key not in self._busy:
            actions += self._evict((run.key,))  # who knows what is there
        return actions

    def _not_installed(self, core: int, reason: str) -> list[Action]:
        name, actions = self.hosting.failed(core, reason)
        waiting = self.queues.pop((name, 0), deque())
        self.queued -= len(waiting)
        self._left(name, tuple(waiting), begun=False)
        return [
            *actions,
            *(self._refuse(request, reason, elsewhere=True) for request in waiting),
        ]

    def _stopped(self, core: int) -> Running:
        if core not in self.running:
            raise LocalProtocolError(f"core {core} of server {self.facts.name} is not running")
        run = self.running.pop(core)
        self._busy[run.key] -= 1
        if not self._busy[run.key]:
            del self._busy[run.key]
        self.memory.workspace -= run.workspace_bytes
        spent_s = self.now_s - run.started_s
        self.totals.busy_s += spent_s
        served_s = self.totals.served_s
        served_s[run.key[0]] = served_s.get(run.key[0], 0.0) + spent_s
        return run

    def _left(self, name: str, requests: Sequence[Request], *, begun: bool) -> None:
        """Requests have ended."""
        self.hosting.left(name, len(requests), self.now_s if begun else None)
        if begun:
            self.memory.promised -= len(requests) * self.hosting.models[name].carried_bytes
        self._dated -= sum(request.deadline_s is not None for request in requests)

    def _enqueue(self, key: Key, request: Request) -> None:
        """By priority, then deadline, then arrival."""
        self.queued += 1
        queue = self.queues.get(key)
        if queue is None:
            queue = self.queues[key] = deque()
        place = len(queue)
        if place and order(queue[-1]) > (rank := order(request)):
            while place and order(queue[place - 1]) > rank:
                place -= 1
            queue.insert(place, request)
        else:
            queue.append(request)

    def _refuse(self, request: Request, reason: str, *, elsewhere: bool = False) -> Refuse:
        self.totals.refused += 1
        return Refuse(request=request.number, reason=reason, elsewhere=elsewhere)

    def _evict(self, keys: Sequence[Key]) -> list[Action]:
        for key in keys:
            del self.resident[key]
            self.memory.resident -= self.group(key).weight_bytes
        self.totals.evictions += len(keys)
        return [Evict(model=name, group=number) for name, number in keys]

    def _settle(self) -> list[Action]:
        """Refuse what has become hopeless, and forget models that are done for."""
        actions: list[Action] = []
        if self._dated:
            for request in self.policy.hopeless(self):
                key = (request.model, 0)
                self.queues[key].remove(request)
                self.queued -= 1
                if not self.queues[key]:
                    del self.queues[key]
                self._left(request.model, (request,), begun=False)
                actions.append(self._refuse(request, "its deadline can't be met any more"))
        for name in self.hosting.done_for(draining=self.draining):
            for key in [key for key in self.resident if key[0] == name]:
                self.memory.resident -= self.group(key).weight_bytes
                del self.resident[key]
            actions += self.hosting.forget(name)
        return actions

    def _fill_cores(self) -> list[Action]:
        actions: list[Action] = []
        for core in range(self.facts.cores):
            if core in self.running or self.hosting.busy_with(core):
                continue
            if self.hosting.pending:
                install = self._install(core)
                if install:
                    actions += install
                    continue
            choice = self.policy.choose(self) if self.queues else None
            if choice is not None:
                actions += self._start(core, choice)
        return actions

    def _install(self, core: int) -> list[Action]:
        """Begin to install what waits longest for it, if there is room; oldest weights go."""
        missing = self.hosting.missing_bytes(core)
        if missing is None:
            return []
        evict: list[Key] = []
        for key in sorted(self.evictable(), key=self.resident.__getitem__):
            if missing <= 0:
                break
            missing -= self.group(key).weight_bytes
            evict.append(key)
        if missing > 0:
            return []
        return [*self._evict(evict), self.hosting.begin(core, self.now_s)]

    def _start(self, core: int, choice: Choice) -> list[Action]:
        key, queue = choice.key, self.queues.get(choice.key, deque())
        fine = 1 <= choice.count <= min(len(queue), self.group(key).frames_max)
        if not fine or not self._busy.keys().isdisjoint(choice.evict) or self._loading(key):
            raise LocalProtocolError("the policy chose a run that can't be", got=str(choice))
        evicted = self._evict(choice.evict)
        group, model = self.group(key), self.hosting.models[key[0]]
        streamed = key not in self.resident
        keep = choice.keep or not streamed
        if self.extra_bytes(key, choice.count, keep=keep) > self.memory.free:
            raise LocalProtocolError("the policy chose a run that does not fit", got=str(choice))
        expected_s = group.seconds(choice.count, resident=not streamed, keep=keep)
        workspace_bytes = self.run_bytes(key, keep=keep)
        self.memory.workspace += workspace_bytes
        self.memory.carried += choice.count * (self._entering(key) + group.output_bytes)
        if key[1] == 0:
            self.memory.promised += choice.count * model.carried_bytes
        if streamed:
            self.totals.streamed_bytes += group.weight_bytes
            self.totals.loads += choice.keep
            self.memory.resident += group.weight_bytes if keep else 0
        if keep:
            self.resident[key] = self.now_s
        requests = tuple(queue.popleft() for _ in range(choice.count))
        self.queued -= choice.count
        if not queue:
            del self.queues[key]
        self._busy[key] = self._busy.get(key, 0) + 1
        self.running[core] = Running(
            key=key,
            requests=requests,
            started_s=self.now_s,
            expected_s=expected_s,
            workspace_bytes=workspace_bytes,
            streamed=streamed,
            keep=keep,
        )
        self.totals.runs += 1
        run = Run(
            core=core,
            model=key[0],
            group=key[1],
            requests=tuple(request.number for request in requests),
            streamed=streamed,
            keep=keep,
        )
        return [*evicted, run]
