"""Length-prefixed control messages, bounded in size and time."""

from __future__ import annotations

import socket
import struct
import time
from typing import Any, TypeVar

from vaultline.core.control import ControlMessage
from vaultline.core.errors import RemoteProtocolError
from vaultline.core.limits import CONTROL_MESSAGE_BYTES_MAX
from vaultline.core.serde import from_msgpack, to_msgpack
from vaultline.transport.sockets import ConnectionLostError, TransportTimeoutError

_LENGTH = struct.Struct("!I")
M = TypeVar("M", bound=ControlMessage)


def send_control(sock: socket.socket, message: ControlMessage) -> None:
    """Send one message.

    Raises:
        ConnectionLostError: the peer is gone.
    """
    data = to_msgpack(message)
    try:
        sock.sendall(_LENGTH.pack(len(data)) + data)
    except OSError as error:
        raise ConnectionLostError("the control connection is gone", got=str(error)) from error


def receive_control(sock: socket.socket, *kinds: type[M], timeout_s: float) -> M:
    """Receive the one message that must come next, of one of these kinds.

    Raises:
        RemoteProtocolError: too long, malformed or another kind.
        ConnectionLostError, TransportTimeoutError: it did not come.
    """
    deadline_s, expected = time.monotonic() + timeout_s, kinds[0].__name__
    try:
        (length,) = _LENGTH.unpack(_receive_exactly(sock, _LENGTH.size, deadline_s))
        if length > CONTROL_MESSAGE_BYTES_MAX:
            raise RemoteProtocolError("control message beyond the limit", got=f"{length} bytes")
        data = _receive_exactly(sock, length, deadline_s)
    except TimeoutError:
        raise TransportTimeoutError(
            "the peer does not answer", expected=f"{expected} within {timeout_s} s"
        ) from None
    except OSError as error:
        raise ConnectionLostError("the control connection is gone", got=str(error)) from error
    union: Any = ControlMessage
    message = from_msgpack(data, union, what="a control message", bytes_max=length)
    if not isinstance(message, kinds):
        got = type(message).__name__
        raise RemoteProtocolError("not the message that must come next", got=got, expected=expected)
    return message


def _receive_exactly(sock: socket.socket, length: int, deadline_s: float) -> bytes:
    """The deadline is for all bytes together, so a peer can't stretch it one byte at a time."""
    data = bytearray(length)
    view = memoryview(data)
    while view:
        rest_s = deadline_s - time.monotonic()
        if rest_s <= 0:
            raise TimeoutError
        sock.settimeout(rest_s)
        count = sock.recv_into(view)
        if count == 0:
            raise ConnectionLostError("the control connection closed in the middle")
        view = view[count:]
    return bytes(data)
