"""Workers of other machines: a connection starts one, and is its line until either end closes it.

On the other side stands whatever joins a connection to a worker's standard input and output: a
systemd socket in a confidential VM, or socat in a container. The line is no secret and nobody
believes it, as with a worker's pipes: whoever holds it can start and end workers, and no more.
"""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass

from vaultline.core.errors import InputError, PeerError
from vaultline.core.serde import Struct, canonical_json

_CONNECT_S = 10.0
_CID_MAX = (1 << 32) - 1


class WorkerUnreachableError(PeerError):
    """Nobody starts workers at the address that the cluster file names."""


@dataclass(frozen=True, slots=True)
class RemoteWorker:
    """A worker at the other end of a connection."""

    sock: socket.socket

    @property
    def stdout_fd(self) -> int:
        """Where its lines come from."""
        return self.sock.fileno()

    @property
    def pid(self) -> int:
        """None of this machine's."""
        return 0

    def say(self, line: Struct) -> None:
        """Send it a line."""
        with contextlib.suppress(OSError):
            self.sock.sendall(canonical_json(line) + b"\n")

    def wait(self, timeout_s: float | None = None) -> int:
        """Nobody tells how it ended: its last line names a failure, a broken stream the rest."""
        del timeout_s
        return 0

    def stop(self) -> None:
        """Hang up: a worker ends when its line does."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of the connection."""
        self.sock.close()


def parse_at(text: str) -> tuple[socket.AddressFamily, tuple[str, int] | tuple[int, int]]:
    """Where workers are started: ``tcp:HOST:PORT`` or ``vsock:CID:PORT``.

    Raises:
        InputError: neither.
    """
    kind, _, rest = text.partition(":")
    host, _, port = rest.rpartition(":")
    if kind == "tcp" and host and port.isdecimal() and 0 < int(port) < 1 << 16:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return family, (host.strip("[]"), int(port))
    numbers = host.isdecimal() and port.isdecimal()
    if kind == "vsock" and numbers and int(host) <= _CID_MAX and int(port) <= _CID_MAX:
        return socket.AF_VSOCK, (int(host), int(port))
    raise InputError(
        "not where workers are started", got=text, expected="tcp:HOST:PORT or vsock:CID:PORT"
    )


def connect_worker(at: str) -> RemoteWorker:
    """Start a worker by connecting.

    Raises:
        InputError: not an address.
        WorkerUnreachableError: nobody answers.
    """
    family, target = parse_at(at)
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(_CONNECT_S)
            sock.connect(target)
            sock.settimeout(None)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise WorkerUnreachableError(
            "nobody starts workers there",
            got=f"{at}: {error}",
            remedy="start the VM or container, enable its vaultline-worker.socket, or correct "
            "`launch:` of the host in the cluster file",
        ) from error
    return RemoteWorker(sock)
