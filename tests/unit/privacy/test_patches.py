from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultline.privacy.patches import make_patches


@given(
    side=st.tuples(st.integers(2, 30), st.integers(2, 30)),
    places=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 9),
)
@settings(derandomize=True, deadline=None, max_examples=60)
def test_all_components_together_are_the_picture(
    side: tuple[int, int], places: tuple[int, int], seed: int
) -> None:
    picture = np.random.default_rng(seed).uniform(0, 1, (*side, 3))
    patches = make_patches(side, places, components_max=100)
    assert patches.picture(patches.components(picture)) == pytest.approx(picture, abs=1e-5)


def test_few_components_keep_what_is_smooth() -> None:
    y, x = np.mgrid[:32, :32] / 32
    smooth = np.stack([0.2 + 0.6 * x, 0.2 + 0.6 * y, 0.5 + 0.2 * np.cos(3 * x)], axis=2)
    patches = make_patches((32, 32), (4, 4), components_max=4)
    assert patches.components(smooth).shape == (4, 4, 3 * 4 * 4)
    assert patches.picture(patches.components(smooth)) == pytest.approx(smooth, abs=0.02)
