"""What is on one server: queues, runs, weights, memory; and what policies ask of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from vaultline.core.errors import InfeasibleError, LocalProtocolError
from vaultline.sched.events import Request
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

    def admit(self, server: ServerState, request: Request) -> str | None:
        """A reason to refuse a request that has just come, or None."""

    def choose(self, server: ServerState) -> Choice | None:
        """The next run for a free core, or None to leave it idle."""

    def hopeless(self, server: ServerState) -> Sequence[Request]:
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


class ServerState:
    """The state of one server, which ``Server`` changes.

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


def order(request: Request) -> tuple[float, float, float, int]:
    """Within a queue: by priority, then deadline, then arrival."""
    deadline_s = request.deadline_s if request.deadline_s is not None else float("inf")
    return (-request.priority, deadline_s, request.arrived_s, request.number)
