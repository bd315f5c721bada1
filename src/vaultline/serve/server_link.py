"""The gateway's end of one server: launched, appraised and granted, then requests and answers."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, Protocol

from vaultline.attest.challenge import Challenge
from vaultline.attest.evidence import Evidence
from vaultline.attest.refusals import KindRefused
from vaultline.attest.server_grant import ServerGrant
from vaultline.channel.keys import Direction
from vaultline.channel.requests import OVERHEAD_BYTES, RequestOpener, RequestSealer
from vaultline.core.errors import PeerError, RemoteProtocolError, VaultlineError
from vaultline.core.frame_meta import read_meta, read_times, tensor_bytes
from vaultline.core.frames import StageTimes
from vaultline.core.serde import from_msgpack
from vaultline.owner.arrays import Array, view_of
from vaultline.owner.hostlink import HostLostError, HostProcess, endpoint
from vaultline.owner.release import Release
from vaultline.owner.server_release import release_server
from vaultline.sched.report import Report
from vaultline.sched.wire import (
    WIRE_MESSAGE_BYTES_MAX,
    AnsweredMessage,
    DrainedMessage,
    DrainMessage,
    HostMessage,
    InstallMessage,
    LaunchServer,
    RefusedRequestMessage,
    RemoveMessage,
    ReportedMessage,
    ServerLine,
    ServerLostLine,
    ServerMetrics,
    ServerReadyLine,
    SubmitMessage,
)
from vaultline.serve.answers import ServerLostError
from vaultline.serve.cluster import ServerSpec
from vaultline.serve.dispatch import Pending
from vaultline.serve.prepared import Prepared
from vaultline.transport.framing import MessageReader, receive_message, send_message
from vaultline.transport.sockets import connect, hang_up

HOST_MODULE = "vaultline.host.server"
_CONNECT_S = 10.0
#: For the host's word on why its worker was lost, once it has hung up.
_REASON_S = 2.0
_JOIN_S = 5.0
Order = DrainMessage | InstallMessage | RemoveMessage
Appraise = Callable[[Evidence, Challenge], object]


class Listener(Protocol):
    """Who is told what a server says; on the server's own thread."""

    def answered(
        self,
        link: ServerLink,
        number: int,
        outputs: dict[str, Array],
        times: tuple[StageTimes, ...],
    ) -> None:
        """A request's answer, opened and verified."""

    def refused(self, link: ServerLink, message: RefusedRequestMessage) -> None:
        """A request that the server will not answer."""

    def reported(self, link: ServerLink, message: ReportedMessage) -> None:
        """What the server says of itself."""

    def broken(self, link: ServerLink, error: VaultlineError) -> None:
        """Nothing will come any more."""


class ServerLink:
    """One server, from its launch to its end. Started by steps, so that servers start together."""

    def __init__(
        self,
        spec: ServerSpec,
        launch: LaunchServer,
        grant: ServerGrant,
        models: Sequence[Prepared],
        listener: Listener,
    ) -> None:
        """``models`` are in the order of the grant's."""
        self.spec, self.name = spec, spec.name
        self._grant, self._listener = grant, listener
        self._models = [model.served for model in models]
        self._inputs = [served.input_layout.message_bytes for served in self._models]
        self._outputs = [served.output_layout for served in self._models]
        self._queue: SimpleQueue[Pending | Order | None] = SimpleQueue()
        self._out: dict[int, int] = {}
        self._threads: list[threading.Thread] = []
        self._release: Release | None = None
        self._sock: Any = None
        self._changed = threading.Event()
        self.ready: ServerReadyLine | None = None
        self.error: VaultlineError | None = None
        self.metrics = ServerMetrics()
        self.report: Report | None = None
        self.drained = self._told_drain = False
        self.heard_s = self.progress_s = time.monotonic()
        self._transport = launch.transport
        lines: Any = ServerLine
        self._host: HostProcess[Any] = HostProcess(HOST_MODULE, launch, lines)

    # Steps of the start.

    def wait_ready(self, deadline_s: float) -> None:
        """Until host and worker listen.

        Raises:
            ServerLostError: they don't, and why.
        """
        while (rest_s := deadline_s - time.monotonic()) > 0:
            line = self._host.poll(rest_s)
            if isinstance(line, ServerReadyLine):
                self.ready = line
                return
            if isinstance(line, ServerLostLine):
                raise _lost(self.name, line)
        raise ServerLostError(f"server {self.name} did not start in time")

    def release(self, appraise: Appraise) -> None:
        """Appraise the enclave and grant it its models.

        Raises:
            RefusedError: its evidence is not accepted.
            PeerError: it refused, misbehaved or vanished.
        """

        def planned(evidence: Evidence, challenge: Challenge) -> object:
            if evidence.kind != self.spec.kind:
                raise KindRefused(
                    f"server {self.name} runs in another kind of enclave than planned",
                    got=evidence.kind,
                    expected=self.spec.kind,
                    remedy="start it on the planned device, or plan for what is there",
                )
            return appraise(evidence, challenge)

        address = endpoint(self._listening.control, self._transport)
        self._release = release_server(address, self._grant, planned)

    def wait_loaded(self) -> None:
        """Until the enclave has its workspace.

        Raises:
            PeerError: it refused, died or took too long.
        """
        if self._release is not None:
            self._release.wait_loaded()

    def connect(self) -> None:
        """Connect to the host, and listen to it from now on.

        Raises:
            PeerError: it does not answer.
        """
        secret, epoch = self._grant.secret, self._grant.epoch
        self._sealer = RequestSealer(secret, epoch=epoch, direction=Direction.FORWARD)
        self._opener = RequestOpener(secret, epoch=epoch, direction=Direction.BACKWARD)
        address = endpoint(self._listening.requests, self._transport)
        self._sock = connect(address, timeout_s=_CONNECT_S)
        self.heard_s = self.progress_s = time.monotonic()
        for target, what in ((self._send_all, "send"), (self._hear_all, "hear")):
            thread = threading.Thread(target=target, name=f"{what}-{self.name}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def wait_reported(self, deadline_s: float) -> None:
        """Until the first report: every model is installed.

        Raises:
            VaultlineError: it did not come, and why.
        """
        in_time = self._changed.wait(max(0.0, deadline_s - time.monotonic()))
        if self.error is not None:
            raise self.reason() or self.error
        if not in_time:
            raise ServerLostError(f"server {self.name} did not install its models in time")

    @property
    def _listening(self) -> ServerReadyLine:
        if self.ready is None:
            raise ServerLostError(f"server {self.name} is not ready")
        return self.ready

    # While it serves.

    def send(self, item: Pending | Order) -> None:
        """Send it as soon as what was sent before is through; never blocks."""
        if isinstance(item, Pending):
            if not self._out:
                self.progress_s = time.monotonic()
            self._out[item.request.number] = item.model
        elif isinstance(item, DrainMessage):
            self._told_drain = True
        self._queue.put(item)

    def silent_s(self, now_s: float) -> float:
        """Since it was heard of."""
        return now_s - self.heard_s

    def stalled_s(self, now_s: float) -> float:
        """Since one of its requests ended; 0 while it has none."""
        return now_s - self.progress_s if self._out else 0.0

    @property
    def in_flight(self) -> int:
        """Requests that it has been sent and has not ended."""
        return len(self._out)

    @property
    def pids(self) -> tuple[int, ...]:
        """The host's process, then the worker's."""
        return self._listening.pids

    def _send_all(self) -> None:
        largest = max(self._inputs) + OVERHEAD_BYTES
        sealed = memoryview(bytearray(largest))
        try:
            while (item := self._queue.get()) is not None:
                if isinstance(item, Pending):
                    self._send_request(item, sealed[: len(item.message) + OVERHEAD_BYTES])
                else:
                    send_message(self._sock, item)
        except VaultlineError as error:
            self._listener.broken(self, error)

    def _send_request(self, pending: Pending, sealed: memoryview) -> None:
        request, left_s = pending.request, None
        if request.deadline_s is not None:
            left_s = max(0.0, request.deadline_s - time.monotonic())
        self._sealer.seal_into(pending.model, request.number, pending.message, sealed)
        message = SubmitMessage(
            number=request.number,
            model=request.model,
            priority=request.priority,
            deadline_in_s=left_s,
        )
        send_message(self._sock, message, (sealed,))

    def _hear_all(self) -> None:
        reader = MessageReader(self._decode, bytes_max=WIRE_MESSAGE_BYTES_MAX)
        scratch = memoryview(bytearray(max(layout.message_bytes for layout in self._outputs)))
        try:
            while not self.drained:
                message, payloads = receive_message(self._sock, reader)
                self.heard_s = time.monotonic()
                self._hear(message, payloads, scratch)
        except VaultlineError as error:
            self._listener.broken(self, error)

    def _hear(
        self, message: HostMessage, payloads: Sequence[bytearray], scratch: memoryview
    ) -> None:
        match message:
            case AnsweredMessage(number=number):
                self.progress_s = self.heard_s
                outputs, times = self._opened(number, memoryview(payloads[0]), scratch)
                self._listener.answered(self, number, outputs, times)
            case RefusedRequestMessage(number=number):
                if self._out.pop(number, None) is None:
                    raise RemoteProtocolError(f"server {self.name} refused what it did not have")
                self.progress_s = self.heard_s
                self._listener.refused(self, message)
            case ReportedMessage(report=report):
                if report.server != self.name:
                    raise RemoteProtocolError("a report of another server", got=report.server)
                self.metrics, self.report = message.metrics, report
                self._listener.reported(self, message)
                self._changed.set()
            case DrainedMessage():
                if self._out or not self._told_drain:
                    raise RemoteProtocolError(f"server {self.name} claims to be drained")
                self.drained = True

    def _opened(
        self, number: int, sealed: memoryview, scratch: memoryview
    ) -> tuple[dict[str, Array], tuple[StageTimes, ...]]:
        """An answer's tensors and times.

        Raises:
            RemoteProtocolError: altered, or another request's.
        """
        model = self._out.pop(number)
        layout = self._outputs[model]
        message = scratch[: layout.message_bytes]
        self._opener.open_into(model, number, sealed, message)
        if read_meta(message).index != number:
            raise RemoteProtocolError("an enclave answered another request than it was asked")
        outputs = {
            spec.name: view_of(tensor_bytes(layout, message, k), spec).copy()
            for k, spec in enumerate(layout.specs)
        }
        return outputs, read_times(layout, message)

    def _decode(self, data: bytearray) -> tuple[HostMessage, tuple[int, ...]]:
        kind: Any = HostMessage
        message = from_msgpack(
            memoryview(data), kind, what="a host's message", bytes_max=WIRE_MESSAGE_BYTES_MAX
        )
        if not isinstance(message, AnsweredMessage):
            return message, ()
        model = self._out.get(message.number)
        if model is None:
            raise RemoteProtocolError(f"server {self.name} answered what it did not have")
        return message, (self._outputs[model].message_bytes + OVERHEAD_BYTES,)

    # Its end.

    def fail(self, error: VaultlineError) -> None:
        """Keep the first reason, and wake whoever waits for the first report."""
        self.error = self.error or error
        self._changed.set()

    def reason(self) -> PeerError | None:
        """Why it was lost, if its host can say."""
        deadline_s = time.monotonic() + _REASON_S
        with contextlib.suppress(HostLostError):
            while (rest_s := deadline_s - time.monotonic()) > 0:
                line = self._host.poll(rest_s)
                if isinstance(line, ServerLostLine):
                    return _lost(self.name, line)
        return None

    def hang_up(self) -> None:
        """Nothing is sent or heard any more; wakes both threads."""
        self._queue.put(None)
        if self._sock is not None:
            hang_up(self._sock)

    def stop(self, *, by_force: bool = False) -> None:
        """End host and worker, and wait for that. Safe to call twice."""
        self.hang_up()
        if self._release is not None:
            self._release.close()
        if by_force:
            self._host.kill()
        else:
            self._host.stop()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(_JOIN_S)

    def dispose(self) -> None:
        """Close the host's line; nobody may be waiting for a reason any more."""
        self._host.dispose()


def _lost(name: str, line: ServerLostLine) -> ServerLostError:
    message = f"server {name} was lost: {line.message}"
    error = ServerLostError(message, got=line.code, remedy=line.remedy)
    if line.refused:
        error.exit_code = 1
    return error
