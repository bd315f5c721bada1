"""A server's decisions, carried out: events in, commands to its worker and messages to its gateway
out. No I/O and no clock, so that a recorded log can be replayed through it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

from msgspec.structs import replace

from vaultline.core.control import StageMetrics
from vaultline.core.errors import LocalProtocolError, RemoteProtocolError
from vaultline.core.serving import (
    DoneReply,
    EvictCommand,
    FailedReply,
    HostCommand,
    InstallCommand,
    RemoveCommand,
    RunCommand,
    WorkerReply,
)
from vaultline.sched.events import (
    Action,
    Answer,
    Arrived,
    Decline,
    Draining,
    Event,
    Evict,
    Failed,
    Finished,
    Install,
    Installing,
    Refuse,
    Remove,
    Removing,
    Request,
    Run,
)
from vaultline.sched.replay import ActionEntry, EventEntry, LogEntry, RanEntry
from vaultline.sched.server import Server
from vaultline.sched.wire import (
    AnsweredMessage,
    DrainedMessage,
    DrainMessage,
    GatewayMessage,
    HostedModel,
    HostMessage,
    InstallMessage,
    RefusedRequestMessage,
    ReportedMessage,
    ServerMetrics,
    SubmitMessage,
)

Buffer = bytes | bytearray | memoryview
ToWorker = Callable[[HostCommand, Sequence[Buffer]], None]
ToGateway = Callable[[HostMessage, Sequence[Buffer]], None]
ToLog = Callable[[LogEntry], None]

#: Sealed requests that wait in the host's memory; more are refused.
HELD_BYTES_MAX = 1 << 30
_NOTHING: Mapping[int, Buffer] = {}


@dataclass(frozen=True, slots=True)
class _Sent:
    """What a core of the worker was told, and when."""

    command: InstallCommand | RunCommand
    since_s: float


class ServerDriver:
    """Feeds one ``Server`` and does what it says. Times are of one clock, as in its events."""

    def __init__(
        self,
        server: Server,
        models: Sequence[HostedModel],
        to_worker: ToWorker,
        to_gateway: ToGateway,
        to_log: ToLog | None = None,
        *,
        held_bytes_max: int = HELD_BYTES_MAX,
    ) -> None:
        """``models`` are in the order of the worker's grant."""
        self._server = server
        self._models = list(models)
        self._numbers = {model.facts.name: k for k, model in enumerate(models)}
        self._to_worker, self._to_gateway, self._to_log = to_worker, to_gateway, to_log
        self._held_bytes_max, self._held_bytes = held_bytes_max, 0
        self._requests: dict[int, Buffer] = {}
        self._answers: dict[int, Buffer] = {}
        self._sent: dict[int, _Sent] = {}
        self._to_install = [self._numbers[name] for name in reversed(server.facts.models)]
        self._installing: set[int] = set()
        self._installed = False
        self._at_worker: set[int] = set()
        self._own_replies: list[DoneReply] = []
        self._here: set[int] = set()
        self._turned_away = 0
        self._told_drained = False
        self.worker_metrics = StageMetrics()

    # Before the first request.

    def install(self, now_s: float) -> None:
        """Have the server's models installed, each by a core that has nothing to do; until that is
        done nobody may send requests."""
        for core in range(self._server.facts.cores):
            self._install_next(core, now_s)

    @property
    def installed(self) -> bool:
        """Whether requests can be run."""
        return self._installed

    def _install_next(self, core: int, now_s: float) -> None:
        self._installing.discard(core)
        if self._to_install:
            self._installing.add(core)
            self._install(core, self._to_install.pop(), now_s)
        self._installed = not self._installing

    def _install(self, core: int, model: int, now_s: float) -> None:
        """The worker makes every core's sessions at once: other cores have nothing left to do."""
        command = InstallCommand(core=core, model=model)
        if model not in self._at_worker:
            self._at_worker.add(model)
            self._command(command, (), now_s)
            return
        self._sent[core] = _Sent(command, now_s)
        metrics = self.worker_metrics
        done = DoneReply(core=core, answers=0, seconds=0.0, load_s=0.0, metrics=metrics)
        self._own_replies.append(done)

    def own_replies(self) -> list[DoneReply]:
        """Of what the worker need not be told: to be taken as its own, and forgotten here."""
        replies, self._own_replies = self._own_replies, []
        return replies

    # Events of the scheduler.

    def event(self, event: Event, payloads: Mapping[int, Buffer] = _NOTHING) -> list[Action]:
        """Let something happen, and carry out what the scheduler says.

        ``payloads``: by request, the sealed request that has arrived or the sealed answers of the
        run that has finished.
        """
        if isinstance(event, Arrived):
            self._here.add(event.request.number)
            self._requests.update(payloads)
            self._held_bytes += sum(map(len, payloads.values()))
        elif isinstance(event, Finished | Failed):
            self._sent.pop(event.core, None)
            self._answers.update(payloads)
        actions = self._server.handle(event)
        if self._to_log is not None:
            name = self._server.facts.name
            self._to_log(EventEntry(server=name, event=event))
            for action in actions:
                self._to_log(ActionEntry(server=name, action=action))
        for action in actions:
            self._act(action, event.now_s)
        self._tell_drained()
        return actions

    def _act(self, action: Action, now_s: float) -> None:
        match action:
            case Run():
                command = RunCommand(
                    core=action.core,
                    model=self._numbers[action.model],
                    group=action.group,
                    requests=action.requests,
                    keep=action.keep,
                )
                first = action.requests if action.group == 0 else ()
                self._command(command, [self._forget(number) for number in first], now_s)
            case Evict(model=model, group=group):
                self._to_worker(EvictCommand(model=self._numbers[model], group=group), ())
            case Install(core=core, model=model):
                self._install(core, self._numbers[model], now_s)
            case Remove(model=model):
                self._at_worker.discard(self._numbers[model])
                self._to_worker(RemoveCommand(model=self._numbers[model]), ())
            case Decline():  # the gateway sees from reports which models a server has
                pass
            case Answer(request=number):
                self._here.discard(number)
                self._to_gateway(AnsweredMessage(number=number), (self._answers.pop(number),))
            case Refuse(request=number, reason=reason, elsewhere=elsewhere):
                self._here.discard(number)
                if number in self._requests:
                    self._forget(number)
                self._to_gateway(
                    RefusedRequestMessage(number=number, reason=reason, elsewhere=elsewhere), ()
                )
            case _:  # pragma: no cover
                assert_never(action)

    def _forget(self, number: int) -> Buffer:
        sealed = self._requests.pop(number)
        self._held_bytes -= len(sealed)
        return sealed

    def _command(
        self, command: InstallCommand | RunCommand, sealed: Sequence[Buffer], now_s: float
    ) -> None:
        if command.core in self._sent:
            raise LocalProtocolError(f"core {command.core} was given two things to do")
        self._sent[command.core] = _Sent(command, now_s)
        self._to_worker(command, sealed)

    def _tell_drained(self) -> None:
        server = self._server
        busy = server.running or server.queued or server.hosting.busy
        if server.draining and not self._told_drained and not busy:
            self._told_drained = True
            self._to_gateway(self.report(), ())  # of all that it did
            self._to_gateway(DrainedMessage(), ())

    # What the gateway says.

    def request_sizes(self, message: GatewayMessage) -> tuple[int, ...]:
        """What follows a message.

        Raises:
            RemoteProtocolError: a request for a model that this server doesn't have.
        """
        if not isinstance(message, SubmitMessage):
            return ()
        if message.model not in self._numbers:
            raise RemoteProtocolError("a request for an unknown model", got=message.model)
        return (self._models[self._numbers[message.model]].request_bytes,)

    def heard(self, message: GatewayMessage, payloads: Sequence[Buffer], now_s: float) -> None:
        """The gateway said something.

        Raises:
            RemoteProtocolError: it said what can't be.
        """
        if isinstance(message, SubmitMessage):
            self._submitted(message, payloads[0], now_s)
        elif isinstance(message, DrainMessage):
            if not self._server.draining:
                self.event(Draining(now_s=now_s))
        elif message.model not in self._numbers:
            raise RemoteProtocolError("an unknown model", got=message.model)
        elif isinstance(message, InstallMessage):
            self.event(Installing(now_s=now_s, model=message.model))
        else:
            self.event(Removing(now_s=now_s, model=message.model))

    def _submitted(self, message: SubmitMessage, sealed: Buffer, now_s: float) -> None:
        if message.number in self._here:
            raise RemoteProtocolError(f"request {message.number} has come twice")
        if self._held_bytes + len(sealed) > self._held_bytes_max:
            self._turned_away += 1
            reason = f"{len(self._requests)} requests of {self._held_bytes:,} bytes wait already"
            refused = RefusedRequestMessage(number=message.number, reason=reason, elsewhere=True)
            self._to_gateway(refused, ())
            return
        left_s = message.deadline_in_s
        request = Request(
            number=message.number,
            model=message.model,
            arrived_s=now_s,
            deadline_s=None if left_s is None else now_s + max(0.0, left_s),
            priority=message.priority,
        )
        self.event(Arrived(now_s=now_s, request=request), {message.number: sealed})

    # What the worker says.

    def answer_sizes(self, reply: WorkerReply) -> tuple[int, ...]:
        """What follows a reply.

        Raises:
            RemoteProtocolError: a reply that can't be to what the core was told.
        """
        sent = self._sent.get(reply.core)
        if sent is None:
            raise RemoteProtocolError(f"core {reply.core} has answered without a command")
        if isinstance(reply, FailedReply):
            return ()
        model = self._models[sent.command.model]
        expected = 0
        if isinstance(sent.command, RunCommand) and sent.command.group + 1 == len(
            model.facts.groups
        ):
            expected = len(sent.command.requests)
        if reply.answers != expected:
            raise RemoteProtocolError(
                "a run gave another number of answers",
                got=str(reply.answers),
                expected=f"{expected}",
            )
        return (model.answer_bytes,) * expected

    def replied(self, reply: WorkerReply, answers: Sequence[Buffer], now_s: float) -> None:
        """The worker is done with what a core was told, or could not do it.

        Raises:
            RemoteProtocolError: it could not install a model.
        """
        sent = self._sent.get(reply.core)
        if sent is None:
            raise RemoteProtocolError(f"core {reply.core} has answered without a command")
        if isinstance(reply, DoneReply):
            self.worker_metrics = reply.metrics
        if isinstance(sent.command, InstallCommand) and not self.installed:
            if isinstance(reply, FailedReply):
                name = self._models[sent.command.model].facts.name
                raise RemoteProtocolError(
                    f"the worker can't install {name}", got=f"{reply.code}: {reply.message}"
                )
            del self._sent[reply.core]
            self._install_next(reply.core, now_s)
        elif isinstance(reply, FailedReply):
            if isinstance(sent.command, InstallCommand):
                self._at_worker.discard(sent.command.model)
            reason = f"{reply.code}: {reply.message}"
            self.event(Failed(now_s=now_s, core=reply.core, reason=reason))
        elif isinstance(sent.command, InstallCommand):
            self.event(Finished(now_s=now_s, core=reply.core))
        else:
            self._log_run(sent.command, reply, now_s)
            # Answers follow only the last group.
            paired = zip(sent.command.requests, answers, strict=False)
            self.event(Finished(now_s=now_s, core=reply.core), dict(paired))

    def _log_run(self, command: RunCommand, reply: DoneReply, now_s: float) -> None:
        if self._to_log is not None:
            self._to_log(
                RanEntry(
                    server=self._server.facts.name,
                    core=command.core,
                    model=self._models[command.model].facts.name,
                    group=command.group,
                    requests=command.requests,
                    started_s=now_s - reply.seconds,
                    ended_s=now_s,
                    load_s=reply.load_s,
                )
            )

    # What is told and watched.

    @property
    def drained(self) -> bool:
        """Whether the last message has been said."""
        return self._told_drained

    def oldest_s(self, now_s: float) -> float:
        """For how long the worker has been at the oldest thing that it was told."""
        return max((now_s - sent.since_s for sent in self._sent.values()), default=0.0)

    def report(self) -> ReportedMessage:
        """What the gateway is told of the server; what was turned away has been taken note of."""
        report = self._server.report()
        report = replace(report, taken=report.taken + self._turned_away)
        return ReportedMessage(report=report, metrics=self._metrics(report.waiting))

    def _metrics(self, waiting: Mapping[str, int]) -> ServerMetrics:
        totals = self._server.totals
        return ServerMetrics(
            queued=waiting,
            held_bytes=self._server.held(),
            runs=totals.runs,
            loads=totals.loads,
            evictions=totals.evictions,
            answered=totals.answered,
            refused=totals.refused + totals.failed + self._turned_away,
            missed_deadlines=totals.missed,
            busy_s=dict(totals.served_s),
            worker=self.worker_metrics,
        )


def replay(driver: ServerDriver, server: Server, events: Iterable[Event]) -> list[list[Action]]:
    """Let recorded events happen to the driver of a fresh server; the actions after each one.

    Sealed requests and answers are not in a log: empty ones take their place.
    """
    return [driver.event(event, dict.fromkeys(_moved(server, event), b"")) for event in events]


def _moved(server: Server, event: Event) -> tuple[int, ...]:
    """Requests whose sealed input or answer comes with an event."""
    if isinstance(event, Arrived):
        return (event.request.number,)
    if isinstance(event, Finished) and event.core in server.running:
        run = server.running[event.core]
        if run.key[1] + 1 == len(server.models[run.key[0]].groups):
            return tuple(request.number for request in run.requests)
    return ()
