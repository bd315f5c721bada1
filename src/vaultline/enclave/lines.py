"""Lines to and from the untrusted host, over standard input and output."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeVar

from vaultline.core.control import WireLine, WorkerLine
from vaultline.core.errors import InputError, RemoteProtocolError
from vaultline.core.serde import canonical_json, from_json

#: The host sends a configuration and an address; both fit easily.
_LINE_BYTES_MAX = 64 << 10
C = TypeVar("C")


class HostLines:
    """Reads raw descriptors, so that no lock is held when the process ends."""

    def __init__(self, read_fd: int = 0, write_fd: int = 1) -> None:
        self._read_fd, self._write_fd = read_fd, write_fd
        self._rest = b""
        self._lock = threading.Lock()

    def config(self, kind: type[C]) -> C:
        """The first line.

        Raises:
            InputError: missing or not a configuration.
        """
        return from_json(self._line(), kind, what="the worker's configuration")

    def wires(self, on_end: Callable[[], None]) -> SimpleQueue[WireLine]:
        """Later lines, read in a thread; ``on_end`` runs when the host closes or misuses them."""
        wires: SimpleQueue[WireLine] = SimpleQueue()

        def read() -> None:
            try:
                while True:
                    wires.put(from_json(self._line(), WireLine, what="a line of the host"))
            except (InputError, RemoteProtocolError):
                on_end()

        threading.Thread(target=read, name="host", daemon=True).start()
        return wires

    def say(self, line: WorkerLine) -> None:
        """Write one line; a host that no longer reads is not our concern."""
        data = canonical_json(line) + b"\n"
        with self._lock:
            try:
                while data:
                    data = data[os.write(self._write_fd, data) :]
            except OSError:
                return

    def _line(self) -> bytes:
        while b"\n" not in self._rest:
            data = os.read(self._read_fd, 4096)
            if not data or len(self._rest) > _LINE_BYTES_MAX:
                raise RemoteProtocolError("the host closed its line, or sent one too long")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line
