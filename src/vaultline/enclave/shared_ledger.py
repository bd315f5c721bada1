"""A ledger for several threads, whose buffers come and go while the worker works."""

from __future__ import annotations

import threading

from vaultline.core.control import BufferKind
from vaultline.core.errors import LocalProtocolError
from vaultline.enclave.ledger import Ledger


class SharedLedger(Ledger):
    """Any thread may take and release; ``held + free == budget`` for whoever looks."""

    def __init__(self, budget_bytes: int) -> None:
        super().__init__(budget_bytes)
        self._lock = threading.Lock()

    def reserve(self, kind: BufferKind, size_bytes: int, what: str) -> None:
        """As ``Ledger.reserve``."""
        with self._lock:
            super().reserve(kind, size_bytes, what)

    def lend(self, kind: BufferKind, size_bytes: int) -> None:
        """As ``Ledger.lend``."""
        with self._lock:
            super().lend(kind, size_bytes)

    def give_back(self, kind: BufferKind, size_bytes: int) -> None:
        """As ``Ledger.give_back``."""
        with self._lock:
            super().give_back(kind, size_bytes)

    def release(self, kind: BufferKind, size_bytes: int) -> None:
        """Make reserved or taken memory free again; nobody may use the buffer any more.

        Raises:
            LocalProtocolError: more than is held.
        """
        with self._lock:
            if not 0 <= size_bytes <= self.held[kind]:
                raise LocalProtocolError(f"more {kind} memory is released than is held")
            self._move(kind, -size_bytes, 0)


class Account(Ledger):
    """What one owner among several has of a shared ledger, to be released all at once.

    Attributes:
        held: reserved and taken through this account; what is lent of idle memory is not in it.
    """

    def __init__(self, shared: SharedLedger) -> None:
        super().__init__(shared.budget_bytes)
        self._shared = shared

    def reserve(self, kind: BufferKind, size_bytes: int, what: str) -> None:
        """As ``Ledger.reserve``, of the shared ledger."""
        self._shared.reserve(kind, size_bytes, what)
        self._move(kind, size_bytes, 0)

    def lend(self, kind: BufferKind, size_bytes: int) -> None:
        """As ``Ledger.lend``, of the shared ledger."""
        self._shared.lend(kind, size_bytes)

    def give_back(self, kind: BufferKind, size_bytes: int) -> None:
        """As ``Ledger.give_back``, to the shared ledger."""
        self._shared.give_back(kind, size_bytes)

    def close(self) -> None:
        """Release everything; nobody may use any of it any more. Safe to call twice."""
        held, self.held = self.held, dict.fromkeys(self.held, 0)
        for kind, size_bytes in held.items():
            self._shared.release(kind, size_bytes)
