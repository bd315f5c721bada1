"""The least memory in which a segment can run, and what sets it."""

from __future__ import annotations

from dataclasses import dataclass

from vaultline.core.errors import InfeasibleError
from vaultline.core.memory import StreamRates
from vaultline.core.program import Isa, StageSettings
from vaultline.cost.footprint import io_bytes
from vaultline.graph.arrange import Arranger
from vaultline.graph.compile import limits_of, prepared, target_of
from vaultline.graph.structure import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastBudget:
    """What a segment needs.

    Attributes:
        budget_bytes: the least budget within ``tolerance_bytes`` for which it compiles.
        io_bytes: message and record buffers, which are part of it.
        engine_bytes: what the engine takes for itself, likewise.
        reason: the step and the tensors that do not fit into less.
    """

    budget_bytes: int
    io_bytes: int
    engine_bytes: int
    reason: str


def least_budget(
    model: Model,
    first: int,
    last: int,
    *,
    settings: StageSettings,
    step_bytes: int,
    rates: StreamRates | None = None,
    prefetch: bool = False,
    portable: bool = False,
    isa: Isa | None = None,
    tolerance_bytes: int = 64 << 10,
) -> LeastBudget:
    """The smallest ``settings.budget_bytes`` with which ``compile_segment`` succeeds.

    Args:
        settings: their budget doesn't count.
        tolerance_bytes: what it may be above the least by.

    Raises:
        InputError: no such segment, or an unusable cut.
    """
    target = target_of(portable, isa)
    made = prepared(model, first, last, target)
    fixed = io_bytes(settings, made.inputs, made.outputs)
    arranger = Arranger(made, limits_of(settings, rates, prefetch=prefetch), step_bytes, target)
    low, high, reason = 0, max(tolerance_bytes, 1), ""
    taken = None
    while taken is None or high - low > tolerance_bytes:
        memory = high if taken is None else (low + high) // 2
        try:
            taken = arranger.found(memory, quickest=False).engine_bytes
            high = memory
        except InfeasibleError as error:
            reason = error.expected or str(error)
            low, high = memory, high if taken is not None else 2 * memory
    return LeastBudget(budget_bytes=fixed + high, io_bytes=fixed, engine_bytes=taken, reason=reason)
