from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultline.core.errors import InputError
from vaultline.core.spread import percentile, spread


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_percentiles_are_numpys(values: list[float]) -> None:
    found = spread(values)
    assert found is not None
    assert found.count == len(values)
    assert found.max_s == max(values)
    assert found.mean_s == pytest.approx(np.mean(values))
    wanted = np.percentile(values, [50, 90, 95, 99])
    assert [found.p50_s, found.p90_s, found.p95_s, found.p99_s] == pytest.approx(wanted)


def test_nothing_has_no_spread() -> None:
    assert spread([]) is None
    with pytest.raises(InputError):
        percentile([], 0.5)
