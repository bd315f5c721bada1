"""What clients and the gateway tell each other, and the channels that carry it.

Each message is a length of four bytes and a body: the length of a MessagePack message, that
message, then tensors. On a Unix socket, whose folder nobody else can enter, bodies travel as they
are. Over TCP both ends prove that they hold one credential: each sends a nonce, the connection's
secret is HKDF-SHA256 (RFC 5869) of the credential with both nonces as salt, and every body is
sealed under it with its place in the sequence, so that none can be altered, left out or repeated.
"""

from __future__ import annotations

import os
import secrets
import socket
import stat
import struct
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from vaultline.channel.keys import SECRET_BYTES, Direction
from vaultline.channel.requests import (
    OVERHEAD_BYTES,
    RequestOpener,
    RequestSealer,
    RequestTamperedError,
)
from vaultline.core.errors import InputError, MachineError, RefusedError, RemoteProtocolError
from vaultline.core.frames import StageTimes
from vaultline.core.serde import Struct, from_msgpack, to_msgpack
from vaultline.core.tensors import TensorSpec
from vaultline.transport.sockets import ConnectionLostError, TransportTimeoutError

Buffer = bytes | bytearray | memoryview
#: A welcome names every model.
MESSAGE_BYTES_MAX = 16 << 20
#: Beside the tensors of a request.
REQUEST_BYTES_MAX = 64 << 10
_HELLO = b"vaultline client v1\0"
_NONCE_BYTES = 32
_LABEL = b"vaultline client connection v1"
_LENGTH = struct.Struct("!I")
_TIMEVAL = struct.Struct("@ll")
#: A peer that takes nothing for so long is given up.
_UNREAD_S = 60


class CredentialRefusedError(RefusedError):
    """The other end does not hold the same credential, or somebody between altered a message."""


class CredentialModeError(RefusedError):
    """Others than its owner can read or write the credential's file."""


class ClientModel(Struct, frozen=True):
    """A model as clients know it."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class ReadyMessage(Struct, frozen=True, tag="ready"):
    """Client to gateway, first: it knows the credential."""


class WelcomeMessage(Struct, frozen=True, tag="welcome"):
    """Gateway to client, first: what is served."""

    models: tuple[ClientModel, ...]


class InferMessage(Struct, frozen=True, tag="infer"):
    """Client to gateway: a request; its tensors follow, in the order of the model's inputs.

    Attributes:
        number: the client's own, to be told with the answer.
        deadline_s: from now.
    """

    number: int
    model: str
    deadline_s: float | None = None
    priority: int = 0


class InferredMessage(Struct, frozen=True, kw_only=True, tag="inferred"):
    """Gateway to client: outputs follow, in the order of the model's; see ``Answer``."""

    number: int
    request: int
    server: str
    latency_s: float
    attempts: int
    times: tuple[StageTimes, ...]


class FailedMessage(Struct, frozen=True, kw_only=True, tag="failed"):
    """Gateway to client: a request has no answer; the error's name and words.

    Attributes:
        server, reason: where a server refused.
    """

    number: int
    code: str
    message: str
    got: str | None = None
    expected: str | None = None
    remedy: str | None = None
    server: str = ""
    reason: str = ""


ToGateway = ReadyMessage | InferMessage
ToClient = WelcomeMessage | InferredMessage | FailedMessage


class Channel:
    """One end of a client's connection. Any thread may send; one receives.

    Attributes:
        bytes_max: of the next body, what sealing adds apart: nothing is allocated for a stranger.
    """

    def __init__(
        self,
        sock: socket.socket,
        keys: tuple[RequestSealer, RequestOpener] | None = None,
        *,
        bytes_max: int = REQUEST_BYTES_MAX,
    ) -> None:
        self._sock, self._keys = sock, keys
        self.bytes_max = bytes_max
        self._sending = threading.Lock()
        self._sent = self._received = 0

    def send(self, message: Struct, tensors: Sequence[Buffer] = ()) -> None:
        """Send a message and what follows it; blocks while the peer doesn't take it.

        Raises:
            ConnectionLostError: the peer is gone.
        """
        head = to_msgpack(message)
        parts: list[Buffer] = [_LENGTH.pack(len(head)), head, *tensors]
        size = sum(memoryview(part).nbytes for part in parts)
        with self._sending:
            if self._keys is not None:
                body = memoryview(b"".join(parts))
                sealed = bytearray(size + OVERHEAD_BYTES)
                self._keys[0].seal_into(0, self._sent, body, memoryview(sealed))
                parts, size = [sealed], len(sealed)
            self._sent += 1
            try:
                self._sock.sendall(b"".join((_LENGTH.pack(size), *parts[:-1])))
                self._sock.sendall(parts[-1])
            except OSError as error:
                raise ConnectionLostError("the peer hung up", got=str(error)) from error

    def receive(self, kind: Any) -> tuple[Any, memoryview]:
        """The next message of a kind, and the tensors after it.

        Raises:
            ConnectionLostError: the peer is gone.
            CredentialRefusedError: it holds another credential, or the body was altered.
            RemoteProtocolError: it broke the protocol.
        """
        (size,) = _LENGTH.unpack(_exactly(self._sock, _LENGTH.size))
        if not _LENGTH.size < size <= self.bytes_max + OVERHEAD_BYTES:
            raise RemoteProtocolError("a message is empty or too long", got=f"{size} bytes")
        body = memoryview(_exactly(self._sock, size))
        if self._keys is not None:
            body = self._open(self._keys[1], body)
        self._received += 1
        (length,) = _LENGTH.unpack_from(body)
        if length > len(body) - _LENGTH.size:
            raise RemoteProtocolError("a message is longer than its body")
        end = _LENGTH.size + length
        what = "a message of a client or its gateway"
        head = from_msgpack(body[_LENGTH.size : end], kind, what=what, bytes_max=MESSAGE_BYTES_MAX)
        return head, body[end:]

    def _open(self, opener: RequestOpener, sealed: memoryview) -> memoryview:
        if len(sealed) < OVERHEAD_BYTES + _LENGTH.size:
            raise RemoteProtocolError("a sealed message is too short")
        body = memoryview(bytearray(len(sealed) - OVERHEAD_BYTES))
        try:
            opener.open_into(0, self._received, sealed, body)
        except RequestTamperedError as error:
            raise CredentialRefusedError(
                "a message was not sealed with this credential, or was altered on its way",
                remedy="give client and gateway the same credential file",
            ) from error
        return body


def greet(
    sock: socket.socket, credential: bytes | None, *, gateway: bool, timeout_s: float
) -> Channel:
    """Agree on a connection's keys; without a credential there are none.

    Raises:
        ConnectionLostError, TransportTimeoutError: the peer does not greet.
        RemoteProtocolError: it is none of ours.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(_UNREAD_S, 0))
    if credential is None:
        return Channel(sock)
    own = os.urandom(_NONCE_BYTES)
    try:
        sock.settimeout(timeout_s)
        sock.sendall(_HELLO + own)
        theirs = _exactly(sock, len(_HELLO) + _NONCE_BYTES, time.monotonic() + timeout_s)
        sock.settimeout(None)
    except TimeoutError:
        raise TransportTimeoutError(
            "the peer does not greet", expected=f"within {timeout_s} s"
        ) from None
    except OSError as error:
        raise ConnectionLostError("the peer hung up", got=str(error)) from error
    if bytes(theirs[: len(_HELLO)]) != _HELLO:
        raise RemoteProtocolError("the peer greets otherwise", remedy="use the same version")
    other = bytes(theirs[len(_HELLO) :])
    salt = other + own if gateway else own + other  # the client's first
    secret = HKDF(algorithm=hashes.SHA256(), length=SECRET_BYTES, salt=salt, info=_LABEL).derive(
        credential
    )
    there, back = Direction.FORWARD, Direction.BACKWARD
    if gateway:
        there, back = back, there
    return Channel(
        sock,
        (
            RequestSealer(secret, epoch=0, direction=there),
            RequestOpener(secret, epoch=0, direction=back),
        ),
    )


def _exactly(sock: socket.socket, size: int, deadline_s: float | None = None) -> bytearray:
    """So many bytes; a deadline is for all of them together."""
    data = bytearray(size)
    view = memoryview(data)
    while view:
        if deadline_s is not None:
            sock.settimeout(max(deadline_s - time.monotonic(), 1e-3))
        try:
            count = sock.recv_into(view)
        except TimeoutError:
            raise
        except OSError as error:
            raise ConnectionLostError("the peer hung up", got=str(error)) from error
        if count == 0:
            raise ConnectionLostError("the peer hung up")
        view = view[count:]
    return data


def create_credential(path: Path) -> bytes:
    """Make a new credential that only its owner can read.

    Raises:
        MachineError: it can't be written, or there is one already.
    """
    secret = secrets.token_bytes(SECRET_BYTES)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(secret.hex() + "\n")
    except OSError as error:
        raise MachineError("cannot write a credential", got=f"{path}: {error.strerror}") from error
    return secret


def read_credential(path: Path) -> bytes:
    """Read a credential.

    Raises:
        InputError: there is none, or it is not 32 bytes in hexadecimal.
        CredentialModeError: others can read or write it.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(4096)
    except OSError as error:
        raise InputError("cannot read the credential", got=f"{path}: {error.strerror}") from error
    if stat.S_IMODE(mode) & 0o077:
        raise CredentialModeError(
            "others can read or write the credential",
            got=f"{path}: mode {stat.S_IMODE(mode):04o}",
            expected="mode 0600",
            remedy=f"make a new one, and `chmod 600 {path}`",
        )
    try:
        secret = bytes.fromhex(text.decode("ascii").strip())
    except ValueError:
        secret = b""
    if len(secret) != SECRET_BYTES:
        raise InputError(
            "not a credential", got=str(path), expected=f"{SECRET_BYTES} bytes in hexadecimal"
        )
    return secret
