"""Messages over a stream: a length of four bytes, MessagePack, then what the message announces.

``MessageReader`` and ``encode`` are the format without I/O; ``Link`` is one end of a connection in
an event loop, ``send_message`` and ``receive_message`` are those of threads.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from vaultline.core.errors import RemoteProtocolError
from vaultline.core.serde import to_msgpack
from vaultline.transport.sockets import ConnectionLostError, Listener, TransportTimeoutError

M = TypeVar("M")
Buffer = bytes | bytearray | memoryview
#: A message's bytes to the message, and the sizes of what follows it.
Decode = Callable[[bytearray], tuple[M, Sequence[int]]]
#: A message and what followed it.
Received = tuple[M, tuple[bytearray, ...]]

_LENGTH = struct.Struct("!I")
#: What one call of ``Link.receive`` takes at most: other connections wait meanwhile.
_TURN_BYTES = 4 << 20
#: Buffers of one system call; the kernel takes up to 1,024.
_VECTORS = 64


def encode(message: object) -> bytes:
    """A message with its length before it."""
    data = to_msgpack(message)
    return _LENGTH.pack(len(data)) + data


class MessageReader(Generic[M]):
    """The receiving side, without I/O: where the next bytes go, and what is complete."""

    def __init__(self, decode: Decode[M], *, bytes_max: int) -> None:
        self._decode, self._bytes_max = decode, bytes_max
        self._start()

    def _start(self) -> None:
        self._head: bytearray | None = None
        self._message: M | None = None
        self._sizes: list[int] = []
        self._payloads: list[bytearray] = []
        self._buffer = bytearray(_LENGTH.size)
        self._view = memoryview(self._buffer)

    @property
    def between(self) -> bool:
        """Whether nothing of a next message has come yet."""
        return self._head is None and len(self._view) == _LENGTH.size

    def want(self) -> memoryview:
        """Where the next bytes go; never empty."""
        return self._view

    def received(self, count: int) -> Received[M] | None:
        """So many have come; the message, if that completes one.

        Raises:
            RemoteProtocolError: too long, or not a message.
        """
        self._view = self._view[count:]
        while not len(self._view):
            if self._head is None:
                self._head = self._sized(self._buffer)
            elif self._message is None:
                self._message, sizes = self._decode(self._head)
                self._sizes = [size for size in sizes if size]
                self._sizes.reverse()
            if self._message is not None:
                if not self._sizes:
                    done = self._message, tuple(self._payloads)
                    self._start()
                    return done
                self._payloads.append(bytearray(self._sizes.pop()))
                self._view = memoryview(self._payloads[-1])
            else:
                self._view = memoryview(self._head)
        return None

    def _sized(self, length: bytearray) -> bytearray:
        (size,) = _LENGTH.unpack(length)
        if not 0 < size <= self._bytes_max:
            raise RemoteProtocolError(
                "a message is empty or too long",
                got=f"{size} bytes",
                expected=f"1 to {self._bytes_max}",
            )
        return bytearray(size)


class Link(Generic[M]):
    """One end of a connection that never blocks; what can't be sent yet waits here."""

    def __init__(self, sock: socket.socket, decode: Decode[M], *, bytes_max: int) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._reader = MessageReader(decode, bytes_max=bytes_max)
        self._out: deque[memoryview] = deque()
        self.waiting_bytes = 0

    def fileno(self) -> int:
        """For selectors."""
        return self._sock.fileno()

    def send(self, message: object, payloads: Sequence[Buffer] = ()) -> None:
        """Send a message and what follows it, as soon as the peer takes it; see ``flush``."""
        for part in (encode(message), *payloads):
            self._out.append(memoryview(part))
            self.waiting_bytes += len(part)

    def flush(self) -> bool:
        """Send what can be sent now; whether nothing is left.

        Raises:
            ConnectionLostError: the peer is gone.
        """
        while self._out:
            vectors = [self._out[k] for k in range(min(len(self._out), _VECTORS))]
            try:
                sent = self._sock.sendmsg(vectors)
            except BlockingIOError:
                return False
            except OSError as error:
                raise ConnectionLostError("the peer hung up", got=str(error)) from error
            self.waiting_bytes -= sent
            while sent:
                if sent < len(self._out[0]):
                    self._out[0] = self._out[0][sent:]
                    break
                sent -= len(self._out.popleft())
        return True

    def receive(self) -> list[Received[M]]:
        """What has come by now, up to a turn's worth.

        Raises:
            ConnectionLostError: the peer hung up.
            RemoteProtocolError: it broke the protocol.
        """
        found: list[Received[M]] = []
        taken = 0
        while taken < _TURN_BYTES:
            try:
                count = self._sock.recv_into(self._reader.want())
            except BlockingIOError:
                break
            except OSError as error:
                if found:  # what came before counts; the end is seen again next time
                    break
                raise ConnectionLostError("the peer hung up", got=str(error)) from error
            if count == 0:
                if found:
                    break
                raise ConnectionLostError("the peer hung up")
            taken += count
            received = self._reader.received(count)
            if received is not None:
                found.append(received)
        return found

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


class WatchedListener(Listener):
    """A listener that an event loop can watch."""

    def fileno(self) -> int:
        """For selectors."""
        return self._sock.fileno()

    def accept_within(self, timeout_s: float | None) -> socket.socket:
        """The next connection; the listener must stay open meanwhile.

        Raises:
            TransportTimeoutError: none came in time.
        """
        if not select.select([self], [], [], timeout_s)[0]:
            message, expected = f"nobody connected to {self.address}", f"within {timeout_s} s"
            raise TransportTimeoutError(message, expected=expected)
        return self.accept()


def send_message(sock: socket.socket, message: object, payloads: Sequence[Buffer] = ()) -> None:
    """Send a message and what follows it, however long the peer takes.

    Raises:
        ConnectionLostError: the peer is gone.
    """
    vectors = [memoryview(part) for part in (encode(message), *payloads)]
    try:
        while vectors:
            sent = sock.sendmsg(vectors[:_VECTORS])
            while vectors and sent >= len(vectors[0]):
                sent -= len(vectors.pop(0))
            if vectors and sent:
                vectors[0] = vectors[0][sent:]
    except OSError as error:
        raise ConnectionLostError("the peer hung up", got=str(error)) from error


def receive_message(
    sock: socket.socket, reader: MessageReader[M], *, timeout_s: float | None = None
) -> Received[M]:
    """The next message; ``timeout_s`` is for all of its bytes together.

    Raises:
        ConnectionLostError, TransportTimeoutError: it did not come.
        RemoteProtocolError: the peer broke the protocol.
    """
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        try:
            if deadline_s is not None:
                sock.settimeout(max(deadline_s - time.monotonic(), 1e-3))
            count = sock.recv_into(reader.want())
        except TimeoutError:
            raise TransportTimeoutError(
                "the peer does not answer", expected=f"within {timeout_s} s"
            ) from None
        except OSError as error:
            raise ConnectionLostError("the peer hung up", got=str(error)) from error
        if count == 0:
            raise ConnectionLostError("the peer hung up")
        received = reader.received(count)
        if received is not None:
            return received
        if deadline_s is not None and time.monotonic() > deadline_s:
            raise TransportTimeoutError("the peer is too slow", expected=f"within {timeout_s} s")
