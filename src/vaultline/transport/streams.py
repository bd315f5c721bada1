"""Message streams of a hop: seal and send, receive and open.

``HopSender`` and ``HopReceiver`` are the ends of one connection. ``FanOut`` and ``FanIn`` are what
one replica of a stage has of a hop: a connection to each replica on the other side with which it
shares frames. Frame n comes from replica n % sources and goes to replica n % targets, so both
know which connection is next: order and exactly-once follow from each connection's sequence.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from vaultline.channel.keys import HopKeys, derive_hop_keys
from vaultline.channel.messages import MessageReader, MessageWriter, Need, StreamEnded
from vaultline.channel.records import RecordMiswiredError
from vaultline.core.errors import RemoteProtocolError, VaultlineError
from vaultline.core.frames import HopClock
from vaultline.core.replicas import neighbours
from vaultline.transport.sockets import ConnectionLostError, hang_up

T = TypeVar("T")
Accept = Callable[[], socket.socket]

#: Connections that may fail to prove the hop's key before the hop is given up. A stranger on a
#: TCP network can connect; only the holder of the key gets past its first record.
_STRANGERS_MAX = 16


class MiswiredError(RemoteProtocolError):
    """The host gave this end another number of connections than the plan has."""


class UnevenEndError(RemoteProtocolError):
    """A replica ended its stream although another one still has frames."""


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

    def __init__(self, accept: Accept, keys: HopKeys, *, message_bytes: int) -> None:
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
            RemoteProtocolError: a peer that had proved its key broke the protocol, too many
                strangers connected, or a connection of this run that belongs elsewhere.
            ConnectionLostError: the peer is gone.
        """
        while True:
            try:
                return self._receive(target)
            except (RemoteProtocolError, ConnectionLostError) as error:
                self._hang_up()
                self._strangers += 1
                over = self._closed or self._strangers > _STRANGERS_MAX
                # Whoever was connected here by mistake is awaited elsewhere: no use to wait.
                miswired = isinstance(error, RecordMiswiredError)
                if over or miswired or self._reader.established:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """What both sides know of a hop.

    Attributes:
        number: hop k enters stage k.
        sources, targets: replicas of the stages before and after; the owner counts as one.
    """

    number: int
    epoch: int
    secret: bytes = field(repr=False)
    message_bytes: int
    sources: int = 1
    targets: int = 1

    def keys(self, source: int, target: int) -> HopKeys:
        """Those of one connection."""
        return derive_hop_keys(
            self.secret, hop=self.number, epoch=self.epoch, source=source, target=target
        )


class FanOut:
    """The sending side of a hop for one replica: its frames go to the replicas after in turn.

    ``socks`` lead to those that share frames with it, in their order.
    """

    def __init__(self, hop: Hop, source: int, socks: Sequence[socket.socket]) -> None:
        wired = _wired(neighbours(source, hop.sources, hop.targets), socks)
        self._hops = {
            target: HopSender(sock, hop.keys(source, target), message_bytes=hop.message_bytes)
            for target, sock in wired.items()
        }
        self._hop, self._frame = hop, source
        self.clock = HopClock()

    def send(self, message: memoryview) -> None:
        """Seal and send the next frame; blocks while its receiver's queue is full.

        Raises:
            ConnectionLostError: that receiver is gone.
        """
        sender = self._hops[self._frame % self._hop.targets]
        sender.send(message)
        self._frame += self._hop.sources
        self.clock = sender.clock

    def end(self) -> None:
        """Send the authenticated end of the stream to all."""
        for sender in self._hops.values():
            sender.end()

    def abort(self, reason: str) -> None:
        """Tell all who still listen why no more will come."""
        for sender in self._hops.values():
            with contextlib.suppress(VaultlineError):
                sender.abort(reason)

    def close(self) -> None:
        """Close all connections."""
        for sender in self._hops.values():
            sender.close()


class FanIn:
    """The receiving side of a hop for one replica: each frame from the replica that has it.

    ``accepts`` take connections of those that share frames with it, in their order. Never does it
    wait on one while another has something to tell: all frames before a missing one still come.
    """

    def __init__(self, hop: Hop, target: int, accepts: Sequence[Accept]) -> None:
        wired = _wired(neighbours(target, hop.targets, hop.sources), accepts)
        self._hops = {
            source: HopReceiver(accept, hop.keys(source, target), message_bytes=hop.message_bytes)
            for source, accept in wired.items()
        }
        self._hop, self._frame = hop, target
        self.clock = HopClock()

    def receive(self, target: memoryview) -> bool:
        """Receive this replica's next frame; False once all before have ended their streams.

        Raises:
            RemoteProtocolError, ConnectionLostError: as ``HopReceiver.receive``.
            UnevenEndError: one has ended and another has not.
        """
        receiver = self._hops[self._frame % self._hop.sources]
        if receiver.receive(target):
            self._frame += self._hop.targets
            self.clock = receiver.clock
            return True
        if any(other.receive(target) for other in self._hops.values() if other is not receiver):
            raise UnevenEndError(UnevenEndError.__doc__ or "")
        return False

    def close(self) -> None:
        """Hang up for good, from any thread."""
        for receiver in self._hops.values():
            receiver.close()


def _wired(who: range, given: Sequence[T]) -> dict[int, T]:
    """By replica; the host, which made the connections, may have made another number."""
    if len(given) != len(who):
        got, expected = f"{len(given)} connections", f"{len(who)}"
        raise MiswiredError(MiswiredError.__doc__ or "", got=got, expected=expected)
    return dict(zip(who, given, strict=True))
