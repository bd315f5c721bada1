"""A client of a gateway: requests from another process, or another machine."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from vaultline.core.errors import InputError, PeerError, RefusedError, VaultlineError
from vaultline.core.limits import FRAME_BYTES_MAX
from vaultline.owner.arrays import Array, check_array, view_of
from vaultline.serve.answers import (
    Answer,
    DrainingError,
    GatewayClosedError,
    OverloadedError,
    RefusedByServerError,
    ServersLostError,
)
from vaultline.serve.clientwire import (
    ClientModel,
    FailedMessage,
    InferMessage,
    InferredMessage,
    ReadyMessage,
    ToClient,
    WelcomeMessage,
    greet,
    read_credential,
)
from vaultline.transport.sockets import (
    Address,
    ConnectionLostError,
    TransportTimeoutError,
    connect,
    hang_up,
)

_JOIN_S = 5.0
#: Errors that come across by their names; any other one is a ``PeerError``.
_ERRORS: dict[str, type[VaultlineError]] = {
    kind.__name__: kind
    for kind in (
        DrainingError,
        GatewayClosedError,
        InputError,
        OverloadedError,
        RefusedError,
        ServersLostError,
    )
}


class Client:
    """A connection to a gateway; a context manager. Any thread may send requests."""

    def __init__(
        self,
        address: str | Address,
        credential: bytes | Path | None = None,
        *,
        timeout_s: float = 10.0,
    ) -> None:
        """Connect and learn what is served.

        Args:
            address: ``unix:/path`` or ``tcp:host:port``.
            credential: for TCP: the secret that the gateway has, or its file.
            timeout_s: for the connection and the gateway's greeting.

        Raises:
            InputError: not an address, or no credential where one is needed.
            CredentialRefusedError: not the gateway's credential.
            PeerError: no gateway answers there.
        """
        where = Address.parse(address) if isinstance(address, str) else address
        secret = read_credential(credential) if isinstance(credential, Path) else credential
        if where.kind == "tcp" and secret is None:
            raise InputError("a gateway over TCP needs a credential", remedy="name its file")
        self._sock = connect(where, timeout_s=timeout_s)
        self._lock = threading.Lock()
        self._open: dict[int, tuple[ClientModel, Future[Answer]]] = {}
        self._numbers = itertools.count()
        self._ended: VaultlineError | None = None
        try:
            self._channel = greet(self._sock, secret, gateway=False, timeout_s=timeout_s)
            self._channel.bytes_max = FRAME_BYTES_MAX
            self._sock.settimeout(timeout_s)
            welcome, _ = self._channel.receive(WelcomeMessage)
            self._sock.settimeout(None)
            self._channel.send(ReadyMessage())
        except TimeoutError as error:
            hang_up(self._sock)
            raise TransportTimeoutError(
                "the gateway does not greet", expected=f"within {timeout_s} s"
            ) from error
        except BaseException:
            hang_up(self._sock)
            raise
        self._models = {model.name: model for model in welcome.models}
        self._thread = threading.Thread(target=self._hear_all, name="gateway", daemon=True)
        self._thread.start()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; requests without an answer end with an error. Safe to call twice."""
        hang_up(self._sock)
        if threading.current_thread() is not self._thread:
            self._thread.join(_JOIN_S)

    def models(self) -> tuple[ClientModel, ...]:
        """What is served: names, inputs and outputs."""
        return tuple(self._models.values())

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        *,
        deadline_s: float | None = None,
        priority: int = 0,
        timeout_s: float | None = None,
    ) -> Answer:
        """Send a request and wait for its answer, at most ``timeout_s``.

        Raises:
            TransportTimeoutError: no answer came in time.
            VaultlineError: as ``submit``, and as its future ends.
        """
        future = self.submit(model, inputs, deadline_s=deadline_s, priority=priority)
        try:
            return future.result(timeout_s)
        except TimeoutError:
            raise TransportTimeoutError(
                "the gateway has not answered", expected=f"within {timeout_s} s"
            ) from None

    def submit(
        self,
        model: str,
        inputs: Mapping[str, Array],
        *,
        deadline_s: float | None = None,
        priority: int = 0,
    ) -> Future[Answer]:
        """Send a request.

        Its future ends with the answer, with ``RefusedByServerError`` and its reason, or with what
        else the gateway says; see ``Gateway.submit``. ``latency_s`` is what the gateway measured.

        Raises:
            InputError: an unknown model, or tensors that don't fit it.
            PeerError: the gateway has hung up.
        """
        known = self._models.get(model)
        if known is None:
            raise InputError(
                "no such model is served", got=model, expected=", ".join(sorted(self._models))
            )
        tensors = _tensors(known, inputs)
        future: Future[Answer] = Future()
        future.set_running_or_notify_cancel()
        number = next(self._numbers)
        with self._lock:
            if self._ended is not None:
                raise self._ended
            self._open[number] = known, future
        message = InferMessage(number=number, model=model, deadline_s=deadline_s, priority=priority)
        try:
            self._channel.send(message, tensors)
        except ConnectionLostError:
            with self._lock:
                mine = self._open.pop(number, None)
            if mine is not None:
                raise
        return future

    def _hear_all(self) -> None:
        try:
            while True:
                message, tensors = self._channel.receive(ToClient)
                if not isinstance(message, WelcomeMessage):
                    self._hear(message, tensors)
        except VaultlineError as error:
            self._end(error)

    def _hear(self, message: InferredMessage | FailedMessage, tensors: memoryview) -> None:
        with self._lock:
            waiting = self._open.pop(message.number, None)
        if waiting is None:
            return
        model, future = waiting
        if isinstance(message, FailedMessage):
            future.set_exception(_error(message))
            return
        try:
            future.set_result(_answer(model, message, tensors))
        except PeerError as error:
            future.set_exception(error)

    def _end(self, error: VaultlineError) -> None:
        with self._lock:
            self._ended = error
            waiting = list(self._open.values())
            self._open.clear()
        for _, future in waiting:
            future.set_exception(error)


def _tensors(model: ClientModel, inputs: Mapping[str, Array]) -> list[memoryview]:
    """Tensors in the model's order.

    Raises:
        InputError: they don't fit the model.
    """
    if set(inputs) != {spec.name for spec in model.inputs}:
        raise InputError(
            f"not the inputs of {model.name}",
            got=", ".join(map(str, inputs)),
            expected=", ".join(spec.name for spec in model.inputs),
        )
    tensors = []
    for spec in model.inputs:
        array = np.ascontiguousarray(inputs[spec.name])
        check_array(array, spec, f"a tensor does not fit input {spec.name!r} of {model.name}")
        tensors.append(memoryview(array.reshape(-1).view(np.uint8).data))
    return tensors


def _answer(model: ClientModel, message: InferredMessage, tensors: memoryview) -> Answer:
    if len(tensors) != sum(spec.nbytes for spec in model.outputs):
        raise PeerError("the gateway sent an answer of a wrong size", got=f"{len(tensors)} bytes")
    outputs, start = {}, 0
    for spec in model.outputs:
        part = tensors[start : start + spec.nbytes]
        outputs[spec.name] = view_of(part, spec).copy()
        start += spec.nbytes
    return Answer(
        outputs=outputs,
        number=message.request,
        model=model.name,
        server=message.server,
        latency_s=message.latency_s,
        times=message.times,
        attempts=message.attempts,
    )


def _error(message: FailedMessage) -> VaultlineError:
    if message.code == RefusedByServerError.__name__:
        return RefusedByServerError(message.message, server=message.server, reason=message.reason)
    kind = _ERRORS.get(message.code, PeerError)
    return kind(message.message, got=message.got, expected=message.expected, remedy=message.remedy)
