from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultline.privacy.patches import make_axis, make_patches


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


@pytest.mark.parametrize("side", [1, 2, 7, 12, 55, 64])
def test_every_pixel_is_covered_at_every_grid(side: int) -> None:
    for places in range(1, side + 4):
        axis = make_axis(side, places, components_max=1000)
        assert axis.synthesis @ axis.analysis == pytest.approx(np.eye(side), abs=1e-9)


@pytest.mark.parametrize(
    ("places", "stride"), [(112, 2), (111, 2), (55, 4), (54, 4), (27, 8), (13, 16), (6, 32)]
)
def test_a_border_lost_to_convolutions_does_not_stretch_the_grid(places: int, stride: int) -> None:
    axis = make_axis(224, places, components_max=1)
    centres = np.abs(axis.synthesis).T @ np.arange(224) / np.abs(axis.synthesis).sum(axis=0)
    inner = centres[places // 3 : 2 * places // 3]
    assert np.diff(inner) == pytest.approx(stride, abs=0.01)
