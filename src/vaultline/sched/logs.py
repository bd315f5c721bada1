"""Timelines of recorded event logs: the same servers are told the same events once more."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite

from vaultline.core.errors import InputError
from vaultline.sched.events import Action
from vaultline.sched.replay import (
    IMPOSSIBLE,
    ActionEntry,
    EventEntry,
    LogEntry,
    LogHeader,
    RanEntry,
    Replayer,
)
from vaultline.sched.server import Server
from vaultline.sched.timeline import Timeline


def read_logs(logs: Iterable[tuple[str, Iterable[LogEntry]]]) -> Timeline:
    """One timeline of several logs whose clocks agree, such as those of a cluster's hosts.

    What servers held is not in a log: it follows from their events. So the log is replayed, and
    what the servers decide is compared with what the log says they decided.

    Args:
        logs: the entries of each, and its name for messages.

    Raises:
        InputError: a log without a header, of other servers than it names, or whose actions these
            schedulers don't take, as they are others or the log has been changed.
    """
    timeline = Timeline()
    for name, entries in logs:
        _Replay(name, timeline).take(entries)
    timeline.close()
    return timeline


class _Replay:
    """Tells one log's events to servers of their own."""

    def __init__(self, name: str, timeline: Timeline) -> None:
        self._name, self._timeline = name, timeline
        self._servers: dict[str, Server] = {}
        self._expected: list[Action] = []
        self._seen: set[str] = set()
        self._line = 0

    def take(self, entries: Iterable[LogEntry]) -> None:
        for entry in entries:
            self._line += 1
            match entry:
                case LogHeader():
                    self._start(entry)
                case EventEntry():
                    self._tell(entry)
                case RanEntry():
                    seconds = entry.ended_s - entry.started_s
                    self._timeline.ran(entry.server, entry.core, seconds, entry.load_s)
                case ActionEntry(action=action):
                    if not self._expected or self._expected.pop(0) != action:
                        raise self._wrong("the log says that a server did what it would not", entry)
        if not self._line:
            raise InputError(f"{self._name}: an empty event log")

    def _start(self, header: LogHeader) -> None:
        models = {model.name for model in header.models}
        for facts in header.servers:
            if not models.issuperset(facts.models):
                raise self._wrong("a server has models that the log does not describe", facts.name)
        self._servers |= Replayer(header).servers

    def _tell(self, entry: EventEntry) -> None:
        server = self._servers.get(entry.server)
        if server is None:
            raise self._wrong("an event of a server that the log's header does not name", entry)
        if entry.server in self._timeline.servers and entry.server not in self._seen:
            raise self._wrong("an event of a server that another log is of", entry)
        self._seen.add(entry.server)
        if self._expected:
            raise self._wrong("the log leaves out what a server did", self._expected[0])
        if not isfinite(entry.event.now_s):
            raise self._wrong("an event at no time", entry)
        try:
            actions = server.handle(entry.event)
        except IMPOSSIBLE as error:
            message = getattr(error, "message", "the log says what can't be")
            raise self._wrong(message, entry) from error
        self._timeline.observe(server, entry.event, actions)
        self._expected = list(actions)

    def _wrong(self, message: str, got: object) -> InputError:
        remedy = "replay it with the version of vaultline that recorded it"
        return InputError(f"{self._name}:{self._line}: {message}", got=str(got), remedy=remedy)
