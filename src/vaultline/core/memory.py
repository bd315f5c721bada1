"""What the memory plan of a stage is made of."""

from __future__ import annotations

from math import isfinite

from vaultline.core.errors import InputError
from vaultline.core.serde import Struct


class StreamRates(Struct, frozen=True):
    """What streaming costs on a device.

    Attributes:
        decrypt_bytes_per_s: weights from the vault.
        step_s: one more call of the engine.
    """

    decrypt_bytes_per_s: float = 1e10
    step_s: float = 15e-6

    def __post_init__(self) -> None:
        fine = isfinite(self.decrypt_bytes_per_s) and isfinite(self.step_s)
        if not fine or self.decrypt_bytes_per_s <= 0 or self.step_s < 0:
            raise InputError("a rate must be above zero and a cost not negative", got=str(self))
