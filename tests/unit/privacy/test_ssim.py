"""SSIM is Wang's: values of scikit-image 0.26 for the same pictures, made by
``structural_similarity(a, b, data_range=1, gaussian_weights=True, sigma=1.5,
use_sample_covariance=False)``."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultline.core.leakage import PSNR_DB_MAX
from vaultline.privacy.ssim import best_of_both_signs, luma, psnr_db, ssim

#: (seed, height, width) -> (SSIM with the picture, SSIM with its negative).
GOLDEN = {
    (0, 32, 32): (0.6713432761205167, -0.42068419121242434),
    (1, 11, 11): (0.9896354700774718, -0.9173641000411872),
    (2, 40, 17): (0.8208713981902814, -0.5099931632147249),
    (3, 64, 48): (0.8511064414634337, -0.6959235600240194),
}


def pair(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Two pictures without a random source, so that any library can make the same."""
    y, x = np.mgrid[:height, :width]
    one = 0.5 + 0.25 * np.sin(x * 0.31 + seed) + 0.25 * np.cos(y * 0.17 * (seed + 1))
    return one, np.clip(one * 0.8 + 0.1 * np.sin(x * y * 0.05 + seed), 0, 1)


@pytest.mark.parametrize("case", GOLDEN)
def test_ssim_is_that_of_scikit_image(case: tuple[int, int, int]) -> None:
    one, other = pair(*case)
    assert [ssim(one, other), ssim(one, 1 - other)] == pytest.approx(GOLDEN[case], abs=1e-12)


@pytest.mark.parametrize("case", GOLDEN)
def test_both_signs_at_once_are_the_same(case: tuple[int, int, int]) -> None:
    one, other = pair(*case)
    both = best_of_both_signs(one, np.stack([other, 1 - other]))
    yes, no = GOLDEN[case]
    assert both == pytest.approx(np.array([[yes, no], [no, yes]]), abs=1e-12)


@given(side=st.integers(1, 24), seed=st.integers(0, 99))
@settings(derandomize=True, deadline=None, max_examples=40)
def test_a_picture_is_like_itself_and_no_two_are_more_alike(side: int, seed: int) -> None:
    one, other = np.random.default_rng(seed).uniform(0, 1, (2, side, side + 1))
    assert ssim(one, one) == pytest.approx(1)
    assert ssim(one, other) == pytest.approx(ssim(other, one))
    assert -1 <= ssim(one, other) <= 1 + 1e-9


def test_a_perfect_copy_has_the_largest_psnr_that_can_be_written() -> None:
    one, other = pair(0, 8, 8)
    assert psnr_db(one, one) == PSNR_DB_MAX
    assert psnr_db(one, one + 1e-6) == PSNR_DB_MAX
    assert psnr_db(np.zeros((4, 4)), np.full((4, 4), 0.1)) == pytest.approx(20)
    assert 0 < psnr_db(one, other) < PSNR_DB_MAX


def test_white_is_white_in_grey() -> None:
    assert luma(np.ones((2, 2, 3))) == pytest.approx(np.ones((2, 2)))
