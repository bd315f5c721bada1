"""A hop's message stream over one socket: seal and send, receive and open."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from vaultline.channel.keys import HopKeys
from vaultline.channel.messages import MessageReader, MessageWriter, Need, StreamEnded
from vaultline.core.errors import RemoteProtocolError
from vaultline.transport.sockets import ConnectionLostError, hang_up

#: Connections that may fail to prove the hop's key before the hop is given up. A stranger on a
#: TCP network can connect; only the holder of the key gets past its first record.
_STRANGERS_MAX = 16


@dataclass(slots=True)
class HopClock:
    """Nanoseconds that the last message took on this side."""

    crypto_ns: int = 0
    socket_ns: int = 0
    done_ns: int = 0


class HopSender:
    """The sending end of a hop."""

    def __init__(self, sock: socket.socket, keys: HopKeys, *, message_bytes: int) -> None:
        self._sock = sock
        self._writer = MessageWriter(keys, message_bytes=message_bytes)
        self.clock = HopClock()

    def send(self, message: memoryview) -> None:
        """Seal and send one message; blocks while the receiver's queue is full.

        Raises:
            ConnectionLostError: the receiver is gone.
        """
        crypto_ns = socket_ns = 0
        before_ns = time.monotonic_ns()
        for wire in self._writer.message(message):
            sealed_ns = time.monotonic_ns()
            self._send(wire)
            crypto_ns += sealed_ns - before_ns
            before_ns = time.monotonic_ns()
            socket_ns += before_ns - sealed_ns
        self.clock = HopClock(crypto_ns, socket_ns, before_ns)

    def end(self) -> None:
        """Send the authenticated end of the stream."""
        self._send(self._writer.end())

    def abort(self, reason: str) -> None:
        """Tell the receiver, authenticated, that no more will come and why."""
        self._send(self._writer.abort(reason))

    def close(self) -> None:
        """Close the connection."""
        hang_up(self._sock)

    def _send(self, wire: memoryview) -> None:
        try:
            self._sock.sendall(wire)
        except OSError as error:
            raise ConnectionLostError("the next hop hung up", got=str(error)) from error


class HopReceiver:
    """The receiving end of a hop: takes connections until one proves that it holds the key."""

    def __init__(
        self, accept: Callable[[], socket.socket], keys: HopKeys, *, message_bytes: int
    ) -> None:
        self._accept = accept
        self._keys = keys
        self._message_bytes = message_bytes
        self._sock: socket.socket | None = None
        self._closed = False
        self._strangers = 0
        self._reader = self._new_reader()
        self.clock = HopClock()

    def _new_reader(self) -> MessageReader:
        return MessageReader(self._keys, message_bytes=self._message_bytes)

    def receive(self, target: memoryview) -> bool:
        """Receive one message into ``target``; False at the authenticated end of the stream.

        Raises:
            RemoteProtocolError: a peer that had proved its key broke the protocol, or too many
                strangers connected.
            ConnectionLostError: the peer is gone.
        """
        while True:
            try:
                return self._receive(target)
            except (RemoteProtocolError, ConnectionLostError):
                self._hang_up()
                self._strangers += 1
                over = self._closed or self._strangers > _STRANGERS_MAX
                if over or self._reader.established:
                    raise
                self._reader = self._new_reader()

    def close(self) -> None:
        """Hang up for good, from any thread; wakes a ``receive`` that waits for the peer's bytes.

        One that waits for a connection is woken by closing the listener.
        """
        self._closed = True
        self._hang_up()

    def _hang_up(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            hang_up(sock)

    def _receive(self, target: memoryview) -> bool:
        sock = self._sock = self._sock or self._accept()
        if self._closed:  # meanwhile, so that nobody has hung up this connection
            raise ConnectionLostError("this end of the hop was closed")
        crypto_ns = socket_ns = 0
        while True:
            before_ns = time.monotonic_ns()
            event = self._reader.next_event(target)
            now_ns = time.monotonic_ns()
            crypto_ns += now_ns - before_ns
            if event is not Need.DATA:
                self.clock = HopClock(crypto_ns, socket_ns, now_ns)
                return not isinstance(event, StreamEnded)
            try:
                count = sock.recv_into(self._reader.want())
            except OSError as error:
                raise ConnectionLostError("the hop before hung up", got=str(error)) from error
            socket_ns += time.monotonic_ns() - now_ns
            if count == 0:
                raise ConnectionLostError("the hop before hung up before its end of stream")
            self._reader.received(count)
