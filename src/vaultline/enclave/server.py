"""``python -m vaultline.enclave.server``: many models' step groups in one budget.

The untrusted host decides what is installed, what runs next on which core, and whose weights stay.
Whatever it says, the ledger keeps the budget, weights come from sealed vaults, and requests and
answers are sealed between here and the owner. See ``core.serving`` for what is said.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue

from vaultline.attest.grant import GrantRefused
from vaultline.attest.server_grant import ServerGrant
from vaultline.channel.keys import Direction
from vaultline.channel.requests import (
    OVERHEAD_BYTES,
    RequestOpener,
    RequestSealer,
    RequestTamperedError,
)
from vaultline.core.control import BeatLine, BufferKind, StageMetrics
from vaultline.core.errors import VaultlineError
from vaultline.core.frames import StageTimes
from vaultline.core.serving import (
    DoneReply,
    EvictCommand,
    FailedReply,
    HostCommand,
    InstallCommand,
    RemoveCommand,
    RunCommand,
    ServerWorkerConfig,
)
from vaultline.enclave.admission import admit
from vaultline.enclave.commands import CommandError, CommandLine
from vaultline.enclave.executor import FrameBuffer
from vaultline.enclave.groups import Group, release_frames, take_frames
from vaultline.enclave.hosted import HostedModel, Shared
from vaultline.enclave.ledger import BudgetExceededError
from vaultline.enclave.lines import HostLines
from vaultline.enclave.process import Process, run, start


@dataclass(frozen=True, slots=True)
class _Outcome:
    """Of a command that a core has done.

    Attributes:
        answers: messages by request, of a model by its number.
    """

    load_s: float = 0.0
    model: int = 0
    answers: Sequence[tuple[int, FrameBuffer]] = ()


_Task = Callable[[], _Outcome]
#: A model by its number, and a step group of it unless the model is being installed.
_Work = tuple[int, int | None]


@dataclass(slots=True)
class _Core:
    """What a core is to do, and what it does since when."""

    tasks: SimpleQueue[_Task] = field(default_factory=SimpleQueue)
    running: _Work | None = None
    since_ns: int = 0


class Server:
    """What was granted, and what the host has had made of it so far."""

    def __init__(self, grant: ServerGrant, process: Process, *, mapped: bool) -> None:
        """Take what is held from the start to the end; ``mapped``: see ``VaultSection``.

        Raises:
            GrantRefused: for another number of models than there are vaults.
            BudgetExceededError: the memory doesn't suffice.
        """
        if len(grant.models) != len(process.vaults):
            raise GrantRefused("the grant is for another number of models")
        self._shared = Shared(grant, process, mapped=mapped)
        self.ledger = self._shared.ledger
        self.request_cell, self._answer_cell = self._shared.cells
        self._opener = RequestOpener(grant.secret, epoch=grant.epoch, direction=Direction.FORWARD)
        self._sealer = RequestSealer(grant.secret, epoch=grant.epoch, direction=Direction.BACKWARD)
        self._cores = [_Core() for _ in range(grant.cores)]
        #: None while a model is being installed.
        self._models: dict[int, HostedModel | None] = {}
        #: Of all that follows commands and of the counters.
        self._lock = threading.Lock()
        self._passes = self._frames = self._streamed_bytes = 0

    def serve(self, line: CommandLine) -> None:
        """Do what the host says until it hangs up.

        Raises:
            PeerError: it broke the protocol, or the connection.
        """
        for number in range(len(self._cores)):
            threading.Thread(target=self._work, args=(line, number), daemon=True).start()
        while (command := line.receive()) is not None:
            self._obey(line, command)

    def beat(self) -> BeatLine:
        """That the process lives, and how long the longest command takes."""
        now_ns = time.monotonic_ns()
        busy = [now_ns - core.since_ns for core in self._cores if core.running is not None]
        busy_s = max(busy, default=0) * 1e-9
        return BeatLine(busy_s=busy_s, frames=self._frames, metrics=self.metrics)

    @property
    def metrics(self) -> StageMetrics:
        """Memory and work so far."""
        cache = self._shared.cache
        return StageMetrics(
            budget_bytes=self.ledger.budget_bytes,
            held_bytes=self.ledger.held,
            peak_bytes=self.ledger.peak,
            streamed_bytes=self._streamed_bytes,
            passes=self._passes,
            swapped_pages=0 if cache is None else cache.counts.swapped,
            evicted_pages=0 if cache is None else cache.counts.evictions,
        )

    # The host's thread: what it may ask for is checked here, before anything is done.

    def _obey(self, line: CommandLine, command: HostCommand) -> None:
        match command:
            case InstallCommand(core=core, model=model):
                _check(0 <= model < len(self._shared.grant.models), "a model that there is not")
                _check(model not in self._models, "a model that is installed")
                self._check_idle(core)
                self._models[model] = None
                task = partial(self._install, model)
                self._assign(core, (model, None), time.monotonic_ns(), task)
            case RunCommand(core=core):
                hosted, group = self._found(command.model, command.group)
                self._check_idle(core)
                times, inputs = self._inputs(line, command, hosted, group)
                if inputs is not None:
                    work = (command.model, command.group)
                    task = partial(self._run, command, hosted, inputs, times)
                    self._assign(core, work, times.arrived_ns, task)
            case EvictCommand():
                _, group = self._found(command.model, command.group)
                with self._lock:
                    _check(not self._in_use(command.model, command.group), "weights in use")
                    group.drop()
            case RemoveCommand(model=model):
                with self._lock:
                    _check(not self._in_use(model), "a model in use")
                    if (gone := self._models.pop(model, None)) is not None:
                        gone.close()

    def _found(self, model: int, group: int) -> tuple[HostedModel, Group]:
        hosted = self._models.get(model)
        if hosted is None or not 0 <= group < len(hosted.groups):
            raise CommandError("the host named a model or step group that is not installed")
        return hosted, hosted.groups[group]

    def _in_use(self, model: int, group: int | None = None) -> bool:
        """Whether a core runs a group, or anything of a model."""
        running = [core.running for core in self._cores if core.running is not None]
        return any(which == model and group in (None, part) for which, part in running)

    def _check_idle(self, core: int) -> None:
        idle = 0 <= core < len(self._cores) and self._cores[core].running is None
        _check(idle, "a core that is busy or that there is not")

    def _assign(self, core: int, work: _Work, since_ns: int, task: _Task) -> None:
        assigned = self._cores[core]
        with self._lock:  # weights that are about to be dropped are gone, or stay for this run
            assigned.since_ns = since_ns
            assigned.running = work
        assigned.tasks.put(task)

    def _inputs(
        self, line: CommandLine, command: RunCommand, hosted: HostedModel, group: Group
    ) -> tuple[StageTimes, list[FrameBuffer] | None]:
        """The messages of a run's requests; None if they can't be had, which the host is told."""
        numbers = command.requests
        _check(1 <= len(numbers) <= group.frames, "more or fewer requests than a run takes")
        with self._lock:
            if command.group > 0:
                inputs = hosted.go_on(numbers, command.group)
                return StageTimes(arrived_ns=time.monotonic_ns()), inputs
            hosted.enter(numbers)
        inputs, error, open_ns, arrived_ns = [], None, 0, 0
        for number in numbers:  # all of them, so that the next command is where it must be
            sealed = line.receive_sealed(group.before.message_bytes + OVERHEAD_BYTES)
            arrived_ns = time.monotonic_ns()
            try:
                if error is None:
                    inputs += take_frames(self.ledger, group.before, 1)
                    self._opener.open_into(command.model, number, sealed, inputs[-1].message)
            except (BudgetExceededError, RequestTamperedError) as failure:
                error = failure
            open_ns += time.monotonic_ns() - arrived_ns
        times = StageTimes(arrived_ns=arrived_ns, open_ns=open_ns // len(numbers))
        if error is None:
            return times, inputs
        release_frames(self.ledger, inputs)
        with self._lock:
            hosted.leave(numbers)
        line.reply(_failed(command.core, error))
        return times, None

    # A core's thread.

    def _work(self, line: CommandLine, number: int) -> None:
        while True:
            self._do(line, number, self._cores[number].tasks.get())

    def _do(self, line: CommandLine, number: int, task: _Task) -> None:
        """Do it and reply. By then the core is idle, and everything is released: a host that has
        heard of it may use both."""
        core = self._cores[number]
        try:
            outcome = task()
        except VaultlineError as error:
            self._rest(core)
            line.reply(_failed(number, error))
            return
        seconds = (time.monotonic_ns() - core.since_ns) * 1e-9
        self._rest(core)
        done = DoneReply(
            core=number,
            answers=len(outcome.answers),
            seconds=seconds,
            load_s=outcome.load_s,
            metrics=self.metrics,
        )
        line.reply(done, self._sealed(outcome))

    def _rest(self, core: _Core) -> None:
        """A core is done with what it ran; weights of a run that failed go with the last of it."""
        with self._lock:
            running, core.running = core.running, None
            if running is not None and running[1] is not None and not self._in_use(*running):
                _, group = self._found(running[0], running[1])
                if group.doomed:
                    group.drop()

    def _install(self, model: int) -> _Outcome:
        try:
            hosted = HostedModel(self._shared, model)
        except BaseException:
            del self._models[model]
            raise
        self._models[model] = hosted
        return _Outcome()

    def _run(
        self, command: RunCommand, hosted: HostedModel, inputs: list[FrameBuffer], times: StageTimes
    ) -> _Outcome:
        group = hosted.groups[command.group]
        outputs: list[FrameBuffer] = []
        try:
            outputs = take_frames(self.ledger, group.after, len(inputs))
            load_s = group.hold() if command.keep else 0.0
            ran = group.run(command.core, inputs, outputs, times)
        except BaseException:
            release_frames(self.ledger, outputs)
            with self._lock:
                group.doomed = True
                hosted.leave(command.requests)
            raise
        finally:
            release_frames(self.ledger, inputs)
        answers = tuple(zip(command.requests, outputs, strict=True))
        with self._lock:
            self._passes += 1
            self._frames += len(inputs)
            self._streamed_bytes += ran.streamed_bytes
            hosted.leave(command.requests)
            if group is not hosted.groups[-1]:
                hosted.wait(command.group + 1, answers)
                answers = ()
        return _Outcome(load_s + ran.decrypt_s, command.model, answers)

    def _sealed(self, outcome: _Outcome) -> Iterator[memoryview]:
        """Seal one answer after the other in the same place; each one's message is released."""
        for number, frame in outcome.answers:
            size = frame.layout.message_bytes + OVERHEAD_BYTES
            sealed = self._answer_cell[:size].data
            self._sealer.seal_into(outcome.model, number, frame.message, sealed)
            release_frames(self.ledger, [frame])
            yield sealed


def _check(holds: bool, named: str) -> None:
    if not holds:
        raise CommandError(f"the host named {named}")


def _failed(core: int, error: VaultlineError) -> FailedReply:
    return FailedReply(core=core, code=error.code, message=error.message)


class ServingWorker:
    """One server's life, from listening until its host hangs up."""

    def __init__(self, config: ServerWorkerConfig, lines: HostLines) -> None:
        self._config, self._lines = config, lines
        self._server: Server | None = None

    def run(self) -> None:
        """Attest, then serve."""
        config = self._config
        data = (config.commands,)
        process = start(config, self._lines, self._beat, vaults=config.vaults, data=data)
        self._server = server = admit(
            process, ServerGrant, lambda grant, _: self._load(grant, process)
        )
        sock = process.data[0].accept()
        process.data[0].close()
        server.serve(CommandLine(sock, server.request_cell))

    def _load(
        self, grant: ServerGrant, process: Process
    ) -> tuple[Server, Mapping[BufferKind, int]]:
        server = Server(grant, process, mapped=self._config.platform == "process")
        return server, server.ledger.held

    def _beat(self) -> BeatLine:
        return BeatLine(busy_s=0.0, frames=0) if self._server is None else self._server.beat()


def main() -> None:
    """Run one server's worker; exits 0 when its host hangs up, else with the error's code."""
    run(lambda lines: ServingWorker(lines.config(ServerWorkerConfig), lines).run())


if __name__ == "__main__":
    main()
