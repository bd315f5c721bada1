"""Every buffer of protected memory, accounted for: held + free == budget after every event."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from vaultline.core.errors import MachineError

#: ``idle``: held for tiles and activations, and momentarily used by neither; ``engine``: what the
#: inference engine allocates for itself.
BufferKind = Literal["resident", "tile", "activation", "io", "engine", "idle"]
Bytes = npt.NDArray[np.uint8]
#: From here on a buffer gets pages of its own: aligned, and given back when it is released.
_MAPPED_BYTES_MIN = 1 << 16


class BudgetExceededError(MachineError):
    """The stage asks for more protected memory than its plan grants; nothing was allocated."""


class Ledger:
    """Hands out buffers within a budget in bytes, by kind; refuses rather than exceeds."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._held: dict[BufferKind, int] = dict.fromkeys(get_args(BufferKind), 0)

    @property
    def held(self) -> dict[str, int]:
        """Bytes held by kind."""
        return {str(kind): held for kind, held in self._held.items()}

    @property
    def free_bytes(self) -> int:
        """What is left of the budget."""
        return self._budget_bytes - sum(self._held.values())

    def reserve(self, kind: BufferKind, size_bytes: int, what: str) -> None:
        """Account for memory that the engine itself will allocate (its internal tensors).

        The host hears the error's message: ``what`` names nothing of the sealed program.

        Raises:
            BudgetExceededError: more than is free.
        """
        if size_bytes < 0 or size_bytes > self.free_bytes:
            raise BudgetExceededError(
                f"no protected memory left for {what}",
                got=f"{self.free_bytes:,} bytes free of {self._budget_bytes:,}",
                expected=f"{size_bytes:,} bytes ({kind})",
                remedy="give the device more memory in the cluster file and plan again",
            )
        self._held[kind] += size_bytes

    def lend(self, kind: BufferKind, size_bytes: int) -> None:
        """Put idle memory to a use.

        Raises:
            BudgetExceededError: more than is idle.
        """
        if not 0 <= size_bytes <= self._held["idle"]:
            raise BudgetExceededError(
                f"the stage needs more memory for its {kind}s than its program says",
                got=f"{self._held['idle']:,} bytes idle",
                expected=f"{size_bytes:,} bytes",
                remedy="seal the model again",
            )
        self._held["idle"] -= size_bytes
        self._held[kind] += size_bytes

    def give_back(self, kind: BufferKind, size_bytes: int) -> None:
        """Make lent memory idle again.

        Raises:
            BudgetExceededError: more than was lent.
        """
        if not 0 <= size_bytes <= self._held[kind]:
            raise BudgetExceededError(f"more {kind} memory is given back than was lent")
        self._held[kind] -= size_bytes
        self._held["idle"] += size_bytes

    @contextmanager
    def lent(self, kind: BufferKind, size_bytes: int) -> Iterator[None]:
        """Idle memory, put to a use for a while."""
        self.lend(kind, size_bytes)
        try:
            yield
        finally:
            self.give_back(kind, size_bytes)

    def take(self, kind: BufferKind, size_bytes: int, what: str) -> Bytes:
        """A zeroed buffer aligned to 64 bytes.

        Raises:
            BudgetExceededError: more than is free.
        """
        self.reserve(kind, size_bytes, what)
        if size_bytes < _MAPPED_BYTES_MIN:
            raw = np.zeros(size_bytes + 64, np.uint8)
            start = -raw.ctypes.data % 64
            return raw[start : start + size_bytes]
        # Private, and in huge pages where the kernel has some: 1 to 2 % of a pass.
        pages = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        pages.madvise(mmap.MADV_HUGEPAGE)
        return np.frombuffer(pages, np.uint8)
