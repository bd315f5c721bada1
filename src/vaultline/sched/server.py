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
    Refuse,
    Request,
    Run,
)
from vaultline.sched.facts import GroupFacts, ModelFacts, ServerFacts
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


@dataclass(slots=True)
class Running:
    """What a core is doing."""

    key: Key
    requests: tuple[Request, ...]
    started_s: float
    expected_s: float
    workspace_bytes: int


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
    """The state of one server, changed by events only."""

    def __init__(
        self, facts: ServerFacts, models: Mapping[str, ModelFacts], policy: Policy
    ) -> None:
        """An empty server.

        Raises:
            InfeasibleError: some request could never be run in the memory.
        """
        self.facts = facts
        self.models = {name: models[name] for name in facts.models}
        self.policy = policy
        self.now_s = 0.0
        self.queues: dict[Key, deque[Request]] = {
            (name, number): deque()
            for name, model in self.models.items()
            for number in range(len(model.groups))
        }
        self.running: dict[int, Running] = {}
        self.resident: dict[Key, float] = {}
        self.draining = False
        self._turn = self._taken = 0
        self.totals = Totals(served_s=dict.fromkeys(self.models, 0.0))
        self._fixed = facts.fixed_bytes + facts.cores * sum(
            model.fixed_bytes for model in self.models.values()
        )
        self._most = max(self.least_bytes(key) for key in self.queues)
        if self._fixed + self._most > facts.memory_bytes:
            worst = max(self.queues, key=self.least_bytes)
            raise InfeasibleError(
                f"server {facts.name} can't run group {worst[1]} of {worst[0]}",
                got=f"{facts.memory_bytes - self._fixed:,} bytes beside what is installed",
                expected=f"{self._most:,} bytes",
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
        actions += self._fill_cores()
        return actions

    # What policies ask.

    def group(self, key: Key) -> GroupFacts:
        """The facts of a step group."""
        return self.models[key[0]].groups[key[1]]

    def waiting(self) -> Iterator[tuple[Key, deque[Request]]]:
        """Queues that aren't empty."""
        return ((key, queue) for key, queue in self.queues.items() if queue)

    def held(self) -> dict[str, int]:
        """Bytes by what they are held for."""
        return {
            "fixed": self._fixed,
            "resident": sum(self.group(key).weight_bytes for key in self.resident),
            "workspace": sum(run.workspace_bytes for run in self.running.values()),
            "carried": self._carried(),
        }

    @property
    def free_bytes(self) -> int:
        """Memory that nothing holds."""
        return self.facts.memory_bytes - sum(self.held().values())

    def seconds(self, key: Key, count: int) -> float:
        """How long a run will take."""
        return self.group(key).seconds(count, resident=key in self.resident)

    def remaining_s(self, key: Key, count: int) -> float:
        """How long ``count`` requests take from a group to their answers, alone on a core."""
        name, first = key
        last = len(self.models[name].groups)
        return sum(
            self.seconds((name, number), min(count, self.group((name, number)).frames_max))
            for number in range(first, last)
        )

    def report(self) -> Report:
        """What the balancer is told."""
        self._turn += 1
        backlog_s = sum(
            max(0.0, run.started_s + run.expected_s - self.now_s) for run in self.running.values()
        )
        waiting = dict.fromkeys(self.models, 0)
        for key, queue in self.waiting():
            count = min(len(queue), self.group(key).frames_max)
            backlog_s += len(queue) / count * self.remaining_s(key, count)
            waiting[key[0]] += len(queue)
        resident_s = dict.fromkeys(self.models, 0.0)
        for key in self.resident:
            resident_s[key[0]] += self.group(key).load_s
        return Report(
            server=self.facts.name,
            turn=self._turn,
            taken=self._taken,
            backlog_s=backlog_s,
            waiting=waiting,
            resident_s=resident_s,
        )

    def least_bytes(self, key: Key) -> int:
        """What a run of one request takes at least, besides what it carries in."""
        group = self.group(key)
        return self._entering(key) + group.workspace_bytes + group.tile_bytes + group.output_bytes

    def run_bytes(self, key: Key, *, keep: bool) -> int:
        """What a run holds while it runs: tensors, and a tile unless its weights stay."""
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
        return self.models[key[0]].input_bytes if key[1] == 0 else 0

    def evictable(self) -> list[Key]:
        """Resident groups that nothing runs with."""
        busy = {run.key for run in self.running.values()}
        return [key for key in self.resident if key not in busy]

    def fits(self, key: Key, count: int, *, keep: bool = False, evict: Sequence[Key] = ()) -> bool:
        """Whether a run has room now, once some groups are evicted."""
        freed = sum(self.group(each).weight_bytes for each in evict)
        return self.extra_bytes(key, count, keep=keep) <= self.free_bytes + freed

    def may_start(self, key: Key, count: int) -> bool:
        """Whether a run has room if everything that can be is evicted, and others can still finish.

        What requests carry may never fill what the neediest run takes: a run that adds to it
        leaves room for that, unless nobody else is under way.
        """
        evict = [each for each in self.evictable() if each != key]
        if not self.fits(key, count, evict=evict):
            return False
        if key[1] > 0 or (count == 1 and not self.running and self._carried() == 0):
            return True
        stuck = self._fixed + self._carried() + count * self.group(key).output_bytes
        running = sum(run.workspace_bytes for run in self.running.values())
        most = running + self.run_bytes(key, keep=False) + self._most
        return stuck + most <= self.facts.memory_bytes

    def evictions(self, key: Key, count: int, ranked: Sequence[Key], *, keep: bool) -> list[Key]:
        """As many of the ranked groups, in their order, as must go for a run to have room."""
        evict: list[Key] = []
        for each in ranked:
            if self.fits(key, count, keep=keep, evict=evict):
                break
            if each != key:
                evict.append(each)
        return evict

    def _carried(self) -> int:
        total = 0
        for (name, number), queue in self.queues.items():
            if number > 0 and queue:
                total += len(queue) * self.models[name].input_of(number)
        for run in self.running.values():
            name, number = run.key
            each = self.models[name].input_of(number) + self.group(run.key).output_bytes
            total += len(run.requests) * each
        return total

    # Transitions.

    def _arrive(self, request: Request) -> list[Action]:
        self._taken += 1
        if request.model not in self.models:
            return [self._refuse(request, "the model is not installed here")]
        if self.draining:
            return [self._refuse(request, "the server is shutting down")]
        reason = self.policy.admit(self, request)
        if reason is not None:
            return [self._refuse(request, reason)]
        self._enqueue((request.model, 0), request)
        return []

    def _finish(self, core: int) -> list[Action]:
        run = self._stopped(core)
        name, number = run.key
        if number + 1 < len(self.models[name].groups):
            for request in run.requests:
                self._enqueue((name, number + 1), request)
            return []
        for request in run.requests:
            late = request.deadline_s is not None and request.deadline_s < self.now_s
            self.totals.missed += late
        self.totals.answered += len(run.requests)
        return [Answer(request=request.number) for request in run.requests]

    def _fail(self, core: int, reason: str) -> list[Action]:
        run = self._stopped(core)
        self.resident.pop(run.key, None)
        self.totals.failed += len(run.requests)
        return [Refuse(request=request.number, reason=reason) for request in run.requests]

    def _stopped(self, core: int) -> Running:
        if core not in self.running:
            raise LocalProtocolError(f"core {core} of server {self.facts.name} is not running")
        run = self.running.pop(core)
        spent_s = self.now_s - run.started_s
        self.totals.busy_s += spent_s
        self.totals.served_s[run.key[0]] += spent_s
        return run

    def _enqueue(self, key: Key, request: Request) -> None:
        """By priority, then deadline, then arrival."""
        queue = self.queues[key]
        queue.append(request)
        if len(queue) > 1 and order(queue[-2]) > order(request):
            self.queues[key] = deque(sorted(queue, key=order))

    def _refuse(self, request: Request, reason: str) -> Refuse:
        self.totals.refused += 1
        return Refuse(request=request.number, reason=reason)

    def _fill_cores(self) -> list[Action]:
        actions: list[Action] = []
        for core in range(self.facts.cores):
            if core in self.running:
                continue
            choice = self.policy.choose(self)
            if choice is None:
                break
            actions += self._start(core, choice)
        return actions

    def _start(self, core: int, choice: Choice) -> list[Action]:
        key, queue = choice.key, self.queues[choice.key]
        fine = 1 <= choice.count <= min(len(queue), self.group(key).frames_max)
        busy = {run.key for run in self.running.values()}
        if not fine or not busy.isdisjoint(choice.evict):
            raise LocalProtocolError("the policy chose a run that can't be", got=str(choice))
        for each in choice.evict:
            del self.resident[each]
        self.totals.evictions += len(choice.evict)
        streamed = key not in self.resident
        keep = choice.keep or not streamed
        if self.extra_bytes(key, choice.count, keep=keep) > self.free_bytes:
            raise LocalProtocolError("the policy chose a run that does not fit", got=str(choice))
        expected_s = self.seconds(key, choice.count)
        workspace_bytes = self.run_bytes(key, keep=keep)
        if streamed:
            self.totals.streamed_bytes += self.group(key).weight_bytes
            self.totals.loads += choice.keep
        if keep:
            self.resident[key] = self.now_s
        requests = tuple(queue.popleft() for _ in range(choice.count))
        self.running[core] = Running(
            key=key,
            requests=requests,
            started_s=self.now_s,
            expected_s=expected_s,
            workspace_bytes=workspace_bytes,
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
        return [*(Evict(model=name, group=number) for name, number in choice.evict), run]


def order(request: Request) -> tuple[float, float, float, int]:
    """Within a queue: by priority, then deadline, then arrival."""
    deadline_s = request.deadline_s if request.deadline_s is not None else float("inf")
    return (-request.priority, deadline_s, request.arrived_s, request.number)
