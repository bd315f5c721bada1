"""The line between a serving worker and its untrusted host: see ``core.serving``."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterable
from typing import Any

from vaultline.core.errors import RemoteProtocolError
from vaultline.core.serde import from_msgpack, to_msgpack
from vaultline.core.serving import COMMAND_BYTES_MAX, HostCommand, WorkerReply
from vaultline.enclave.ledger import Bytes
from vaultline.transport.sockets import ConnectionLostError, hang_up

_LENGTH = struct.Struct("!I")


class CommandError(RemoteProtocolError):
    """The host asked for what it knows to be impossible."""


class CommandLine:
    """One thread receives; any thread may reply."""

    def __init__(self, sock: socket.socket, cell: Bytes) -> None:
        """``cell``: where sealed requests are received."""
        self._sock, self._cell = sock, cell
        self._sending = threading.Lock()

    def receive(self) -> HostCommand | None:
        """The next command, or None after the last.

        Raises:
            RemoteProtocolError: too long, or not a command.
            ConnectionLostError: the connection broke.
        """
        head = bytearray(_LENGTH.size)
        count = self._fill(memoryview(head))
        if count == 0:
            return None
        (length,) = _LENGTH.unpack(head)
        if count < len(head) or length > COMMAND_BYTES_MAX:
            raise CommandError("a command is cut off or too long", got=f"{length} bytes")
        data = memoryview(bytearray(length))
        self._fill_whole(data)
        union: Any = HostCommand
        command: HostCommand = from_msgpack(data, union, what="a command", bytes_max=length)
        return command

    def receive_sealed(self, size_bytes: int) -> memoryview:
        """A sealed request that must come next; valid until the next one is received.

        Raises:
            ConnectionLostError: the connection broke.
        """
        sealed = self._cell[:size_bytes].data
        self._fill_whole(sealed)
        return sealed

    def reply(self, reply: WorkerReply, answers: Iterable[memoryview] = ()) -> None:
        """Send a reply and the sealed answers that follow, each of which may use the same memory.

        A host that is gone is noticed by who receives.
        """
        data = to_msgpack(reply)
        with self._sending:
            try:
                self._sock.sendall(_LENGTH.pack(len(data)) + data)
                for answer in answers:
                    self._sock.sendall(answer)
            except OSError:
                hang_up(self._sock)

    def _fill_whole(self, view: memoryview) -> None:
        if self._fill(view) < len(view):
            raise ConnectionLostError("the host hung up in the middle of a command")

    def _fill(self, view: memoryview) -> int:
        done = 0
        try:
            while done < len(view) and (count := self._sock.recv_into(view[done:])):
                done += count
        except OSError as error:
            raise ConnectionLostError("the host is gone", got=str(error)) from error
        return done
