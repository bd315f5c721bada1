"""Servers that share one machine slow each other: how much, and how long their runs take then.

A simulated cluster has a machine for each server, unless told otherwise. On one machine a run is
slower while other cores are busy, since they share memory and caches, and each request that arrives
takes some of the processors' time from the runs: its host's on the core of its server, and the
gateway's anywhere.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import simpy
from scipy.optimize import nnls

from vaultline.core.errors import InputError
from vaultline.core.serde import Struct
from vaultline.sched.events import Arrived
from vaultline.sched.facts import ModelFacts
from vaultline.sched.replay import EventEntry, LogEntry
from vaultline.sched.timeline import CoreSpan, Timeline
from vaultline.sim.fidelity import expected_s

#: So many of the runs are taken as they come; those that are further off bend nothing.
_USUAL = 0.99
#: Of its speed, a run keeps at least so much: else it would never end.
_LOSS_MAX = 0.9


class Sharing(Struct, frozen=True):
    """What runs take on one machine, of which the facts know nothing.

    A run takes ``pace`` times what the facts say and ``run_s``, where nothing else happens. It
    loses a share of its speed, ``loss``, while all other cores are busy, and in proportion while
    some are.

    Attributes:
        run_s: a command's way to the enclave and back, in seconds.
        arrival_s: that a run is held up by each request that arrives at its server.
        elsewhere_s: the same of each that arrives at another server.
    """

    pace: float = 1.0
    run_s: float = 0.0
    loss: float = 0.0
    arrival_s: float = 0.0
    elsewhere_s: float = 0.0

    def __post_init__(self) -> None:
        times = (self.run_s, self.arrival_s, self.elsewhere_s)
        if not (self.pace > 0 and 0 <= self.loss <= _LOSS_MAX and all(0 <= s < 1e9 for s in times)):
            raise InputError("servers can't share a machine like that", got=str(self))

    @property
    def apart(self) -> bool:
        """Whether servers don't concern each other."""
        return not (self.loss or self.arrival_s or self.elsewhere_s)

    def alone_s(self, facts_s: float) -> float:
        """Seconds of a run while nothing else happens, of which the facts say ``facts_s``."""
        return self.pace * facts_s + self.run_s


@dataclass(slots=True)
class _Job:
    left_s: float
    done: Callable[[], None]
    turn: int = 0


class SharedCores:
    """The cores of one machine in virtual time."""

    def __init__(self, env: simpy.Environment, sharing: Sharing, cores: int) -> None:
        self._env, self._sharing = env, sharing
        self._others = max(1, cores - 1)
        self._jobs: dict[tuple[str, int], _Job] = {}
        self._speed, self._since_s = 1.0, env.now

    def start(self, server: str, core: int, alone_s: float, done: Callable[[], None]) -> None:
        """A run on a core, that nothing else runs on; ``done`` is called at its end."""
        self._work()
        self._jobs[server, core] = _Job(left_s=alone_s, done=done)
        self._plan()

    def arrived(self, server: str) -> None:
        """A request has come to a server."""
        self._work()
        for (of, _), job in self._jobs.items():
            job.left_s += self._sharing.arrival_s if of == server else self._sharing.elsewhere_s
        self._plan()

    def lost(self, server: str) -> None:
        """A server's runs have ended without end."""
        self._work()
        for key in [key for key in self._jobs if key[0] == server]:
            del self._jobs[key]
        self._plan()

    def _work(self) -> None:
        """Account for the time since something changed."""
        worked_s = (self._env.now - self._since_s) * self._speed
        for job in self._jobs.values():
            job.left_s -= worked_s
        self._since_s = self._env.now

    def _plan(self) -> None:
        """Say anew when runs end, now that it is other than before."""
        self._speed = 1 - self._sharing.loss * max(0, len(self._jobs) - 1) / self._others
        for key, job in self._jobs.items():
            job.turn += 1
            timeout = self._env.timeout(max(0.0, job.left_s / self._speed))
            timeout.callbacks.append(partial(self._end, key, job, job.turn))

    def _end(self, key: tuple[str, int], job: _Job, turn: int, _: simpy.Event) -> None:
        if self._jobs.get(key) is not job or job.turn != turn:
            return  # planned before something else happened
        self._work()
        del self._jobs[key]
        self._plan()
        job.done()


def measured_sharing(
    timeline: Timeline,
    logs: Iterable[Iterable[LogEntry]],
    numbers: Collection[int],
    models: Mapping[str, ModelFacts],
) -> Sharing:
    """How servers shared a machine while requests were served, by least squares over their runs.

    Args:
        timeline: of their logs, whose clocks agree.
        numbers: of the requests that count, a set.

    Raises:
        InputError: too few runs to tell.
    """
    explained = list(_explained(timeline, _arrivals(logs), numbers, models))
    rows = np.array(explained).reshape(-1, 6)
    if len(rows) < rows.shape[1]:
        raise InputError("too few runs to tell how servers share a machine", got=str(len(rows)))
    took, by = rows[:, 0], rows[:, 1:]
    off = np.abs(took - by[:, 0])
    usual = off <= np.quantile(off, _USUAL)
    (pace, run_s, loss, arrival_s, elsewhere_s), _ = nnls(by[usual], took[usual])
    loss = min(loss, _LOSS_MAX)
    # All together take what they took, those that were far off included.
    rest = by[:, 1:] @ np.array([run_s, loss, arrival_s, elsewhere_s])
    pace = max(0.1 * pace, float((took - rest).sum() / by[:, 0].sum()))
    return Sharing(
        pace=float(pace),
        run_s=float(run_s),
        loss=float(loss),
        arrival_s=float(arrival_s),
        elsewhere_s=float(elsewhere_s),
    )


def _explained(
    timeline: Timeline,
    arrivals: Mapping[str, Sequence[float]],
    numbers: Collection[int],
    models: Mapping[str, ModelFacts],
) -> Iterator[tuple[float, ...]]:
    """Of each run what it took, and what that is to be explained by."""
    busy = _Busy(timeline)
    for span, run in timeline.runs:
        if span.failure or not all(number in numbers for number in run.requests):
            continue
        own = _between(arrivals.get(span.server, ()), span)
        everywhere = sum(_between(times, span) for times in arrivals.values())
        facts_s, company_s = expected_s(run, models), busy.company_s(span)
        took_s = span.ended_s - span.started_s
        yield took_s, facts_s, 1.0, company_s, own, everywhere - own


class _Busy:
    """When how many cores were busy."""

    def __init__(self, timeline: Timeline) -> None:
        changes = sorted(
            change
            for span in timeline.spans
            for change in ((span.started_s, 1), (span.ended_s, -1))
        )
        self._others = max(1, sum(facts.cores for facts in timeline.servers.values()) - 1)
        self._at_s = np.array([at_s for at_s, _ in changes])
        busy = np.cumsum([step for _, step in changes])
        #: Core-seconds up to each change.
        self._core_s = np.concatenate([[0.0], np.cumsum(busy[:-1] * np.diff(self._at_s))])

    def company_s(self, span: CoreSpan) -> float:
        """Seconds of a span in which all other cores were busy; some, in proportion."""
        before, after = np.interp([span.started_s, span.ended_s], self._at_s, self._core_s)
        return float(after - before - (span.ended_s - span.started_s)) / self._others


def _arrivals(logs: Iterable[Iterable[LogEntry]]) -> dict[str, list[float]]:
    """When requests arrived at each server, in order."""
    found: dict[str, list[float]] = {}
    for log in logs:
        for entry in log:
            if isinstance(entry, EventEntry) and isinstance(entry.event, Arrived):
                found.setdefault(entry.server, []).append(entry.event.now_s)
    return found


def _between(times: Sequence[float], span: CoreSpan) -> int:
    """Those that came while a run was under way; what started it is not among them."""
    return bisect_left(times, span.ended_s) - bisect_right(times, span.started_s)
