"""How fast a link between two hosts is: bytes per second each way, and half of a round trip.

One host serves a single client and ends; the other measures. Both ends use the sockets that hops
use, tuned alike. Nothing here is secret or authenticated: the bytes are noise, their number and
the time that they may take are bounded on both sides.
"""

from __future__ import annotations

import math
import os
import socket
import statistics
import struct
import time
from collections.abc import Callable

from vaultline.core.errors import RemoteProtocolError
from vaultline.core.limits import MIB
from vaultline.core.profile import RATE_MAX, RATE_MIN
from vaultline.core.serde import Struct
from vaultline.core.units import format_rate, format_seconds
from vaultline.transport.framing import WatchedListener
from vaultline.transport.sockets import (
    Address,
    ConnectionLostError,
    TransportTimeoutError,
    connect,
    hang_up,
)

#: First what a side speaks, then requests of the client: an operation and a number of bytes.
_GREETING = b"vaultline link 1"
_REQUEST = struct.Struct("!cQ")
_ANSWER = struct.Struct("!d")
_PING, _THERE, _BACK, _END = b"p", b"t", b"b", b"e"
#: A transfer grows until it takes as long as is wanted, or has this many bytes.
TRANSFER_BYTES_MAX = 256 * MIB
_FIRST_BYTES = 64 << 10
_GROWTH_MAX = 8
#: What a server sends and takes at most, and for how long it serves: a client that measures needs
#: less than half of each.
_SERVED_BYTES_MAX = 1 << 30
_REQUESTS_MAX = 200
_SERVED_S_MAX = 300.0
#: Without a byte for so long, a link is gone.
_SILENCE_S = 15.0
_PIECE_BYTES = 64 << 10
_PINGS = 21


class LinkRate(Struct, frozen=True):
    """A measured link, from the client's host to the server's.

    Attributes:
        bytes_per_s: from the client to the server.
        back_bytes_per_s: from the server to the client.
        latency_s: half of the median round trip of a few bytes on the idle link.
    """

    bytes_per_s: float
    back_bytes_per_s: float
    latency_s: float

    def entry(self, source: str, target: str) -> str:
        """The line under ``links:`` of a cluster file; ``source`` is the client's host."""
        return (
            f"- {{source: {source}, target: {target}, "
            f"bandwidth: {format_rate(self.bytes_per_s)}, "
            f"back: {format_rate(self.back_bytes_per_s)}, "
            f"latency: {format_seconds(self.latency_s)}}}"
        )


def serve_once(
    address: Address,
    *,
    timeout_s: float | None = 60.0,
    on_listening: Callable[[Address], None] | None = None,
) -> None:
    """Let one client measure the link to here; returns when it has.

    Args:
        address: where to listen; port 0 takes any free one.
        timeout_s: how long to wait for the client; None for ever.
        on_listening: told the address with its port, once a client may connect.

    Raises:
        MachineError: the address can't be listened on.
        TransportTimeoutError: nobody connected, or the client fell silent or took too long.
        ConnectionLostError: the client hung up before its end.
        RemoteProtocolError: whoever connected speaks something else, or asks for too much.
    """
    listener = WatchedListener(address)
    try:
        if on_listening is not None:
            on_listening(listener.address)
        sock = listener.accept_within(timeout_s)
    finally:
        listener.close()
    try:
        _serve(_Wire(sock, _SERVED_S_MAX))
    finally:
        hang_up(sock)


def measure_link(
    address: Address, *, wanted_s: float = 1.0, connect_timeout_s: float = 10.0
) -> LinkRate:
    """Measure the link to a server that waits in :func:`serve_once`.

    Args:
        wanted_s: how long a transfer should take; longer is steadier.
        connect_timeout_s: how long to try to reach the server.

    Raises:
        TransportTimeoutError: nobody listens there, or the server fell silent.
        ConnectionLostError: the server hung up, or can't be reached at all.
        RemoteProtocolError: whoever listens there speaks something else.
    """
    sock = connect(address, timeout_s=connect_timeout_s)
    try:
        wire = _Wire(sock, _SERVED_S_MAX)
        wire.greet()
        latency_s = statistics.median(_round_trip_s(wire) for _ in range(_PINGS)) / 2
        there = _settled_rate(lambda size: _send_there(wire, size), wanted_s)
        back = _settled_rate(lambda size: _ask_back(wire, size), wanted_s)
        wire.send(_REQUEST.pack(_END, 0))
    finally:
        hang_up(sock)
    return LinkRate(bytes_per_s=there, back_bytes_per_s=back, latency_s=latency_s)


class _Wire:
    """A socket whose every wait is bounded, and all of them together."""

    def __init__(self, sock: socket.socket, limit_s: float) -> None:
        self._sock = sock
        self._deadline_s = time.monotonic() + limit_s
        self._noise = memoryview(os.urandom(_PIECE_BYTES))  # a link may compress
        self._taken = memoryview(bytearray(MIB))

    def greet(self) -> None:
        """Both sides say what they speak, and hear it."""
        self.send(_GREETING)
        if (said := self.receive(len(_GREETING))) != _GREETING:
            raise RemoteProtocolError(
                "the other side doesn't measure links",
                got=repr(said),
                expected=repr(_GREETING),
                remedy="start `vaultline link serve` of the same version there",
            )

    def send(self, data: bytes | memoryview) -> None:
        """Send a few bytes."""
        self._bound()
        try:
            self._sock.sendall(data)
        except TimeoutError as error:
            raise _silent() from error
        except OSError as error:
            raise _gone(str(error)) from error

    def send_noise(self, size: int) -> None:
        """Send that many bytes of noise."""
        for start in range(0, size, _PIECE_BYTES):
            self.send(self._noise[: size - start])

    def receive(self, size: int) -> bytes:
        """Exactly that many bytes, few."""
        data = b""
        while len(data) < size:
            count = self._receive_into(self._taken[: size - len(data)])
            data += self._taken[:count]
        return data

    def receive_rate(self, size: int) -> float:
        """Take that many bytes; how many came in a second, once the first quarter had come.

        TCP starts slowly, and a shaped link lets a burst through: neither is the link's rate.
        """
        taken, counted_from, started_s = 0, 0, 0.0
        piece = min(max(size // 8, 1), len(self._taken))
        while taken < size:
            taken += self._receive_into(self._taken[: min(piece, size - taken)])
            if not counted_from and taken >= size // 4:
                counted_from, started_s = taken, time.perf_counter()
        spent_s = time.perf_counter() - started_s
        rate = (taken - counted_from) / spent_s if spent_s else RATE_MAX
        return min(max(rate, RATE_MIN), RATE_MAX)

    def _receive_into(self, buffer: memoryview) -> int:
        self._bound()
        try:
            count = self._sock.recv_into(buffer)
        except TimeoutError as error:
            raise _silent() from error
        except OSError as error:
            raise _gone(str(error)) from error
        if count == 0:
            raise _gone("the end of the stream")
        return count

    def _bound(self) -> None:
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise TransportTimeoutError("measuring the link took too long")
        self._sock.settimeout(min(_SILENCE_S, left_s))


def _silent() -> TransportTimeoutError:
    return TransportTimeoutError(
        "the other side of the link fell silent", expected=f"a byte within {_SILENCE_S:g} s"
    )


def _gone(got: str) -> ConnectionLostError:
    return ConnectionLostError("the other side of the link hung up", got=got)


def _serve(wire: _Wire) -> None:
    """Do what the client asks until it ends, within the limits."""
    wire.greet()
    served = 0
    for _ in range(_REQUESTS_MAX):
        kind, size = _REQUEST.unpack(wire.receive(_REQUEST.size))
        if kind == _END:
            return
        served += size
        if kind not in (_PING, _THERE, _BACK) or served > _SERVED_BYTES_MAX:
            raise RemoteProtocolError(
                "the client of a link asks for what isn't served",
                got=f"{kind!r} of {size} bytes",
                expected=f"ping, there, back or end, and at most {_SERVED_BYTES_MAX} bytes in all",
            )
        if kind == _PING:
            wire.send(_ANSWER.pack(0.0))
        elif kind == _THERE:
            wire.send(_ANSWER.pack(wire.receive_rate(size)))
        else:
            wire.send_noise(size)
    raise RemoteProtocolError(
        "the client of a link asks without end", expected=f"at most {_REQUESTS_MAX} requests"
    )


def _round_trip_s(wire: _Wire) -> float:
    before_s = time.perf_counter()
    wire.send(_REQUEST.pack(_PING, 0))
    wire.receive(_ANSWER.size)
    return time.perf_counter() - before_s


def _send_there(wire: _Wire, size: int) -> float:
    wire.send(_REQUEST.pack(_THERE, size))
    wire.send_noise(size)
    (rate,) = _ANSWER.unpack(wire.receive(_ANSWER.size))
    if not (math.isfinite(rate) and RATE_MIN <= rate <= RATE_MAX):
        raise RemoteProtocolError("the server measured an impossible rate", got=str(rate))
    return float(rate)


def _ask_back(wire: _Wire, size: int) -> float:
    wire.send(_REQUEST.pack(_BACK, size))
    return wire.receive_rate(size)


def _settled_rate(transfer: Callable[[int], float], wanted_s: float) -> float:
    """The rate of a transfer that takes as long as is wanted: they grow until one does."""
    size = _FIRST_BYTES
    while True:
        before_s = time.perf_counter()
        rate = transfer(size)
        spent_s = time.perf_counter() - before_s
        if spent_s >= wanted_s / 2 or size >= TRANSFER_BYTES_MAX:
            return rate
        growth = min(max(wanted_s / max(spent_s, 1e-9), 2.0), _GROWTH_MAX)
        size = min(round(size * growth), TRANSFER_BYTES_MAX)
