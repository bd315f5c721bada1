"""Vaultline's local policy: what a free core of one server does next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from math import exp

from vaultline.sched.baselines import memory_share
from vaultline.sched.events import Request
from vaultline.sched.state import Choice, Key, ServerState, order

#: A model is answered once in so many equal shares of the server, at least.
FAIR_SHARES = 4.0
#: Requests that may wait on one server.
QUEUE_MAX = 10_000
#: What waiting costs: its power. 1: the mean counts; many: only the oldest does.
_COST_POWER = 2.0
#: How much of what a run costs for want of company is charged to it, though others may come.
_UNUSED_SHARE = 2.0
#: How long ago a run may have been to count a third in how often a group runs.
_MEMORY_S = 10.0
#: A group is only evicted for one that runs so much more often: no thrashing.
_HYSTERESIS = 1.25
#: Beyond this a higher or lower priority weighs no more or less.
_PRIORITY_MAX = 10


class Vaultline:
    """Batches of one step group, dearest waiting per second of core time first, with ageing.

    *Order.* The cost of a wait of ``w`` seconds grows as ``w**2``, so what it costs to let a
    batch wait on grows as its age; the batch goes first whose cost per second of core time
    that it needs to its answers is greatest, squared ages in the place of ages to favour the
    tail: the generalised c-mu rule (J. A. van Mieghem, "Dynamic scheduling with convex delay
    costs", 1995) on batches. That prefers groups whose weights are here, long queues, what is
    nearly done, and quick models, until others have waited longer. A higher priority by one
    counts twice.

    *Company.* A group that runs many frames for little more than one may wait for those of its
    model who are about to come to it. Waiting for ``x`` others delays its ``n`` requests by
    the time that those need to come; going without costs all others who wait here the run that
    both could have shared. The cheaper is done. A core never idles for it.

    *Fairness.* While a model that is installed has requests here, it answers one at least in any
    ``fair_shares * N * c + 2 * S`` seconds, where ``N`` counts the models of the server, ``c`` is
    the time of one full run of each of its groups, nothing resident (``ModelFacts.full_s``), and
    ``S`` the sum of this over all models; with more than one core, plus ``S`` for each of its
    groups. Core time of installations is not counted. So no request waits longer than
    ``(1 + w) * bound``, where ``w`` counts the requests of its own model that are answered
    before it, whatever the other models' popularity.

    Why: a model that has answered nothing for ``(fair_shares - 1) * N * c`` seconds is *due*, and
    due models go before all others, the earliest ``since + fair_shares * N * c`` first. Until it
    answers it needs ``c`` at most, and it comes due again ``N * c`` later at the earliest, as
    ``fair_shares >= 2``: so what is due takes at most the fraction ``N * (1 / N)`` of one core,
    and going by deadline meets them all (C. L. Liu and J. W. Layland, 1973), but for runs that
    can't be interrupted and for those that had begun and hold memory: one job of each model, ``S``,
    and what ran before, ``S`` again. Whoever begins without being due leaves the memory that one
    request of any model needs.
    """

    def __init__(self, fair_shares: float = FAIR_SHARES, queue_max: int = QUEUE_MAX) -> None:
        """``fair_shares``: 2 at least, or nothing is guaranteed."""
        self._fair_shares, self._queue_max = max(2.0, fair_shares), queue_max
        self._uses: dict[Key, _Rate] = {}

    # What is refused.

    def admit(self, server: ServerState, request: Request) -> str | None:
        """Refuse what can't be answered in time, at once and with a reason."""
        if server.queued >= self._queue_max:
            return f"{server.queued} requests are waiting already"
        if request.deadline_s is None:
            return None
        key = (request.model, 0)
        left_s = request.deadline_s - server.now_s
        if server.remaining_s(key, 1) > left_s:
            return "even alone the model takes longer than the deadline leaves"
        before = sum(order(each) < order(request) for each in server.queues.get(key, ()))
        cores = server.facts.cores
        if before and server.remaining_s(key, before + 1) / cores > left_s:
            return "the requests before it leave no time before the deadline"
        return None

    def hopeless(self, server: ServerState) -> Sequence[Request]:
        """At the front of queues: who would miss the deadline even if it went now."""
        found: list[Request] = []
        for key, queue in server.waiting():
            if key[1] == 0 and queue[0].deadline_s is not None:
                latest_s = server.now_s + server.remaining_s(key, 1)
                found += takewhile(
                    lambda each, latest_s=latest_s: (  # type: ignore[misc]
                        each.deadline_s is not None and each.deadline_s < latest_s
                    ),
                    queue,
                )
        return found

    # What goes next.

    def choose(self, server: ServerState) -> Choice | None:
        """What is due; else the batch whose waiting costs most per second of core time."""
        blocked = False
        for key in self._due(server):
            if key[1] > 0 or not blocked:
                count = server.startable(key, urgent=True)
                if count:
                    return self._kept(server, key, count)
                blocked = True
        if blocked and server.running:
            return None  # nobody may take what is about to be free
        best: tuple[float, Key, int] | None = None
        for worth, key in self._offers(server):
            if best is None or worth > best[0]:
                count = server.startable(key)
                if count:
                    best = worth, key, count
        return self._kept(server, best[1], best[2]) if best else None

    def _due(self, server: ServerState) -> list[Key]:
        """The most advanced queue of each model that is due, the earliest first."""
        shares = len(server.models)
        found: list[tuple[float, Key]] = []
        seen: dict[str, int] = {}
        for (name, number), _ in server.waiting():
            seen[name] = max(number, seen.get(name, 0))
        for name, number in seen.items():
            share_s = shares * server.models[name].full_s
            since_s = server.hosting.since_s(name)
            if server.now_s >= since_s + (self._fair_shares - 1) * share_s and server.hosting.here(
                name
            ):
                found.append((since_s + self._fair_shares * share_s, (name, number)))
        return [key for _, key in sorted(found)]

    def _offers(self, server: ServerState) -> Iterator[tuple[float, Key]]:
        """A run of each model that could go now, and what it is worth."""
        queued: dict[str, list[int]] = {}
        for name, number in server.queues:
            queued.setdefault(name, []).append(number)
        beside = sum(memory_share(server, run.key, run.streamed) for run in server.running.values())
        models = server.models
        grace_s = sum(models[name].alone_s for name in queued) / len(queued)
        for name, numbers in queued.items():
            if server.hosting.here(name):
                numbers.sort()
                key = (name, self._first(server, name, numbers))
                worth = self._worth(server, key, numbers, grace_s)
                if beside:
                    share = memory_share(server, key, key not in server.resident)
                    worth /= 1 + beside * share
                yield worth, key

    def _first(self, server: ServerState, name: str, numbers: Sequence[int]) -> int:
        """Of a model's groups for which someone waits, the one to run: the last, or an earlier
        one that brings it company."""
        groups, queues, resident = server.models[name].groups, server.queues, server.resident
        first = numbers[-1]
        count = min(len(queues[name, first]), groups[first].frames_max)
        for number in reversed(numbers[:-1]):
            more = min(len(queues[name, number]), groups[number].frames_max)
            saved_s = delay_s = 0.0
            for each in range(number, len(groups)):
                group, here = groups[each], (name, each) in resident
                more_s = group.worked_s(more, resident=here)
                if each < first:
                    delay_s += more_s
                else:
                    saved_s += group.worked_s(count, resident=here) + more_s
                    saved_s -= group.worked_s(count + more, resident=here)
            others = server.queued - count
            if others * saved_s <= count * delay_s or not server.startable((name, number)):
                break
            first, count = number, count + more
        return first

    def _worth(
        self, server: ServerState, key: Key, numbers: Sequence[int], grace_s: float
    ) -> float:
        """What it costs to let this queue and those behind it wait, per second of core time."""
        name, first = key
        model, queues, resident = server.models[name], server.queues, server.resident
        count, most, time_s = 0, model.frames_max, 0.0
        oldest_s, priority = server.now_s, -_PRIORITY_MAX
        for number in range(first, len(model.groups)):
            if number in numbers:
                queue = queues[name, number]
                count += min(len(queue), most)
                oldest_s = min(oldest_s, queue[0].arrived_s)
                priority = max(priority, queue[0].priority)
            group = model.groups[number]
            here = (name, number) in resident
            time_s += group.worked_s(count, resident=here)
            if number == first and count < group.frames_max:
                full_s = group.seconds(group.frames_max, resident=here) / group.frames_max
                alone_s = group.worked_s(count, resident=here)
                time_s += _UNUSED_SHARE * max(0.0, alone_s - count * full_s)
        age_s = server.now_s - oldest_s + grace_s + server.remaining_s(key, 1)
        weight: float = count * 2.0 ** min(priority, _PRIORITY_MAX)
        return weight * float(age_s**_COST_POWER) / max(time_s, 1e-9)

    # What stays.

    def _kept(self, server: ServerState, key: Key, count: int) -> Choice:
        """Keep the weights if that pays and there is room, or others are used less often."""
        self._uses.setdefault(key, _Rate()).add(server.now_s)
        here = key in server.resident
        pays = not here and self._pays(server, key, count)
        if here and server.fits(key, count):
            return Choice(key=key, count=count)
        if pays and server.fits(key, count, keep=True):
            return Choice(key=key, count=count, keep=True)
        if not pays and not here and server.fits(key, count):
            return Choice(key=key, count=count)
        rates = sorted((self._rate(server, each), each) for each in server.evictable())
        if pays:
            rate = self._rate(server, key)
            worse = [each for often, each in rates if often * _HYSTERESIS < rate]
            evict = server.evictions(key, count, worse, keep=True)
            if server.fits(key, count, keep=True, evict=evict):
                return Choice(key=key, count=count, keep=True, evict=tuple(evict))
        evict = server.evictions(key, count, [each for _, each in rates], keep=False)
        return Choice(key=key, count=count, evict=tuple(evict))

    def _pays(self, server: ServerState, key: Key, count: int) -> bool:
        """Whether to decrypt weights before the run instead of while it goes on: it costs time
        now and saves some in each later run, of which there will be as many as lately."""
        group, later = server.group(key), self._uses[key].at(server.now_s) - 1
        streamed_s = group.seconds(count, resident=False)
        more_s = group.seconds(count, resident=False, keep=True) - streamed_s
        return more_s <= later * (streamed_s - group.seconds(count, resident=True))

    def _rate(self, server: ServerState, key: Key) -> float:
        """How often a group runs; who is waited for counts as run once more."""
        uses = self._uses.get(key)
        waited = 1.0 if key in server.queues else 0.0
        return waited + (uses.at(server.now_s) if uses else 0.0)


@dataclass(slots=True)
class _Rate:
    """A count of events that fades with time."""

    count: float = 0.0
    last_s: float = 0.0

    def add(self, now_s: float) -> None:
        self.count, self.last_s = self.at(now_s) + 1.0, now_s

    def at(self, now_s: float) -> float:
        return self.count * exp((self.last_s - now_s) / _MEMORY_S)
