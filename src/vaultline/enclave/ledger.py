"""Every buffer of protected memory, accounted for: held + free == budget after every step."""

from __future__ import annotations

import mmap
from typing import Literal

import numpy as np
import numpy.typing as npt

from vaultline.core.errors import MachineError

BufferKind = Literal["resident", "tile", "activation", "io"]
Bytes = npt.NDArray[np.uint8]
#: From here on a buffer gets pages of its own: aligned, and given back when it is released.
_MAPPED_BYTES_MIN = 1 << 16


class BudgetExceededError(MachineError):
    """The stage asks for more protected memory than its plan grants; nothing was allocated."""


class Ledger:
    """Hands out buffers within a budget in bytes, by kind; refuses rather than exceeds."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._held: dict[BufferKind, int] = {"resident": 0, "tile": 0, "activation": 0, "io": 0}

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
        return np.frombuffer(mmap.mmap(-1, size_bytes), np.uint8)
