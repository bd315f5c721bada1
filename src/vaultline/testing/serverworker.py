"""A serving worker under test: as a process with its owner, or as a thread that tests look into.

The host's side does as it is told, also what a real host never would.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vaultline.attest.server_grant import ServerGrant
from vaultline.channel.keys import Direction
from vaultline.channel.requests import OVERHEAD_BYTES, RequestOpener, RequestSealer
from vaultline.core.control import (
    BufferKind,
    FailedLine,
    StageMetrics,
)
from vaultline.core.errors import MachineError, VaultlineError
from vaultline.core.frame_meta import FrameMeta, read_meta, read_times, write_meta
from vaultline.core.frames import StageTimes
from vaultline.core.serde import from_msgpack, to_msgpack
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
from vaultline.enclave.commands import CommandLine
from vaultline.enclave.evidence import Provider
from vaultline.enclave.process import Process, local_isa
from vaultline.enclave.server import Server
from vaultline.owner.server_release import release_server
from vaultline.serve.worker_process import WorkerProcess
from vaultline.testing.servermodels import SealedModel, Trust
from vaultline.transport.sockets import Address, Listener, connect, hang_up

_WAIT_S = 60.0
_LENGTH = struct.Struct("!I")
Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An opened answer: the model's outputs by name, and the times of each group."""

    outputs: Mapping[str, Array]
    times: tuple[StageTimes, ...]


class HostSide:
    """The host's end of a worker's line, and the owner's sealing and opening.

    Attributes:
        metrics: of the last reply that a core has done something.
    """

    def __init__(
        self, sock: socket.socket, models: Sequence[SealedModel], grant: ServerGrant
    ) -> None:
        self.sock, self.models, self.grant = sock, models, grant
        self.sock.settimeout(_WAIT_S)
        self.metrics = StageMetrics()
        self.sealer = RequestSealer(grant.secret, epoch=grant.epoch, direction=Direction.FORWARD)
        self.opener = RequestOpener(grant.secret, epoch=grant.epoch, direction=Direction.BACKWARD)

    # As a well-behaved host.

    def install(self, model: int, core: int = 0) -> DoneReply:
        """Install a model.

        Raises:
            MachineError: the worker could not.
        """
        self.tell(InstallCommand(core=core, model=model))
        return self.done()

    def run(
        self,
        core: int,
        model: int,
        group: int,
        requests: Sequence[int],
        *,
        keep: bool = False,
        inputs: Sequence[Mapping[str, Array]] = (),
    ) -> tuple[DoneReply, list[Answer]]:
        """Run a group, and open the answers if it is the last.

        Raises:
            MachineError: the worker could not.
        """
        self.begin(core, model, group, requests, keep=keep, inputs=inputs)
        done = self.done()
        last = group == len(self.models[model].stages) - 1
        return done, [self.answer(model, number) for number in requests] if last else []

    def begin(
        self,
        core: int,
        model: int,
        group: int,
        requests: Sequence[int],
        *,
        keep: bool = False,
        inputs: Sequence[Mapping[str, Array]] = (),
    ) -> None:
        """Tell it to run a group; the reply is to be read later."""
        command = RunCommand(
            core=core, model=model, group=group, requests=tuple(requests), keep=keep
        )
        sealed = [
            self.seal(model, number, feeds)
            for number, feeds in zip(requests, inputs, strict=bool(inputs))
        ]
        self.tell(command, *sealed)

    def evict(self, model: int, group: int) -> None:
        """Forget a group's weights."""
        self.tell(EvictCommand(model=model, group=group))

    def remove(self, model: int) -> None:
        """Forget a model."""
        self.tell(RemoveCommand(model=model))

    def done(self) -> DoneReply:
        """The next reply, which must be that a core has done something.

        Raises:
            MachineError: it failed.
        """
        reply = self.reply()
        if isinstance(reply, FailedReply):
            raise MachineError(reply.message, got=reply.code)
        return reply

    # As any host.

    def seal(self, model: int, number: int, feeds: Mapping[str, Array]) -> bytearray:
        """A sealed request."""
        layout = self.models[model].input_layout
        message = memoryview(bytearray(layout.message_bytes))
        write_meta(layout, message, FrameMeta(index=number, timestamp_s=0.0, sent_ns=0))
        for spec, offset in zip(layout.specs, layout.offsets, strict=True):
            array = np.ascontiguousarray(feeds[spec.name], spec.dtype)
            message[offset : offset + spec.nbytes] = array.tobytes()
        sealed = bytearray(layout.message_bytes + OVERHEAD_BYTES)
        self.sealer.seal_into(model, number, message, memoryview(sealed))
        return sealed

    def answer(self, model: int, number: int) -> Answer:
        """Receive and open the sealed answer that must come next."""
        layout = self.models[model].output_layout
        sealed = self.receive(layout.message_bytes + OVERHEAD_BYTES)
        message = memoryview(bytearray(layout.message_bytes))
        self.opener.open_into(model, number, memoryview(sealed), message)
        if read_meta(message).index != number:
            raise MachineError("an answer carries another request's head")
        outputs = {
            spec.name: np.frombuffer(message[offset : offset + spec.nbytes], spec.dtype).reshape(
                spec.shape
            )
            for spec, offset in zip(layout.specs, layout.offsets, strict=True)
        }
        return Answer(outputs=outputs, times=read_times(layout, message))

    def tell(self, command: HostCommand, *sealed: bytes | bytearray) -> None:
        """Send a command and what follows it."""
        data = to_msgpack(command)
        self.send(_LENGTH.pack(len(data)) + data + b"".join(sealed))

    def reply(self) -> WorkerReply:
        """The next reply."""
        (length,) = _LENGTH.unpack(self.receive(_LENGTH.size))
        union: Any = WorkerReply
        data = bytes(self.receive(length))
        reply: WorkerReply = from_msgpack(data, union, what="a reply", bytes_max=1 << 20)
        if isinstance(reply, DoneReply):
            self.metrics = reply.metrics
        return reply

    def send(self, data: bytes) -> None:
        """Send any bytes."""
        self.sock.sendall(data)

    def receive(self, size_bytes: int) -> bytearray:
        """Receive so many bytes.

        Raises:
            ConnectionError: the worker has hung up.
        """
        data = bytearray(size_bytes)
        view = memoryview(data)
        while view:
            count = self.sock.recv_into(view)
            if not count:
                raise ConnectionError("the worker has hung up")
            view = view[count:]
        return data


class ServerWorker(HostSide):
    """A worker's process, granted.

    Attributes:
        held: by kind, as the worker said when it was loaded.
    """

    def __init__(
        self,
        models: Sequence[SealedModel],
        grant: ServerGrant,
        trust: Trust,
        folder: Path,
        *,
        cpus: Sequence[int] = (),
    ) -> None:
        """Start, appraise and grant it; ``folder``: for its sockets, with a short path."""
        self._granting, self._trust = grant, trust
        vaults = [each.vault for each in models]
        self._process = WorkerProcess("server", vaults, trust.platform, folder, cores=cpus)
        self.popen, self.ready = self._process.popen, self._process.ready
        try:
            self.grant_to(Address.parse(self.ready.control))
            sock = connect(Address.parse(self.ready.data[0]), timeout_s=_WAIT_S)
        except BaseException:
            self._process.kill()
            raise
        super().__init__(sock, models, grant)

    def grant_to(self, control: Address) -> None:
        """Appraise its evidence and grant it its models."""
        appraise = self._trust.appraiser.appraise_now
        release = release_server(control, self._granting, appraise)
        self.held: Mapping[BufferKind, int] = release.wait_loaded().held_bytes

    def last_line(self) -> FailedLine | None:
        """Wait until the process has ended; what it said then, if anything failed."""
        return self._process.last_line()

    def close(self) -> int:
        """End it by closing its standard input; the exit code."""
        hang_up(self.sock)
        return self._process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _CountedLine(CommandLine):
    """Tells when the worker has obeyed a command and asks for the next one."""

    def __init__(self, sock: socket.socket, server: Server) -> None:
        super().__init__(sock, server.request_cell)
        self.asked = threading.Semaphore(0)

    def receive(self) -> HostCommand | None:
        self.asked.release()
        return super().receive()


class ServerThread(HostSide):
    """A worker's inside in this process, neither attested nor locked down.

    Attributes:
        server: with its ledger; ``error``: what ended it, once ``end`` has returned.
    """

    def __init__(
        self,
        models: Sequence[SealedModel],
        grant: ServerGrant,
        provider: Provider,
        *,
        mapped: bool = True,
    ) -> None:
        self._files = [os.open(each.vault, os.O_RDONLY) for each in models]
        nobody: SimpleQueue[Any] = SimpleQueue()
        with_nobody: list[Listener] = []
        control: Any = None
        process = Process(local_isa(), provider, self._files, control, with_nobody, nobody)
        self.server = Server(grant, process, mapped=mapped)
        self.error: VaultlineError | None = None
        sock, theirs = socket.socketpair()
        super().__init__(sock, models, grant)
        self._theirs, self._line, self._told = theirs, _CountedLine(theirs, self.server), 1
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            self.server.serve(self._line)
        except VaultlineError as error:
            self.error = error

    def tell(self, command: HostCommand, *sealed: bytes | bytearray) -> None:
        """Send a command and what follows it."""
        self._told += 1
        super().tell(command, *sealed)

    def wait_obeyed(self) -> None:
        """Until every command has been done, or is a core's to do; not if one broke the rules."""
        while self._told:
            if not self._line.asked.acquire(timeout=_WAIT_S):
                raise TimeoutError("the worker does not ask for the next command")
            self._told -= 1

    def end(self) -> VaultlineError | None:
        """Hang up and wait for it; what ended it, if not that."""
        if self.sock.fileno() >= 0:
            with self.sock:
                self.sock.shutdown(socket.SHUT_WR)
                self._thread.join(_WAIT_S)
            self._theirs.close()
            for file in self._files:
                os.close(file)
        return self.error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
