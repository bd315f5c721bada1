"""Every buffer of protected memory, accounted for: held + free == budget after every event."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import get_args

import numpy as np
import numpy.typing as npt

from vaultline.core.control import BufferKind
from vaultline.core.errors import MachineError

Bytes = npt.NDArray[np.uint8]


class BudgetExceededError(MachineError):
    """The stage asks for more protected memory than its plan grants; nothing was allocated."""


class Ledger:
    """Hands out buffers within a budget in bytes, by kind; refuses rather than exceeds.

    Attributes:
        held: bytes by kind, replaced at every event: any thread sees those of one moment.
        peak: the most of each kind.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.held: Mapping[BufferKind, int] = dict.fromkeys(get_args(BufferKind), 0)
        self.peak = dict(self.held)

    @property
    def free_bytes(self) -> int:
        """What is left of the budget."""
        return self.budget_bytes - sum(self.held.values())

    def reserve(self, kind: BufferKind, size_bytes: int, what: str) -> None:
        """Account for memory that the engine itself will allocate (its internal tensors).

        The host hears the error's message: ``what`` names nothing of the sealed program.

        Raises:
            BudgetExceededError: more than is free.
        """
        if size_bytes < 0 or size_bytes > self.free_bytes:
            raise BudgetExceededError(
                f"no protected memory left for {what}",
                got=f"{self.free_bytes:,} bytes free of {self.budget_bytes:,}",
                expected=f"{size_bytes:,} bytes ({kind})",
                remedy="give the device more memory in the cluster file and plan again",
            )
        self._move(kind, size_bytes, 0)

    def lend(self, kind: BufferKind, size_bytes: int) -> None:
        """Put idle memory to a use.

        Raises:
            BudgetExceededError: more than is idle.
        """
        if not 0 <= size_bytes <= self.held["idle"]:
            raise BudgetExceededError(
                f"the stage needs more memory for its {kind}s than its program says",
                got=f"{self.held['idle']:,} bytes idle",
                expected=f"{size_bytes:,} bytes",
                remedy="seal the model again",
            )
        self._move(kind, size_bytes, -size_bytes)

    def give_back(self, kind: BufferKind, size_bytes: int) -> None:
        """Make lent memory idle again.

        Raises:
            BudgetExceededError: more than was lent.
        """
        if not 0 <= size_bytes <= self.held[kind]:
            raise BudgetExceededError(f"more {kind} memory is given back than was lent")
        self._move(kind, -size_bytes, size_bytes)

    def _move(self, kind: BufferKind, size_bytes: int, idle_bytes: int) -> None:
        held = {**self.held, kind: self.held[kind] + size_bytes}
        held["idle"] += idle_bytes
        self.held = held
        self.peak[kind] = max(self.peak[kind], held[kind])

    @contextmanager
    def lent(self, kind: BufferKind, size_bytes: int) -> Iterator[None]:
        """Idle memory, put to a use for a while."""
        self.lend(kind, size_bytes)
        try:
            yield
        finally:
            self.give_back(kind, size_bytes)

    def take(self, kind: BufferKind, size_bytes: int, what: str) -> Bytes:
        """A zeroed buffer in pages of its own: aligned, and given back when nobody has it.

        Raises:
            BudgetExceededError: more than is free.
        """
        self.reserve(kind, size_bytes, what)
        # Private, and in huge pages where the kernel has some: 1 to 2 % of a pass.
        pages = mmap.mmap(-1, max(size_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
        return np.frombuffer(pages, np.uint8)[:size_bytes]
