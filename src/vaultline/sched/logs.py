"""Recorded event logs, checked: whoever wrote them is told the same events once more, and must
decide the same."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from math import isfinite

from vaultline.core.errors import InputError
from vaultline.sched.replay import (
    LOG_REMEDY,
    ActionEntry,
    BalancerEntry,
    EventEntry,
    LogEntry,
    LogHeader,
    RanEntry,
    Replayer,
    SentEntry,
)
from vaultline.sched.timeline import Timeline


def read_logs(logs: Iterable[tuple[str, Iterable[LogEntry]]]) -> Timeline:
    """One timeline of several logs whose clocks agree, such as those of a cluster's hosts.

    What servers held is not in a log: it follows from their events. So the log is replayed, and
    what servers and balancer decide is compared with what the log says they decided. Only its end
    may be missing.

    Args:
        logs: the entries of each, and its name for messages.

    Raises:
        InputError: a log without a header, of other servers than it names, or whose decisions
            these schedulers don't take, as they are others or the log has been changed.
        InfeasibleError: a server can't run one of its models.
    """
    timeline = Timeline()
    for name, entries in logs:
        _Replay(name, timeline).take(entries)
    timeline.close()
    return timeline


class _Replay:
    """Tells one log's events to servers and a balancer of their own."""

    def __init__(self, name: str, timeline: Timeline) -> None:
        self._name, self._timeline = name, timeline
        self._replayer: Replayer | None = None
        #: By who decides (a server, or None for the balancer): what the log has still to say.
        self._expected: dict[str | None, deque[LogEntry]] = {}
        self._seen: set[str] = set()
        self._line = 0

    def take(self, entries: Iterable[LogEntry]) -> None:
        for entry in entries:
            self._line += 1
            match entry:
                case LogHeader():
                    self._start(entry)
                case EventEntry() | BalancerEntry():
                    self._tell(entry)
                case ActionEntry() | SentEntry():
                    self._compare(entry)
                case RanEntry():
                    seconds = entry.ended_s - entry.started_s
                    self._timeline.ran(entry.server, entry.core, seconds, entry.load_s)
        if not self._line:
            raise InputError(f"{self._name}: an empty event log", remedy=LOG_REMEDY)

    def _start(self, header: LogHeader) -> None:
        if self._replayer is not None:
            raise self._wrong("a second header", header.policy)
        try:
            self._replayer = Replayer(header)
        except InputError as error:
            raise self._wrong(error.message, error.got) from error

    def _tell(self, entry: EventEntry | BalancerEntry) -> None:
        if self._replayer is None:
            raise self._wrong("an event before the log's header", entry)
        owner = entry.server if isinstance(entry, EventEntry) else None
        if self._expected.get(owner):
            raise self._wrong("the log leaves out what was decided", self._expected[owner][0])
        if isinstance(entry, EventEntry):
            self._check_event(entry)
        try:
            decided = self._replayer.take(entry)
        except InputError as error:
            raise self._wrong(error.message, entry) from error
        self._expected[owner] = deque(decided)
        if isinstance(entry, EventEntry):
            actions = [each.action for each in decided if isinstance(each, ActionEntry)]
            self._timeline.observe(self._replayer.servers[entry.server], entry.event, actions)

    def _check_event(self, entry: EventEntry) -> None:
        if entry.server in self._timeline.servers and entry.server not in self._seen:
            raise self._wrong("an event of a server that another log is of", entry)
        self._seen.add(entry.server)
        if not isfinite(entry.event.now_s):
            raise self._wrong("an event at no time", entry)

    def _compare(self, entry: ActionEntry | SentEntry) -> None:
        """Decisions stand behind what they were made upon, before the next event of the same
        server or of the balancer; entries of others may come between."""
        expected = self._expected.get(entry.server if isinstance(entry, ActionEntry) else None)
        if not expected or expected.popleft() != entry:
            raise self._wrong("the log says that something was decided that would not be", entry)

    def _wrong(self, message: str, got: object) -> InputError:
        remedy = "replay it with the version of vaultline that recorded it"
        return InputError(f"{self._name}:{self._line}: {message}", got=str(got), remedy=remedy)
