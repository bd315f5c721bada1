"""How some seconds are distributed: latencies, lateness."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vaultline.core.errors import InputError
from vaultline.core.serde import Struct


class Spread(Struct, frozen=True):
    """Of at least one value; percentiles are interpolated between neighbours."""

    count: int
    mean_s: float
    p50_s: float
    p90_s: float
    p95_s: float
    p99_s: float
    max_s: float


def spread(seconds: Iterable[float]) -> Spread | None:
    """None of none."""
    ordered = sorted(seconds)
    if not ordered:
        return None
    return Spread(
        count=len(ordered),
        mean_s=sum(ordered) / len(ordered),
        p50_s=percentile(ordered, 0.5),
        p90_s=percentile(ordered, 0.9),
        p95_s=percentile(ordered, 0.95),
        p99_s=percentile(ordered, 0.99),
        max_s=ordered[-1],
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """Between the two nearest ranks of ascending values, in proportion.

    Type 7 of R. J. Hyndman and Y. Fan, "Sample quantiles in statistical packages", 1996.

    Args:
        share: 0.95 for the 95th percentile.

    Raises:
        InputError: no values.
    """
    if not ordered:
        raise InputError("no value has a percentile")
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
