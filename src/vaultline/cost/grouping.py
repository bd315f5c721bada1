"""Cutting an order of nodes into steps of a pass, under a bound on the memory of each step.

Tables have a row for each first position and a column for each last one: entry ``[k, l]`` belongs
to a step of the nodes from ``k`` to ``l``.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float64]


def least_peak(need: Table) -> float:
    """The smallest bound under which the whole order can be cut: ``inf`` if there is none.

    Args:
        need: bytes of every possible step, ``inf`` where there may be none.
    """
    count = len(need) - 1
    peak = np.full(count + 1, np.inf)
    peak[0] = 0.0
    for last in range(1, count + 1):
        peak[last] = np.maximum(peak[:last], need[:last, last]).min()
    return float(peak[count])


def cheapest(need: Table, price: Table, bound: float) -> tuple[float, tuple[int, ...]] | None:
    """The cuts of least price whose steps all stay within ``bound``, ends included.

    Returns:
        The price and the positions; None if there are no such cuts.
    """
    count = len(need) - 1
    total = np.full(count + 1, np.inf)
    total[0] = 0.0
    before = np.zeros(count + 1, np.int64)
    offered = np.where(need <= bound, price, np.inf)
    for last in range(1, count + 1):
        paid = total[:last] + offered[:last, last]
        before[last] = int(paid.argmin())
        total[last] = paid[before[last]]
    if not np.isfinite(total[count]):
        return None
    places = [count]
    while places[-1] > 0:
        places.append(int(before[places[-1]]))
    return float(total[count]), tuple(places[::-1])


def widest(need: Table, places: tuple[int, ...]) -> float:
    """The largest need of the steps between such positions."""
    return float(max((need[a, b] for a, b in pairwise(places)), default=0.0))
