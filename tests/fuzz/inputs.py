"""What targets share: files and sockets that hold the bytes of an input."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

SCRATCH = Path(tempfile.mkdtemp(prefix="vaultline-fuzz-"))


def from_file(read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """A reader of bytes, of one that reads a file."""

    def parse(data: bytes) -> object:
        path = SCRATCH / "input"
        path.write_bytes(data)
        path.chmod(0o600)
        return read(path)

    return parse


class Said:
    """The receiving end of a connection on which these bytes come, in pieces, and then its end.

    Stands in for a socket: what is sent goes nowhere, and options are not kept.
    """

    def __init__(self, data: bytes, *, piece: int = 1 << 10) -> None:
        self._rest, self._piece = memoryview(data), piece

    def recv_into(self, buffer: Any) -> int:
        """The next bytes."""
        view = memoryview(buffer).cast("B")
        count = min(len(view), len(self._rest), self._piece)
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def sendall(self, data: Any) -> None:
        """Nobody hears it."""

    def setsockopt(self, *_: Any) -> None:
        """It has none."""

    def settimeout(self, _: float | None) -> None:
        """Nothing here waits."""

    def shutdown(self, _: int) -> None:
        """Nobody is at the other end."""

    def close(self) -> None:
        """Nothing is held."""
