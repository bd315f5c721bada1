"""One server: what waits, what runs, which weights are here. Decisions are its policy's.

Tasks are pairs of a request and a step group. A request waits in the queue of its next group; a run
takes some of one queue through that group on one core; afterwards they wait for the next one, so
requests that arrived apart may go on together, and any other model may come between.

Memory is held for what is installed, for resident weights, for each run's workspace, and for what
requests carry from one group to the next. ``held + free == memory`` after every event.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from vaultline.core.errors import InfeasibleError, LocalProtocolError
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
from vaultline.sched.facts import GroupFacts, ModelFacts, ServerFacts
from vaultline.sched.holdings import Holdings
from vaultline.sched.hosting import Hosting
from vaultline.sched.report import Report

#: A step group: the model's name and the group's number.
Key = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a free core does next.

    Attributes:
        evict: resident groups to forget first.
        keep: the group's weights stay after the run.
    """

    key: Key
    count: int
    keep: bool = False
    evict: tuple[Key, ...] = ()


class Policy(Protocol):
    """Decides for one server."""

    def admit(self, server: Server, request: Request) -> str | None:
        """A reason to refuse a request that has just come, or None."""

    def choose(self, server: Server) -> Choice | None:
        """The next run for a free core, or None to leave it idle."""

    def hopeless(self, server: Server) -> Sequence[Request]:
        """Requests before their first group that it makes no sense to run any more."""


@dataclass(slots=True)
class Running:
    """What a core is doing."""

    key: Key
    requests: tuple[Request, ...]
    started_s: float
    expected_s: float
    workspace_bytes: int
    streamed: bool
    keep: bool


@dataclass(slots=True)
class Totals:
    """Counters for metrics."""

    runs: int = 0
    answered: int = 0
    refused: int = 0
    failed: int = 0
    missed: int = 0
    loads: int = 0
    evictions: int = 0
    streamed_bytes: int = 0
    busy_s: float = 0.0
    served_s: dict[str, float] = field(default_factory=dict)


class Server:
    """The state of one server, changed by events only.

    Attributes:
        queues: by step group, those that aren't empty.
        queued: how many requests are in them.
        running: by core.
        resident: groups whose weights stay, and when they were used last.
        hosting: models that are here or will be.
    """

    def __init__(
        self, facts: ServerFacts, models: Mapping[str, ModelFacts], policy: Policy
    ) -> None:
        """An empty server, on which the models of ``facts`` are installed.

        Args:
            models: all that may ever be installed.

        Raises:
            InfeasibleError: some request could never be run in the memory.
        """
        self.facts = facts
        self.policy = policy
        self.now_s = 0.0
        self.queues: dict[Key, deque[Request]] = {}
        self.running: dict[int, Running] = {}
        self.resident: dict[Key, float] = {}
        self.draining = False
        self.memory = Holdings(memory=facts.memory_bytes, fixed=facts.fixed_bytes)
        self.hosting = Hosting(facts, models, self.memory)
        self._turn = self._taken = 0
        self._dated = 0
        self.queued = 0
        self._busy: dict[Key, int] = {}
        self.totals = Totals(served_s=dict.fromkeys(facts.models, 0.0))
        worst = max(self.hosting.names(), key=lambda name: models[name].least_bytes, default=None)
        if worst is not None and self.memory.fixed + self.hosting.most > facts.memory_bytes:
            raise InfeasibleError(
                f"server {facts.name} can't run {worst}",
                got=f"{facts.memory_bytes - self.memory.fixed:,} bytes beside what is installed",
                expected=f"{self.hosting.most:,} bytes",
                remedy="give the server more memory or fewer models",
            )

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

    # What policies ask.

    @property
    def models(self) -> Mapping[str, ModelFacts]:
        """Those that are here or will be."""
        return self.hosting.models

    def group(self, key: Key) -> GroupFacts:
        """The facts of a step group."""
        return self.hosting.models[key[0]].groups[key[1]]

    def waiting(self) -> Iterator[tuple[Key, deque[Request]]]:
        """Queues that aren't empty."""
        return iter(self.queues.items())

    def held(self) -> dict[str, int]:
        """Bytes by what they are held for."""
        return self.memory.by_kind()

    @property
    def free_bytes(self) -> int:
        """Memory that nothing holds."""
        return self.memory.free

    @property
    def idle(self) -> bool:
        """Whether nothing waits, runs or is being installed."""
        return not (self.queues or self.running or self.hosting.busy)

    def remaining_s(self, key: Key, count: int) -> float:
        """How long ``count`` requests take from a group to their answers, alone on a core."""
        name, first = key
        groups = self.hosting.models[name].groups
        return sum(
            groups[number].worked_s(count, resident=(name, number) in self.resident)
            for number in range(first, len(groups))
        )

    def report(self) -> Report:
        """What the balancer is told."""
        self._turn += 1
        backlog_s = sum(
            max(0.0, run.started_s + run.expected_s - self.now_s) for run in self.running.values()
        )
        waiting: dict[str, int] = {}
        for key, queue in self.queues.items():
            backlog_s += self.remaining_s(key, len(queue))
            waiting[key[0]] = waiting.get(key[0], 0) + len(queue)
        resident_s: dict[str, float] = {}
        for key in self.resident:
            resident_s[key[0]] = resident_s.get(key[0], 0.0) + self.group(key).decrypt_s
        return Report(
            server=self.facts.name,
            turn=self._turn,
            taken=self._taken,
            backlog_s=backlog_s + self.hosting.left_s(self.now_s),
            waiting=waiting,
            resident_s=resident_s,
            changes=self.hosting.changes,
            models=self.hosting.serving(),
        )

    def run_bytes(self, key: Key, *, keep: bool) -> int:
        """A run's workspace: with tiles where weights are decrypted and do not stay."""
        group = self.group(key)
        here = keep or key in self.resident
        return group.workspace_bytes + (0 if here else group.tile_bytes)

    def extra_bytes(self, key: Key, count: int, *, keep: bool) -> int:
        """What a run of so many holds beyond what is held now, while it runs and after it."""
        group = self.group(key)
        weights = group.weight_bytes if keep and key not in self.resident else 0
        each = self._entering(key) + group.output_bytes
        return weights + self.run_bytes(key, keep=keep) + count * each

    def _entering(self, key: Key) -> int:
        """What a request brings in: before the first group it waits outside, sealed."""
        return self.hosting.models[key[0]].input_bytes if key[1] == 0 else 0

    def evictable(self) -> list[Key]:
        """Resident groups that nothing runs with."""
        return [key for key in self.resident if key not in self._busy]

    def fits(self, key: Key, count: int, *, keep: bool = False, evict: Sequence[Key] = ()) -> bool:
        """Whether a run has room now, once some groups are evicted."""
        freed = sum(self.group(each).weight_bytes for each in evict)
        return self.extra_bytes(key, count, keep=keep) <= self.memory.free + freed

    def startable(self, key: Key, *, urgent: bool = False) -> int:
        """How many of a queue a run may take now, if everything that can be is evicted.

        Who begins is promised what it may come to carry, beside what the neediest run takes: so
        whoever has begun can always go on. Who is not urgent leaves room for one that is.
        """
        queue = self.queues.get(key)
        if queue is None or not self.hosting.here(key[0]) or self._loading(key):
            return 0
        group, model = self.group(key), self.hosting.models[key[0]]
        free = self.memory.free - self.run_bytes(key, keep=False)
        each = group.output_bytes + self._entering(key)
        count = min(len(queue), group.frames_max)
        if count * each > free:
            others = (other for other in self.evictable() if other != key)
            free += sum(self.group(other).weight_bytes for other in others)
            if each > free:
                return 0
            count = min(count, free // each) if each else count
        if key[1] > 0 or free < 0:
            return count if free >= 0 else 0
        promise = model.carried_bytes
        room = self.hosting.room_to_begin(urgent=urgent)
        if promise * count <= room:
            return count
        alone = not self.running and self.memory.promised == 0
        return max(room // promise, 1 if alone else 0)

    def _loading(self, key: Key) -> bool:
        """Whether a core is decrypting a group's weights, which others can't use yet."""
        return key in self._busy and any(
            run.key == key and run.keep and run.streamed for run in self.running.values()
        )

    def evictions(self, key: Key, count: int, ranked: Sequence[Key], *, keep: bool) -> list[Key]:
        """As many of the ranked groups, in their order, as must go for a run to have room."""
        missing = self.extra_bytes(key, count, keep=keep) - self.memory.free
        evict: list[Key] = []
        for each in ranked:
            if missing <= 0:
                break
            if each != key:
                missing -= self.group(each).weight_bytes
                evict.append(each)
        return evict

    def check(self) -> None:
        """Count everything anew; tests do so after every event.

        Raises:
            LocalProtocolError: what is counted as it comes and goes is wrong.
        """
        models = self.hosting.models
        carried = promised = workspace = 0
        present: dict[str, int] = dict.fromkeys(models, 0)
        for (name, number), queue in self.queues.items():
            present[name] += len(queue)
            if number > 0:
                carried += len(queue) * models[name].input_of(number)
                promised += len(queue) * models[name].carried_bytes
        for run in self.running.values():
            (name, number), count = run.key, len(run.requests)
            present[name] += count
            carried += count * (models[name].input_of(number) + self.group(run.key).output_bytes)
            promised += count * models[name].carried_bytes
            workspace += run.workspace_bytes
        fixed = self.facts.fixed_bytes + self.hosting.fixed_bytes()
        resident = sum(self.group(key).weight_bytes for key in self.resident)
        held = {"fixed": fixed, "resident": resident, "workspace": workspace, "carried": carried}
        right = (
            self.held() == held
            and self.memory.promised == promised
            and self.queued == sum(map(len, self.queues.values()))
            and all(self.queues.values())
            and all(self.hosting.requests(name) == count for name, count in present.items())
            and min(*held.values(), self.free_bytes, self.memory.pledged) >= 0
            and self.facts.memory_bytes - sum(held.values()) == self.free_bytes
            and self._busy.keys() == {run.key for run in self.running.values()}
        )
        if not right:
            raise LocalProtocolError(
                f"server {self.facts.name} has lost count", got=str(self.memory), expected=str(held)
            )

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


def order(request: Request) -> tuple[float, float, float, int]:
    """Within a queue: by priority, then deadline, then arrival."""
    deadline_s = request.deadline_s if request.deadline_s is not None else float("inf")
    return (-request.priority, deadline_s, request.arrived_s, request.number)
