"""Local policies to compare with: what servers usually do, and Lasagna's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vaultline.sched.events import Request
from vaultline.sched.state import Choice, Key, ServerState, order

#: Whether weights stay: never, or until the least recently used group or model has to go.
Keep = Literal["nothing", "groups", "models"]
#: How many of the oldest tasks Lasagna's scheduler chooses from.
_LOOKED_AT = 8


@dataclass(slots=True)
class _Batch:
    """Requests of one model that go through it together.

    Attributes:
        left: by group, how many of them have yet to be run.
    """

    model: str
    left: list[int]


class Fifo:
    """Whole requests in the order of their arrival, one per core; or batches of one model's.

    Ordinary dynamic batching: when a core is free, the model of the oldest request goes next, with
    as many as wait for it, up to the largest run of any of its groups. They all go through one
    group, in as many runs as that takes, before the next one.
    """

    def __init__(self, *, keep: Keep = "nothing", batch: bool = False) -> None:
        self._keep: Keep = keep
        self._batch = batch
        self._batches: list[_Batch] = []

    def admit(self, server: ServerState, request: Request) -> str | None:
        """Everything is taken."""
        return None

    def hopeless(self, server: ServerState) -> Sequence[Request]:
        """Nothing is given up."""
        return ()

    def choose(self, server: ServerState) -> Choice | None:
        """What has begun goes on; else the oldest request begins, in company."""
        for batch in self._batches:
            choice = self._going_on(server, batch)
            if choice is not None:
                return choice
        self._batches = [batch for batch in self._batches if any(batch.left)]
        heads = sorted((order(queue[0]), key) for key, queue in server.waiting() if key[1] == 0)
        for _, key in heads:
            if server.startable(key):
                model = server.models[key[0]]
                size = min(len(server.queues[key]), model.frames_max if self._batch else 1)
                self._batches.append(_Batch(key[0], [size] * len(model.groups)))
                return self._going_on(server, self._batches[-1])
        return self._anything(server)

    def _going_on(self, server: ServerState, batch: _Batch) -> Choice | None:
        """The next run of a batch; None if it is through, or has to wait for another core."""
        running = {run.key for run in server.running.values()}
        for group, left in enumerate(batch.left):
            if not left:
                continue
            key = (batch.model, group)
            count = min(server.startable(key), left)
            if count:
                batch.left[group] -= count
                return kept(server, key, count, self._keep)
            if key in server.queues and group > 0:
                return None  # no room as yet
            if any((batch.model, each) in running for each in range(group + 1)):
                return None
            # Whoever is missing has failed, or can't begin: the others go on without.
            batch.left[group:] = [max(0, each - left) for each in batch.left[group:]]
        return None

    def _anything(self, server: ServerState) -> Choice | None:
        """Whatever has begun and belongs to no batch any more."""
        if server.running:
            return None
        for key, _ in sorted(server.waiting(), key=lambda each: order(each[1][0])):
            if server.startable(key):
                return kept(server, key, 1, self._keep)
        return None


class Lasagna:
    """Tasks of layers, run together where memory allows, memory-heavy ones with compute-heavy ones.

    In the manner of Y. Li et al., "Lasagna: Accelerating Secure Deep Learning Inference in
    SGX-enabled Edge Cloud", SoCC 2021, on our executor: a task is one request and one group. Of the
    oldest tasks that fit beside what runs, the one goes first that shares the memory's bandwidth
    least with what runs; then one whose weights are here; then the oldest request.
    """

    def __init__(self, *, batch: bool = False) -> None:
        self._batch = batch

    def admit(self, server: ServerState, request: Request) -> str | None:
        """Everything is taken."""
        return None

    def hopeless(self, server: ServerState) -> Sequence[Request]:
        """Nothing is given up."""
        return ()

    def choose(self, server: ServerState) -> Choice | None:
        """One of the oldest tasks."""
        tasks = sorted((order(queue[0]), key) for key, queue in server.waiting())
        beside = sum(memory_share(server, run.key, run.streamed) for run in server.running.values())
        best: tuple[tuple[float, bool], Key] | None = None
        for _, key in tasks[:_LOOKED_AT]:
            here = key in server.resident
            rank = (beside * memory_share(server, key, not here), not here)
            if (best is None or rank < best[0]) and server.startable(key):
                best = rank, key
        if best is None:
            return None
        count = server.startable(best[1]) if self._batch else 1
        return kept(server, best[1], count, "groups")


def memory_share(server: ServerState, key: Key, streamed: bool) -> float:
    """The part of a run of one request in which the memory is what it waits for."""
    group = server.group(key)
    alone_s = group.seconds(1, resident=not streamed)
    return group.decrypt_s / alone_s if streamed and alone_s > 0 else 0.0


def kept(server: ServerState, key: Key, count: int, keep: Keep) -> Choice:
    """A run whose weights stay, if they may; the least recently used ones make room."""
    ranked = sorted(server.evictable(), key=lambda each: (each[0] == key[0], server.resident[each]))
    others = [each for each in ranked if each[0] != key[0]]
    worth = keep == "groups" or (keep == "models" and _fits_whole(server, key[0]))
    if worth and key not in server.resident:
        evict = server.evictions(key, count, others, keep=True)
        if keep == "models":
            names = {name for name, _ in evict}
            evict = [each for each in others if each[0] in names]
        if server.fits(key, count, keep=True, evict=evict):
            return Choice(key=key, count=count, keep=True, evict=tuple(evict))
    evict = server.evictions(key, count, ranked, keep=False)
    return Choice(key=key, count=count, evict=tuple(evict))


def _fits_whole(server: ServerState, name: str) -> bool:
    model, memory = server.models[name], server.memory
    return memory.fixed + server.hosting.most + model.weight_bytes <= memory.memory
