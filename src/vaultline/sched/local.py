"""Local policies: what a free core of one server does next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp

from vaultline.sched.events import Request
from vaultline.sched.server import Choice, Key, Server

#: A request that has waited so many times its fair share goes before everything that has not.
FAIR_SHARES = 4.0
#: How long ago a run may have been to count a third in how often a group runs.
_MEMORY_S = 10.0
#: A group is only evicted for one that runs so much more often: no thrashing.
_HYSTERESIS = 1.25


class Vaultline:
    """Batches of one step group, shortest remaining time per request first, with ageing.

    Of all queues the one is taken whose requests finish soonest for the core time that they need
    (Smith's rule on batches: W. E. Smith, "Various optimizers for single-stage production", 1956).
    That prefers groups whose weights are here, long queues, what is nearly done, and quick models.

    A request's fair share of waiting is the work before it in its own model's queues, times the
    number of models that have any. Who has waited ``fair_shares`` times that is overdue, and
    overdue requests go first, the largest stretch before the others. So a hot model delays a cold
    one by a bounded factor, whatever the popularity.

    Weights stay where groups run often. Queues are known, so a group that someone waits for is
    never evicted for one that nobody waits for.
    """

    def __init__(self, fair_shares: float = FAIR_SHARES, queue_max: int = 10_000) -> None:
        self._fair_shares, self._queue_max = fair_shares, queue_max
        self._shares: dict[int, float] = {}
        self._uses: dict[Key, _Rate] = {}

    def admit(self, server: Server, request: Request) -> str | None:
        """Refuse what can't be answered in time, at once and with a reason."""
        own_s = server.remaining_s((request.model, 0), 1)
        ahead_s = sum(self._work_s(server, name) for name in server.models) / server.facts.cores
        if request.deadline_s is not None and server.now_s + own_s > request.deadline_s:
            return "even alone the model takes longer than the deadline leaves"
        waiting = sum(len(queue) for _, queue in server.waiting())
        if waiting >= self._queue_max:
            return f"{waiting} requests are waiting already"
        if request.deadline_s is not None and server.now_s + ahead_s + own_s > request.deadline_s:
            return "the work that waits leaves no time before the deadline"
        active = 1 + sum(
            any(queue for (model, _), queue in server.queues.items() if model == name)
            for name in server.models
            if name != request.model
        )
        mine_s = self._work_s(server, request.model) + own_s
        self._shares[request.number] = active * mine_s / server.facts.cores
        return None

    def choose(self, server: Server) -> Choice | None:
        """The most overdue queue, or else the one with most requests done per second."""
        self._forget(server)
        best: tuple[tuple[bool, float], Choice] | None = None
        for key, count in _startable(server):
            stretch = self._stretch(server, key)
            overdue = stretch >= self._fair_shares
            worth = stretch if overdue else count / server.remaining_s(key, count)
            if best is None or (overdue, worth) > best[0]:
                best = (overdue, worth), Choice(key=key, count=count)
        if best is None:
            return None
        choice = best[1]
        self._uses.setdefault(choice.key, _Rate()).add(server.now_s)
        return self._kept(server, choice)

    def _stretch(self, server: Server, key: Key) -> float:
        """The longest wait in a queue, in fair shares."""
        return max(
            (server.now_s - request.arrived_s) / max(self._shares.get(request.number, 0.0), 1e-9)
            for request in server.queues[key]
        )

    def _work_s(self, server: Server, name: str) -> float:
        """Core time of all that waits for a model, in runs as large as may be."""
        return sum(
            len(queue)
            / (count := min(len(queue), server.group(key).frames_max))
            * server.remaining_s(key, count)
            for key, queue in server.waiting()
            if key[0] == name
        )

    def _kept(self, server: Server, choice: Choice) -> Choice:
        """Keep the weights if there is room, or if others that are kept are used less often."""
        key, count = choice.key, choice.count
        ranked = sorted(server.evictable(), key=lambda each: self._rate(server, each))
        if key not in server.resident:
            rate = self._rate(server, key)
            worse = [each for each in ranked if self._rate(server, each) * _HYSTERESIS < rate]
            evict = server.evictions(key, count, worse, keep=True)
            if server.fits(key, count, keep=True, evict=evict):
                return Choice(key=key, count=count, keep=True, evict=tuple(evict))
        evict = server.evictions(key, count, ranked, keep=False)
        return Choice(key=key, count=count, evict=tuple(evict))

    def _rate(self, server: Server, key: Key) -> float:
        """How often a group runs; who is waited for counts as run once more."""
        uses = self._uses.get(key)
        waited = 1.0 if server.queues[key] else 0.0
        return waited + (uses.at(server.now_s) if uses else 0.0)

    def _forget(self, server: Server) -> None:
        """Shares of requests that have left."""
        if len(self._shares) > 4 * self._queue_max:
            here = {request.number for _, queue in server.waiting() for request in queue}
            self._shares = {n: s for n, s in self._shares.items() if n in here}


@dataclass(slots=True)
class _Rate:
    """A count of events that fades with time."""

    count: float = 0.0
    last_s: float = 0.0

    def add(self, now_s: float) -> None:
        self.count, self.last_s = self.at(now_s) + 1.0, now_s

    def at(self, now_s: float) -> float:
        return self.count * exp((self.last_s - now_s) / _MEMORY_S)


class Fifo:
    """Whole requests in the order of their arrival, one per core, nothing shared between them.

    With ``keep_model`` the weights of whole models stay as long as there is room, the least
    recently used one goes first.
    """

    def __init__(self, *, batch: bool = False, keep_model: bool = False) -> None:
        self._batch, self._keep = batch, keep_model

    def admit(self, server: Server, request: Request) -> str | None:
        """Everything is taken."""
        return None

    def choose(self, server: Server) -> Choice | None:
        """Whoever has started goes on; else the oldest request starts."""
        found: list[tuple[bool, float, int, Key]] = [
            (key[1] == 0, queue[0].arrived_s, queue[0].number, key)
            for key, queue in server.waiting()
        ]
        for _, _, _, key in sorted(found):
            most = min(len(server.queues[key]), server.group(key).frames_max)
            for count in range(most if self._batch or key[1] > 0 else 1, 0, -1):
                if server.may_start(key, count):
                    return self._choice(server, key, count)
        return None

    def _choice(self, server: Server, key: Key, count: int) -> Choice:
        """Least recently used groups go first, those of the same model last."""
        ranked = sorted(
            server.evictable(), key=lambda each: (each[0] == key[0], server.resident[each])
        )
        if self._keep and key not in server.resident:
            others = [each for each in ranked if each[0] != key[0]]
            evict = server.evictions(key, count, others, keep=True)
            if server.fits(key, count, keep=True, evict=evict):
                return Choice(key=key, count=count, keep=True, evict=tuple(evict))
        evict = server.evictions(key, count, ranked, keep=False)
        return Choice(key=key, count=count, evict=tuple(evict))


def _startable(server: Server) -> Iterator[tuple[Key, int]]:
    """Queues with the most requests that a run could take now."""
    for key, queue in server.waiting():
        for count in range(min(len(queue), server.group(key).frames_max), 0, -1):
            if server.may_start(key, count):
                yield key, count
                break
