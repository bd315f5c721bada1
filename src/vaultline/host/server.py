"""``python -m vaultline.host.server``: one server, from the launch of its worker to its end.

One thread and one event loop over the gateway's lines and connection and the worker's: it shares a
core with the worker, so it sleeps whenever nothing happens.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vaultline.core.control import ReadyLine, WorkerLine
from vaultline.core.errors import (
    InfeasibleError,
    InputError,
    MachineError,
    RemoteProtocolError,
    VaultlineError,
)
from vaultline.core.hostline import LaunchWorker
from vaultline.core.serde import canonical_json, from_json, from_msgpack
from vaultline.core.serving import (
    COMMAND_BYTES_MAX,
    HostCommand,
    ServerWorkerConfig,
    WorkerReply,
)
from vaultline.host.driver import ServerDriver
from vaultline.host.entry import end_when_told, first_line
from vaultline.host.eventlog import EventLog
from vaultline.host.gramine import diagnose
from vaultline.host.launcher import SERVER_MODULE, Worker, start_worker, stop
from vaultline.host.supervisor import Lost, Supervisor
from vaultline.host.wiring import listens_as_asked
from vaultline.sched.policies import policy
from vaultline.sched.replay import LogHeader
from vaultline.sched.server import Server
from vaultline.sched.wire import (
    WIRE_MESSAGE_BYTES_MAX,
    GatewayMessage,
    HostMessage,
    LaunchServer,
    ServerLine,
    ServerLostLine,
    ServerReadyLine,
)
from vaultline.transport.framing import Link, WatchedListener
from vaultline.transport.sockets import Address, ConnectionLostError, connect

_LAUNCH_BYTES_MAX = 64 << 20
_LINE_BYTES_MAX = 64 << 10
_TICK_S = 0.1
_CONNECT_S = 10.0
#: A run counts as stuck after this many times its measured time, but not before the minimum: the
#: machine is shared, and installing a large model takes seconds.
_STUCK_FACTOR = 20
_STUCK_S_MIN = 15.0
#: A worker that hangs up says why, or dies, a moment later.
_REASON_S = 1.0
#: Answers that a gateway does not take: nothing more is read from it meanwhile.
_UNREAD_BYTES_MAX = 64 << 20


class ServerHost:
    """Runs one server until its gateway goes or its worker is lost."""

    def __init__(self, launch: LaunchServer, *, owner_in: int, owner_out: int) -> None:
        """Decides nothing that the launch does not say.

        Raises:
            InputError: an unknown policy.
            InfeasibleError: a model that the server can't run.
        """
        self._launch = launch
        self._owner_in, self._owner_out = owner_in, owner_out
        self._log = _open_log(launch)
        models = {model.facts.name: model.facts for model in launch.models}
        self._driver = ServerDriver(
            Server(launch.facts, models, policy(launch.policy).local()),
            launch.models,
            self._to_worker,
            self._to_gateway,
            self._log.write if self._log else None,
        )
        self._selector = selectors.DefaultSelector()
        self._interest: dict[int, int] = {}
        self._started: Worker | None = None
        self._worker: Link[WorkerReply] | None = None
        self._gateway: Link[GatewayMessage] | None = None
        self._listener: WatchedListener | None = None
        self._partial = b""
        self._hung_up_s: float | None = None
        self._ended = False
        self._reported_s = 0.0
        self._stuck_s = _stuck_s(launch)
        self._supervisor = Supervisor((_watched(launch, self._stuck_s),), time.monotonic())

    def run(self) -> int:
        """Until the gateway has gone (0) or the server is lost (4)."""
        try:
            self._started = self._start()
            self._watch(self._started.stdout_fd, self._hear_worker)
            self._watch(self._owner_in, self._hear_owner)
            while not self._ended:
                self._turn()
            return 0
        except _LostError as error:
            lost = error.lost
            self._say(
                ServerLostLine(
                    code=lost.code,
                    message=lost.message,
                    refused=lost.refused,
                    remedy=self._remedy(lost),
                )
            )
        except VaultlineError as error:
            self._say(ServerLostLine(code=error.code, message=_text(error), remedy=error.remedy))
        finally:
            stop([self._started] if self._started else [])
            self._sweep()
        return 4

    def _start(self) -> Worker:
        launch = self._launch
        config = ServerWorkerConfig(
            name=launch.facts.name,
            platform=launch.start.platform,
            provider=launch.start.provider,
            platform_file=launch.start.platform_file,
            vaults=tuple(model.vault for model in launch.models),
            control=self._address("control"),
            commands=self._address("commands"),
            runtime_dir=launch.runtime_dir,
        )
        return start_worker(SERVER_MODULE, launch.start, config, launch.cpus, vaults=config.vaults)

    def _remedy(self, lost: Lost) -> str | None:
        """What to do about a worker that ended without a word."""
        start = self._launch.start
        if lost.code == "WorkerDied" and self._listener is None and start.gramine is not None:
            return diagnose(sgx=start.provider == "gramine")
        return None

    @property
    def _worker_process(self) -> Worker:
        if self._started is None:
            raise MachineError("the worker has not been started")
        return self._started

    def _address(self, name: str) -> str:
        if self._launch.transport == "unix":
            return f"unix:{self._launch.runtime_dir}/{name}"
        bind = self._launch.bind if name == "requests" else self._launch.worker_bind
        return f"tcp:{bind}:0"

    # The loop.

    def _watch(self, fd: int, handle: Callable[[], None]) -> None:
        self._selector.register(fd, selectors.EVENT_READ, handle)
        self._interest[fd] = selectors.EVENT_READ

    def _turn(self) -> None:
        """Wait, hear everybody out, the worker first; send; look after the worker."""
        ready = self._selector.select(self._wait_s())
        worker = -1 if self._worker is None else self._worker.fileno()
        for key, mask in sorted(ready, key=lambda one: one[0].fd != worker):
            if mask & selectors.EVENT_READ:
                key.data()
        while replies := self._driver.own_replies():
            for reply in replies:
                self._driver.replied(reply, (), time.monotonic())
        self._flush()
        now_s = time.monotonic()
        self._supervise(now_s)
        if now_s - self._reported_s >= self._launch.report_s:
            self._report(now_s)

    def _wait_s(self) -> float:
        due_s = self._reported_s + self._launch.report_s - time.monotonic()
        return max(0.0, min(_TICK_S, due_s))

    def _flush(self) -> None:
        if self._worker is not None:
            self._flush_link(self._worker, reading=True)
        if self._gateway is not None:
            try:
                reading = self._gateway.waiting_bytes <= _UNREAD_BYTES_MAX
                self._flush_link(self._gateway, reading=reading and self._driver.installed)
            except ConnectionLostError:
                self._ended = True

    def _flush_link(self, link: Link[Any], *, reading: bool) -> None:
        done = link.flush()
        wanted = (selectors.EVENT_READ if reading else 0) | (0 if done else selectors.EVENT_WRITE)
        fd = link.fileno()
        if wanted == self._interest[fd]:
            return
        # Whoever is not read from and has nothing to be sent is watched for nothing.
        handle = self._hear_gateway if link is self._gateway else self._hear_replies
        if self._interest[fd]:
            self._selector.unregister(fd)
        if wanted:
            self._selector.register(fd, wanted, handle)
        self._interest[fd] = wanted

    def _supervise(self, now_s: float) -> None:
        lost = self._supervisor.lost(now_s)
        name = self._launch.facts.name
        if lost is None and self._supervisor.finished:
            lost = Lost(worker=0, code="WorkerDied", message=f"worker {name} has ended")
        hung_up_s = self._hung_up_s
        if lost is None and hung_up_s is not None and now_s - hung_up_s > _REASON_S:
            lost = Lost(worker=0, code="WorkerDied", message=f"worker {name} hung up")
        if lost is None and self._driver.oldest_s(now_s) > self._stuck_s:
            text = f"worker {name} has not answered for {self._driver.oldest_s(now_s):.1f} s"
            lost = Lost(worker=0, code="WorkerStuck", message=text)
        if lost is not None:
            raise _LostError(lost)

    def _report(self, now_s: float) -> None:
        self._reported_s = now_s
        ready = self._driver.installed and not self._driver.drained
        # A gateway that does not even take its answers has no use for more reports.
        if ready and self._gateway is not None and self._gateway.waiting_bytes < _LINE_BYTES_MAX:
            self._to_gateway(self._driver.report(), ())
            self._flush()
        if self._log is not None:
            self._log.flush()

    # Who says something.

    def _hear_owner(self) -> None:
        """The gateway has nothing to say here after its launch: it closes the line to stop."""
        self._ended = not os.read(self._owner_in, 1 << 16)

    def _hear_worker(self) -> None:
        fd = self._worker_process.stdout_fd
        data = b""
        with contextlib.suppress(OSError):  # another machine's worker, whose line broke
            data = os.read(fd, 1 << 16)
        if not data:
            self._selector.unregister(fd)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._supervisor.exited(0, self._worker_process.wait(_REASON_S))
            self._hung_up_s = time.monotonic()
            return
        *lines, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > _LINE_BYTES_MAX:
            self._partial = b""
        for line in lines:
            # What a worker prints beside the protocol (a library's warning) is not for us.
            with contextlib.suppress(InputError):
                heard: WorkerLine = from_json(line, WorkerLine, what="a worker's line")  # type: ignore[arg-type]
                self._supervisor.heard(0, heard, time.monotonic())
                if isinstance(heard, ReadyLine):
                    self._worker_ready(heard)

    def _worker_ready(self, line: ReadyLine) -> None:
        """It listens: so do we, and both are told to the gateway."""
        asked = listens_as_asked(line, self._launch.transport)
        if self._listener is not None or len(line.data) != 1 or not asked:
            raise RemoteProtocolError("the worker is ready twice, or listens elsewhere")
        self._listener = WatchedListener(Address.parse(self._address("requests")))
        self._watch(self._listener.fileno(), self._accept)
        sock = connect(Address.parse(line.data[0]), timeout_s=_CONNECT_S)
        self._worker = Link(sock, self._decode_reply, bytes_max=COMMAND_BYTES_MAX)
        self._watch(self._worker.fileno(), self._hear_replies)
        self._driver.install(time.monotonic())
        self._say(
            ServerReadyLine(
                control=line.control,
                requests=str(self._listener.address),
                measurement=line.measurement,
                hardening=line.hardening,
                pids=(os.getpid(), self._worker_process.pid),
            )
        )

    def _accept(self) -> None:
        """One connection, once: a gateway that has hung up does not come back."""
        listener = self._listener
        if listener is None or self._gateway is not None:
            return
        sock = listener.accept_within(_TICK_S)
        self._selector.unregister(listener.fileno())
        listener.close()
        self._gateway = Link(sock, self._decode_request, bytes_max=WIRE_MESSAGE_BYTES_MAX)
        self._watch(self._gateway.fileno(), self._hear_gateway)

    def _hear_gateway(self) -> None:
        if self._gateway is None:
            return
        try:
            for message, payloads in self._gateway.receive():
                self._driver.heard(message, payloads, time.monotonic())
        except ConnectionLostError:
            self._ended = True

    def _hear_replies(self) -> None:
        if self._worker is None:
            return
        try:
            for reply, answers in self._worker.receive():
                self._driver.replied(reply, answers, time.monotonic())
        except ConnectionLostError:
            self._selector.unregister(self._worker.fileno())
            self._worker.close()
            self._worker, self._hung_up_s = None, time.monotonic()

    def _decode_reply(self, data: bytearray) -> tuple[WorkerReply, tuple[int, ...]]:
        kind: Any = WorkerReply
        what = "a worker's reply"
        reply = from_msgpack(memoryview(data), kind, what=what, bytes_max=COMMAND_BYTES_MAX)
        return reply, self._driver.answer_sizes(reply)

    def _decode_request(self, data: bytearray) -> tuple[GatewayMessage, tuple[int, ...]]:
        kind: Any = GatewayMessage
        what = "a gateway's message"
        message = from_msgpack(memoryview(data), kind, what=what, bytes_max=WIRE_MESSAGE_BYTES_MAX)
        return message, self._driver.request_sizes(message)

    # Who is told something.

    def _to_worker(self, command: HostCommand, sealed: Any) -> None:
        if self._worker is not None:  # one that has hung up is about to be lost
            self._worker.send(command, sealed)

    def _to_gateway(self, message: HostMessage, sealed: Any) -> None:
        if self._gateway is not None:
            self._gateway.send(message, sealed)

    def _say(self, line: ServerLine) -> None:
        with contextlib.suppress(OSError):  # the gateway may have gone
            os.write(self._owner_out, canonical_json(line) + b"\n")

    def _sweep(self) -> None:
        """Leave nothing; the folder above is the gateway's, unless it is no longer there."""
        for link in (self._worker, self._gateway):
            if link is not None:
                link.close()
        if self._listener is not None:
            self._listener.close()
        if self._log is not None:
            self._log.close()
        if self._launch.transport != "unix":
            return
        folder = Path(self._launch.runtime_dir)
        with contextlib.suppress(OSError):
            for name in ("control", "commands", "requests"):
                (folder / name).unlink(missing_ok=True)
            folder.rmdir()
            if self._ended:
                folder.parent.rmdir()


class _LostError(Exception):
    """Ends the loop."""

    def __init__(self, lost: Lost) -> None:
        super().__init__(lost.message)
        self.lost = lost


def _text(error: VaultlineError) -> str:
    return f"{error.message}: {error.got}" if error.got else error.message


def _open_log(launch: LaunchServer) -> EventLog | None:
    if launch.log is None:
        return None
    models = tuple(model.facts for model in launch.models)
    header = LogHeader(policy=launch.policy, servers=(launch.facts,), models=models)
    return EventLog(Path(launch.log), header)


def _stuck_s(launch: LaunchServer) -> float:
    """How long the worker may be at one thing."""
    slowest_s = max(
        max(model.facts.install_s, *(g.seconds(g.frames_max, resident=False) for g in groups))
        for model in launch.models
        if (groups := model.facts.groups)
    )
    return max(_STUCK_S_MIN, _STUCK_FACTOR * slowest_s)


def _watched(launch: LaunchServer, busy_s_max: float) -> LaunchWorker:
    """The worker as a supervisor knows it."""
    return LaunchWorker(
        name=launch.facts.name,
        stage=0,
        cores=launch.cpus,
        vault="",
        start=launch.start,
        busy_s_max=busy_s_max,
    )


def main() -> None:
    """Run one server; ends, and ends its worker, when the gateway closes standard input."""
    end_when_told()
    try:
        launch = from_json(
            first_line(_LAUNCH_BYTES_MAX), LaunchServer, what="the launch of a server"
        )
        if launch.cpus:  # the host is part of the server: it takes nobody else's cores
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, launch.cpus)
        sys.exit(ServerHost(launch, owner_in=0, owner_out=1).run())
    except VaultlineError as error:
        line = ServerLostLine(
            code=error.code, message=_text(error), refused=isinstance(error, InfeasibleError)
        )
        os.write(1, canonical_json(line) + b"\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
