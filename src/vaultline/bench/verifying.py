"""How long a verification takes, for evidence of each kind."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from vaultline.attest.chains import forget_chains
from vaultline.attest.examine import Request, examine


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Milliseconds of one piece of evidence.

    Attributes:
        first_ms: median where none of its certificates has been seen before.
        new_device_ms: median where the vendor's authorities are known, and this device is new.
        median_ms: median where the same certificates have been verified before, as those of a
            platform that answers again have.
    """

    kind: str
    accepted: bool
    first_ms: float
    new_device_ms: float
    median_ms: float


def bench_verify(request: Request, *, rounds: int) -> Timing:
    """Measure one request; the outcome is what it is, accepted or not."""
    outcome = examine(request)
    return Timing(
        kind=outcome.kind,
        accepted=not outcome.refusals,
        first_ms=_median_ms(request, rounds, forget_chains),
        new_device_ms=_median_ms(request, rounds, lambda: forget_chains(devices_only=True)),
        median_ms=_median_ms(request, rounds, lambda: None),
    )


def _median_ms(request: Request, rounds: int, before: Callable[[], None]) -> float:
    times: list[float] = []
    for _ in range(rounds):
        before()
        start = time.perf_counter()
        examine(request)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3
