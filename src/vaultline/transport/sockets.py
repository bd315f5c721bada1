"""Addresses, listening, connecting. Every failure is a named error; nothing waits unbounded."""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path

from vaultline.core.errors import InputError, MachineError, PeerError

#: Room for one fragment in flight, so that sending overlaps with the receiver's decryption.
_SOCKET_BUFFER_BYTES = 4 << 20
_CONNECT_RETRY_S = 0.01


class ConnectionLostError(PeerError):
    """The peer closed or reset the connection before the authenticated end of the stream."""


class TransportTimeoutError(PeerError):
    """The peer did not do its part in time."""


@dataclass(frozen=True, slots=True)
class Address:
    """``unix:/path`` or ``tcp:host:port`` (port 0 while asking for any free one)."""

    kind: str
    host: str
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an address.

        Raises:
            InputError: neither of the two forms.
        """
        kind, _, rest = text.partition(":")
        if kind == "unix" and rest.startswith("/"):
            return cls("unix", rest)
        host, _, port = rest.rpartition(":")
        if kind == "tcp" and host and port.isdecimal() and int(port) < 1 << 16:
            return cls("tcp", host.strip("[]"), int(port))
        raise InputError("not an address", got=text, expected="unix:/path or tcp:host:port")

    def __str__(self) -> str:
        if self.kind == "unix":
            return f"unix:{self.host}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp:{host}:{self.port}"

    @property
    def family(self) -> socket.AddressFamily:
        """The socket family."""
        if self.kind == "unix":
            return socket.AF_UNIX
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    @property
    def target(self) -> str | tuple[str, int]:
        """What ``bind`` and ``connect`` take."""
        return self.host if self.kind == "unix" else (self.host, self.port)


def _tune(sock: socket.socket) -> None:
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER_BYTES)
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Listener:
    """A listening socket; ``address`` carries the port that was given."""

    def __init__(self, address: Address) -> None:
        self._sock = socket.socket(address.family, socket.SOCK_STREAM)
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._sock.bind(address.target)
            self._sock.listen(64)
        except OSError as error:
            self._sock.close()
            raise MachineError(f"cannot listen on {address}", got=str(error)) from error
        self.address = address
        if address.kind == "tcp":
            self.address = replace(address, port=self._sock.getsockname()[1])
        else:
            Path(address.host).chmod(0o600)

    def accept(self) -> socket.socket:
        """The next connection.

        Raises:
            ConnectionLostError: the listener was closed meanwhile.
        """
        try:
            sock, _ = self._sock.accept()
        except OSError as error:
            raise ConnectionLostError(f"stopped listening on {self.address}") from error
        _tune(sock)
        return sock

    def close(self) -> None:
        """Stop listening, waking a blocked ``accept``, and remove the socket's file."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        if self.address.kind == "unix":
            Path(self.address.host).unlink(missing_ok=True)


def connect(address: Address, *, timeout_s: float) -> socket.socket:
    """Connect, retrying while nobody listens yet.

    Raises:
        TransportTimeoutError: nobody listened in time.
        ConnectionLostError: the machine refuses such a connection altogether.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        sock = socket.socket(address.family, socket.SOCK_STREAM)
        _tune(sock)
        sock.settimeout(timeout_s)
        try:
            sock.connect(address.target)
            sock.settimeout(None)
            return sock
        except OSError as error:
            sock.close()
            waiting = error.errno in (errno.ECONNREFUSED, errno.ENOENT, errno.EAGAIN)
            if not waiting and not isinstance(error, TimeoutError):
                raise ConnectionLostError(f"cannot connect to {address}", got=str(error)) from error
            if not waiting or time.monotonic() >= deadline_s:
                message, expected = f"nobody answers at {address}", f"within {timeout_s} s"
                raise TransportTimeoutError(message, expected=expected) from error
            time.sleep(_CONNECT_RETRY_S)


def hang_up(sock: socket.socket) -> None:
    """Close a connection, waking any thread that is blocked on it."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
