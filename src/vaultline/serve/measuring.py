"""What a prepared model's step groups take, measured in a serving worker on one core.

A run's seconds are from the command's first byte to the last one of the reply and of the answers,
seen by who commands, on the worker's own core, where a server's host is too: that is how long the
core is taken. So they hold what stands around the pass as well: the command, opening requests,
sealing answers. What the gateway does is not in them.

Every group is run with each number of frames, its weights decrypted for every run and kept, in
turn, round by round; what is reported are medians over the rounds.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from msgspec.structs import replace

from vaultline.core.errors import InputError
from vaultline.core.limits import MIB
from vaultline.owner.keyfile import Kek
from vaultline.owner.prepare import PreparedFiles, counts
from vaultline.owner.served import ServedModel
from vaultline.sched.facts import GroupFacts, ModelFacts
from vaultline.serve.lone_worker import LoneWorker, WorkerTrust
from vaultline.serve.prepared import load_one

#: Rounds that count, and those before them.
ROUNDS, WARM_ROUNDS = 5, 1
#: How often a model is installed.
_INSTALLS = 3
#: Of a server with the page cache of SGX1, for models that page.
PAGED_MEMORY_BYTES = 93 * MIB

#: A share of the time that the worker's core may be others', before a warning.
WAITED_MAX = 0.05

#: Called with what is being done, how much of it is done, and of how much.
Progress = Callable[[str, int, int], None]
#: Seconds of each round, by number of frames.
Times = Mapping[int, list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupTimes:
    """Seconds of a group's runs, of every round.

    Attributes:
        streamed, kept: by number of frames; nothing is kept of a group without weights.
        loading: of a run of one frame whose weights stay from then on.
    """

    streamed: Times = field(default_factory=lambda: defaultdict(list))
    kept: Times = field(default_factory=lambda: defaultdict(list))
    loading: list[float] = field(default_factory=list)

    def facts(self, known: GroupFacts) -> GroupFacts:
        """The facts with measured times."""
        streamed = tuple(_medians(self.streamed).items())
        if not self.kept:
            return replace(known, run_s=streamed, load_s=0.0, streamed_s=())
        kept = _medians(self.kept)
        load_s = max(0.0, statistics.median(self.loading) - kept[1])
        run_s = tuple(kept.items())
        return replace(known, run_s=run_s, load_s=load_s, streamed_s=streamed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A model's times.

    Attributes:
        install_s: of every installation.
        waited: share of the time in which others had the worker's core.
    """

    groups: tuple[GroupTimes, ...]
    install_s: tuple[float, ...]
    waited: float = 0.0

    def facts(self, known: ModelFacts) -> ModelFacts:
        """The facts with measured times."""
        pairs = zip(self.groups, known.groups, strict=True)
        return replace(
            known,
            groups=tuple(times.facts(facts) for times, facts in pairs),
            install_s=statistics.median(self.install_s),
        )


def measure(
    served: ServedModel,
    folder: Path,
    *,
    kek: Kek,
    trust: WorkerTrust,
    core: int | None = None,
    rounds: int = ROUNDS,
    memory_bytes: int | None = None,
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
) -> ServedModel:
    """Measure a prepared model on this machine.

    Args:
        folder: where its files are.
        core: of this machine, for worker and host; by default the last that may be used.
        memory_bytes: of the worker; by default enough to keep everything or, for a model that
            pages, ``PAGED_MEMORY_BYTES``.
        warn: told if others had the core meanwhile, so that the times are too long.

    Returns:
        The manifest with measured times; it has not been written.

    Raises:
        InputError: no rounds, or no such core.
        RefusedError: the files don't belong together, or the worker is not accepted.
        MachineError: the worker failed.
    """
    if rounds < 1:
        raise InputError("nothing to measure", got=f"{rounds} rounds", expected="at least 1")
    prepared = load_one(PreparedFiles(folder=folder, name=served.name).manifest, kek)
    plan = _Plan(prepared.served, rounds)
    memory = memory_bytes or plan.memory_bytes
    chosen = max(os.sched_getaffinity(0)) if core is None else core
    with on_core(chosen), LoneWorker(prepared, trust, core=chosen, memory_bytes=memory) as worker:
        found = plan.run(worker, progress or _silent)
    if warn is not None and found.waited > WAITED_MAX:
        warn(
            f"{served.name}: others had core {chosen} for {found.waited:.0%} of the time while it "
            "was measured: measure again when nothing else runs there"
        )
    return replace(prepared.served, facts=found.facts(prepared.served.facts), measured=True)


class _Plan:
    """Which runs a round has. Requests go through the groups in order, and each run takes some of
    those that wait, so the groups before must have let as many through."""

    def __init__(self, served: ServedModel, rounds: int) -> None:
        self._served, self._rounds = served, rounds
        self._groups = served.facts.groups
        own = [self._own(group) for group in self._groups]
        #: Requests that each group takes in a round: its own and those that later ones need.
        self._needed = [max(own[number:]) for number in range(len(own))]

    @staticmethod
    def _own(group: GroupFacts) -> int:
        once = sum(counts(group.frames_max))
        return 2 * once + 1 if group.weight_bytes else once

    @property
    def memory_bytes(self) -> int:
        """With room for all weights and for all of a round's requests."""
        if self._served.paged:
            return PAGED_MEMORY_BYTES
        facts = self._served.facts
        largest = max(facts.input_bytes, *(group.output_bytes for group in self._groups))
        weights = sum(group.weight_bytes for group in self._groups)
        messages = 2 * (self._needed[0] + 2) * largest
        return weights + messages + self._served.workspace_bytes + facts.fixed_bytes + 16 * MIB

    def run(self, worker: LoneWorker, tell: Progress) -> Measured:
        """Measure."""
        name, total = self._served.name, self._rounds + WARM_ROUNDS
        installs = []
        for turn in range(_INSTALLS):
            if turn:
                worker.remove()
            installs.append(worker.install())
        for turn in range(WARM_ROUNDS):
            tell(f"{name}: measuring", turn, total)
            self._round(worker, tuple(GroupTimes() for _ in self._groups))
        found = tuple(GroupTimes() for _ in self._groups)
        before_s, waited_s = time.perf_counter(), worker.waited_s
        for turn in range(self._rounds):
            tell(f"{name}: measuring", WARM_ROUNDS + turn, total)
            self._round(worker, found)
        waited = (worker.waited_s - waited_s) / (time.perf_counter() - before_s)
        return Measured(groups=found, install_s=tuple(installs), waited=waited)

    def _round(self, worker: LoneWorker, found: tuple[GroupTimes, ...]) -> None:
        numbers = worker.new_requests(self._needed[0])
        for number, (group, times) in enumerate(zip(self._groups, found, strict=True)):
            waiting = iter(numbers[: self._needed[number]])
            sizes = counts(group.frames_max)
            for count in sizes:
                times.streamed[count].append(worker.run(number, _take(waiting, count)))
            if group.weight_bytes:
                times.loading.append(worker.run(number, _take(waiting, 1), keep=True))
                for count in sizes:
                    times.kept[count].append(worker.run(number, _take(waiting, count), keep=True))
            while rest := _take(waiting, group.frames_max):
                worker.run(number, rest)
            if group.weight_bytes:
                worker.evict(number)


def _take(waiting: Iterator[int], count: int) -> list[int]:
    """The next requests, fewer where there are no more."""
    return list(islice(waiting, count))


def _medians(times: Times) -> dict[int, float]:
    return {count: statistics.median(seconds) for count, seconds in sorted(times.items())}


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """This thread on one core of the machine.

    Raises:
        InputError: it may not run there.
    """
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {core})
    except (OSError, OverflowError, ValueError) as error:
        raise InputError(
            "can't measure on that core", got=str(core), expected=f"one of {sorted(before)}"
        ) from error
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _silent(what: str, done: int, total: int) -> None:
    """No progress."""
