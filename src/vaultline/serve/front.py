"""The gateway's listening side: clients of other processes, several at once."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol

import numpy as np

from vaultline.core.errors import (
    InputError,
    MachineError,
    PeerError,
    VaultlineError,
)
from vaultline.core.tensors import TensorSpec
from vaultline.owner.arrays import Array, view_of
from vaultline.owner.served import ServedModel
from vaultline.serve.answers import (
    Answer,
    OverloadedError,
    RefusedByServerError,
)
from vaultline.serve.clientwire import (
    REQUEST_BYTES_MAX,
    Channel,
    ClientModel,
    FailedMessage,
    InferMessage,
    InferredMessage,
    ReadyMessage,
    WelcomeMessage,
    greet,
)
from vaultline.transport.sockets import Address, ConnectionLostError, Listener, hang_up

CLIENTS_MAX = 256
#: Requests of one client whose answers it has not taken yet.
IN_FLIGHT_MAX = 16_384
_GREET_S = 10.0
_JOIN_S = 5.0


class Serving(Protocol):
    """What a front needs of a gateway."""

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """What is served."""

    def submit(
        self,
        model: str,
        tensors: Sequence[Array],
        *,
        deadline_s: float | None = None,
        priority: int = 0,
    ) -> Future[Answer]:
        """Send a request."""


class Front:
    """Listens for clients from construction to ``close``."""

    def __init__(self, gateway: Serving, address: Address, credential: bytes | None = None) -> None:
        """Start listening.

        Args:
            address: a Unix socket in a folder that nobody else can enter (made if there is none),
                or TCP, for which a credential is needed.

        Raises:
            InputError: TCP without a credential, or a folder that others can enter.
            MachineError: nobody can listen there.
        """
        if address.kind == "tcp" and credential is None:
            raise InputError(
                "clients over TCP need a credential", remedy="make one, and give it to both sides"
            )
        if address.kind == "unix":
            _private_folder(Path(address.host).parent)
        self._gateway, self._credential = gateway, credential
        self._listener = Listener(address)
        self.address = self._listener.address
        self._lock = threading.Lock()
        self._clients: set[_Client] = set()
        self._closed = False
        self._thread = threading.Thread(target=self._accept_all, name="clients", daemon=True)
        self._thread.start()

    def __enter__(self) -> Front:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening and hang up on every client. Safe to call twice."""
        self._closed = True
        self._listener.close()
        self._thread.join(_JOIN_S)
        with self._lock:
            clients = list(self._clients)
        for client in clients:
            client.close()

    @property
    def unwritten(self) -> int:
        """Requests of clients that are still connected whose ends have not been written yet."""
        with self._lock:
            return sum(client.unwritten for client in self._clients)

    def _accept_all(self) -> None:
        while not self._closed:
            try:
                sock = self._listener.accept()
            except PeerError:
                return
            with self._lock:
                full = len(self._clients) >= CLIENTS_MAX
                if not full:
                    client = _Client(self._gateway, sock, self._credential, self._gone)
                    self._clients.add(client)
            if full:
                hang_up(sock)
            else:
                client.start()

    def _gone(self, client: _Client) -> None:
        with self._lock:
            self._clients.discard(client)


class _Client:
    """One connection: a thread that reads requests, one that writes answers."""

    def __init__(
        self,
        gateway: Serving,
        sock: socket.socket,
        credential: bytes | None,
        gone: Callable[[_Client], None],
    ) -> None:
        self._gateway, self._sock, self._credential = gateway, sock, credential
        self._gone = gone
        self._served = {served.name: served for served in gateway.models}
        self._ended: SimpleQueue[tuple[InferMessage, Future[Answer]] | None] = SimpleQueue()
        self._in_flight = 0
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=target, name="client", daemon=True)
            for target in (self._read_all, self._write_all)
        ]
        self._channel: Channel | None = None

    def start(self) -> None:
        """Begin with the greeting."""
        for thread in self._threads:
            thread.start()

    @property
    def unwritten(self) -> int:
        """Requests whose ends have not been written yet."""
        return self._in_flight

    def close(self) -> None:
        """Hang up, and wait until its threads have ended."""
        hang_up(self._sock)
        for thread in self._threads:
            thread.join(_JOIN_S)

    def _read_all(self) -> None:
        """Whatever a client does wrong, or a stranger: its connection ends, and nobody else's."""
        try:
            channel = greet(self._sock, self._credential, gateway=True, timeout_s=_GREET_S)
            models = tuple(
                ClientModel(name=served.name, inputs=served.inputs, outputs=served.outputs)
                for served in self._served.values()
            )
            channel.send(WelcomeMessage(models=models))
            channel.receive(ReadyMessage)
            inputs = [served.inputs for served in self._served.values()]
            channel.bytes_max = REQUEST_BYTES_MAX + max(map(_nbytes, inputs))
            self._channel = channel
            while True:
                message, tensors = channel.receive(InferMessage)
                self._request(message, tensors)
        except VaultlineError:
            return
        finally:
            hang_up(self._sock)
            self._ended.put(None)
            self._gone(self)

    def _request(self, message: InferMessage, tensors: memoryview) -> None:
        future: Future[Answer] = Future()
        try:
            with self._lock:
                if self._in_flight >= IN_FLIGHT_MAX:
                    raise OverloadedError("too many requests of this client are under way")
            served = self._served.get(message.model)
            arrays = [] if served is None else _arrays(served, tensors)
            future = self._gateway.submit(
                message.model,
                arrays,
                deadline_s=message.deadline_s,
                priority=message.priority,
            )
        except VaultlineError as error:
            future.set_exception(error)
        with self._lock:
            self._in_flight += 1
        future.add_done_callback(lambda done: self._ended.put((message, done)))

    def _write_all(self) -> None:
        """Until the reader has ended: a client that has gone needs no answers."""
        while (entry := self._ended.get()) is not None:
            message, future = entry
            with contextlib.suppress(ConnectionLostError):
                if self._channel is not None:
                    self._answer(self._channel, message, future)
            with self._lock:
                self._in_flight -= 1

    def _answer(self, channel: Channel, message: InferMessage, future: Future[Answer]) -> None:
        error = future.exception()
        if error is not None:
            channel.send(_failed(message.number, error))
            return
        answer, served = future.result(), self._served[message.model]
        channel.send(
            InferredMessage(
                number=message.number,
                request=answer.number,
                server=answer.server,
                latency_s=answer.latency_s,
                attempts=answer.attempts,
                times=answer.times,
            ),
            [answer.outputs[spec.name].reshape(-1).view(np.uint8).data for spec in served.outputs],
        )


def _failed(number: int, error: BaseException) -> FailedMessage:
    if not isinstance(error, VaultlineError):
        return FailedMessage(number=number, code="Error", message=str(error))
    refused = error if isinstance(error, RefusedByServerError) else None
    return FailedMessage(
        number=number,
        code=error.code,
        message=error.message,
        got=error.got,
        expected=error.expected,
        remedy=error.remedy,
        server=refused.server if refused else "",
        reason=refused.reason if refused else "",
    )


def _nbytes(specs: Sequence[TensorSpec]) -> int:
    return sum(spec.nbytes for spec in specs)


def _arrays(served: ServedModel, tensors: memoryview) -> list[Array]:
    """A request's tensors, one after another.

    Raises:
        InputError: another number of bytes than the model's.
    """
    if len(tensors) != _nbytes(served.inputs):
        raise InputError(
            f"a request of a wrong size for {served.name}",
            got=f"{len(tensors)} bytes",
            expected=f"{_nbytes(served.inputs)}",
        )
    arrays, start = [], 0
    for spec in served.inputs:
        part = tensors[start : start + spec.nbytes]
        arrays.append(view_of(part, spec))
        start += spec.nbytes
    return arrays


def _private_folder(folder: Path) -> None:
    """Where a Unix socket may lie: whoever can enter it can send requests.

    Raises:
        InputError: others can enter it.
        MachineError: it can't be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.stat()
    except OSError as error:
        raise MachineError("cannot make a folder", got=f"{folder}: {error.strerror}") from error
    if stat.S_IMODE(state.st_mode) & 0o077 or state.st_uid != os.geteuid():
        raise InputError(
            "others can enter the folder of the clients' socket",
            got=f"{folder}: mode {stat.S_IMODE(state.st_mode):04o}",
            expected="a folder of your own with mode 0700",
            remedy=f"choose another folder, or `chmod 700 {folder}`",
        )
