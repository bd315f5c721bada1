"""What happened, line by line, and the same decisions made once more from it.

A log is a file of JSON lines: a header with the facts, then what the balancer or a server was told
and what each decided, in that order. Numbers are written so that they read back the same to the
last bit; hence the same objects, told the same events, must decide the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vaultline.core.errors import InputError, LocalProtocolError
from vaultline.core.serde import Struct, canonical_json, from_json
from vaultline.sched.balancer import Balancer
from vaultline.sched.events import Action, Event, Request
from vaultline.sched.facts import ModelFacts, ServerFacts
from vaultline.sched.policies import policy
from vaultline.sched.report import Report
from vaultline.sched.server import Server

LOG_VERSION = 1
LOG_REMEDY = "give logs that `vaultline serve --log-dir` wrote"
#: What schedulers raise when they are told of models, numbers or times that nobody has.
IMPOSSIBLE = (LocalProtocolError, LookupError, ArithmeticError, ValueError)


class LogHeader(Struct, frozen=True, tag="header"):
    """First line: whose decisions these are.

    Attributes:
        servers: of the whole cluster in the balancer's log, its own in a host's.
        policy: a name of ``sched.policies``.
    """

    policy: str
    servers: tuple[ServerFacts, ...]
    models: tuple[ModelFacts, ...]
    version: int = LOG_VERSION

    def __post_init__(self) -> None:
        if self.version != LOG_VERSION:
            raise InputError(
                "an event log of another version",
                got=str(self.version),
                expected=str(LOG_VERSION),
                remedy="record it again",
            )


class EventEntry(Struct, frozen=True, tag="event"):
    """What a server was told."""

    server: str
    event: Event


class ActionEntry(Struct, frozen=True, tag="action"):
    """What it decided upon the last event of its own."""

    server: str
    action: Action


class Submitted(Struct, frozen=True, tag="submitted"):
    """The balancer was given a request."""

    now_s: float
    request: Request


class Ended(Struct, frozen=True, tag="ended"):
    """The balancer was told that a request is answered or refused for good."""

    number: int


class Returned(Struct, frozen=True, tag="returned"):
    """The balancer was told that a server refused a request which another may take."""

    now_s: float
    number: int


class Reported(Struct, frozen=True, tag="reported"):
    """The balancer was given a report."""

    now_s: float
    report: Report


class Lost(Struct, frozen=True, tag="lost"):
    """The balancer was told that a server is gone."""

    now_s: float
    server: str


class Placed(Struct, frozen=True, tag="placed"):
    """The balancer was told that a server gets a model, or no more requests for it."""

    server: str
    model: str
    there: bool


BalancerEvent = Submitted | Ended | Returned | Reported | Lost | Placed


class BalancerEntry(Struct, frozen=True, tag="balancer"):
    """What the balancer was told."""

    event: BalancerEvent


class SentEntry(Struct, frozen=True, tag="sent"):
    """Where it sends a request; None: nobody can take it."""

    number: int
    server: str | None


class RanEntry(Struct, frozen=True, kw_only=True, tag="ran"):
    """A run as the worker measured it, on the clock of the server's events. Decides nothing.

    Attributes:
        load_s: of it, decrypting weights.
    """

    server: str
    core: int
    model: str
    group: int
    requests: tuple[int, ...]
    started_s: float
    ended_s: float
    load_s: float


LogEntry = LogHeader | EventEntry | ActionEntry | RanEntry | BalancerEntry | SentEntry


def encode(entry: LogEntry) -> bytes:
    """One line, with its end."""
    return canonical_json(entry) + b"\n"


def decode(lines: Iterable[bytes]) -> Iterator[LogEntry]:
    """Entries of a log.

    Raises:
        InputError: a line is not an entry; the message says which.
    """
    for number, line in enumerate(lines, 1):
        if line.strip():
            what = f"line {number} of the event log"
            yield from_json(line, LogEntry, what=what, remedy=LOG_REMEDY)  # type: ignore[arg-type]


class Replayer:
    """The servers and the balancer of a log, fresh; told what those were told, they decide.

    ``sched.logs`` compares that with what the log says.
    """

    def __init__(self, header: LogHeader) -> None:
        """As the header says.

        Raises:
            InputError: an unknown policy, or servers and models that don't fit together.
            InfeasibleError: a server can't run one of its models.
        """
        names = {name for server in header.servers for name in server.models}
        if names - {model.name for model in header.models}:
            raise InputError("a server has models that the log does not describe")
        chosen = policy(header.policy)
        self._models = {model.name: model for model in header.models}
        self.balancer = Balancer(header.servers, self._models, chosen.chooser())
        self.servers = {
            facts.name: Server(facts, self._models, chosen.local()) for facts in header.servers
        }

    def take(self, entry: LogEntry) -> list[LogEntry]:
        """What is decided upon an entry; nothing upon decisions and measurements.

        Raises:
            InputError: a server that the header doesn't name, or an event that can't be.
        """
        try:
            if isinstance(entry, EventEntry):
                actions = self._server(entry.server).handle(entry.event)
                return [ActionEntry(server=entry.server, action=action) for action in actions]
            if isinstance(entry, BalancerEntry):
                return list(self._balance(entry.event))
        except IMPOSSIBLE as error:
            message = getattr(error, "message", "the log says what can't be")
            raise InputError(message, got=str(entry)) from error
        return []

    def _server(self, name: str) -> Server:
        if name not in self.servers:
            raise InputError(f"the log's header names no server {name!r}")
        return self.servers[name]

    def _balance(self, event: BalancerEvent) -> Iterator[SentEntry]:
        balancer = self.balancer
        match event:
            case Submitted(now_s=now_s, request=request):
                yield SentEntry(number=request.number, server=balancer.submit(request, now_s))
            case Returned(now_s=now_s, number=number):
                yield SentEntry(number=number, server=balancer.returned(number, now_s))
            case Ended(number=number):
                balancer.done(number)
            case Reported(now_s=now_s, report=report):
                balancer.reported(report, now_s)
            case Lost(now_s=now_s, server=server):
                self._server(server)
                for request, other in balancer.lost(server, now_s):
                    yield SentEntry(number=request.number, server=other)
            case Placed(server=server, model=model, there=there):
                self._server(server)
                balancer.placed(server, model, there=there)
