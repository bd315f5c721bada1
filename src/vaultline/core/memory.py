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
        read_s: one more weight to decrypt, however small it is.
    """

    decrypt_bytes_per_s: float = 1e10
    step_s: float = 15e-6
    read_s: float = 8e-6

    def __post_init__(self) -> None:
        fine = all(map(isfinite, (self.decrypt_bytes_per_s, self.step_s, self.read_s)))
        if not fine or self.decrypt_bytes_per_s <= 0 or min(self.step_s, self.read_s) < 0:
            raise InputError("a rate must be above zero and a cost not negative", got=str(self))


class StepMemory(Struct, frozen=True):
    """Protected memory while one step of a pass runs, besides what is held all the time.

    Attributes:
        first, last: the nodes of the model that it runs; of a compiled program, its own number and
            the next one.
        frames: how many are inside of it at once: one, or where frames are stacked the whole pass.
        streamed_bytes: weights that are decrypted for it, once a pass.
        activation_bytes: tensors, those of waiting frames included.
    """

    first: int
    last: int
    frames: int
    streamed_bytes: int
    activation_bytes: int


class MemoryPlan(Struct, frozen=True):
    """How a stage uses its protected memory. It holds all of ``need_bytes`` from the start.

    Attributes:
        resident_bytes: weights that stay.
        workspace_bytes: shared in turn by tensors and streamed weights.
        engine_bytes: what the engine takes for itself.
        io_bytes: message and record buffers of both hops.
        prefetch: a step's weights are decrypted while the step before runs.
        steps: of a pass, in order.
    """

    resident_bytes: int
    workspace_bytes: int
    engine_bytes: int
    io_bytes: int
    prefetch: bool
    steps: tuple[StepMemory, ...]

    @property
    def need_bytes(self) -> int:
        """What the ledger holds."""
        return self.resident_bytes + self.workspace_bytes + self.engine_bytes + self.io_bytes

    @property
    def streamed_bytes(self) -> int:
        """Weights that are decrypted on every pass."""
        return sum(step.streamed_bytes for step in self.steps)
