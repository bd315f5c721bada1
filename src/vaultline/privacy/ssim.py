"""How alike two pictures are: SSIM and PSNR.

SSIM after Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to
structural similarity", IEEE TIP 13(4), 2004: Gaussian window of 11 x 11 pixels with sigma 1.5,
K1 = 0.01, K2 = 0.03, averaged over the places where the window lies within the picture.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vaultline.core.leakage import PSNR_DB_MAX

Floats = NDArray[np.floating]

WINDOW_PX = 11
SIGMA_PX = 1.5
#: (K1 L)^2 and (K2 L)^2 for values from 0 to L = 1.
C1, C2 = 0.01**2, 0.03**2
#: Rec. 601, as in the greys of ``vaultline.video``.
_LUMA = (0.299, 0.587, 0.114)


def luma(image: Floats) -> Floats:
    """Grey (HxW) of an RGB picture (HxWx3)."""
    return image @ np.asarray(_LUMA, dtype=image.dtype)


def ssim(one: Floats, other: Floats) -> float:
    """Mean SSIM of two grey pictures (HxW) with values from 0 to 1.

    Pictures of fewer than 11 pixels a side are looked at through the largest odd window that fits.
    """
    return float(_mean_ssim(_Stats(one), _Stats(other), _filtered(one * other)))


def best_of_both_signs(picture: Floats, channels: Floats) -> Floats:
    """SSIM of a grey picture (HxW) with each channel (CxHxW) and with its negative.

    The negative ``1 - c`` has the same variances and the opposite covariance, so it costs no
    further filtering.

    Returns:
        Cx2: as it is, negative.
    """
    image, seen = _Stats(picture), _Stats(channels)
    product = _filtered(picture * channels)
    negative = _Stats.of(1 - seen.mean, seen.square - 2 * seen.mean + 1)
    return np.stack(
        [_mean_ssim(image, seen, product), _mean_ssim(image, negative, image.mean - product)],
        axis=-1,
    )


def psnr_db(one: Floats, other: Floats) -> float:
    """Peak signal-to-noise ratio of pictures with values from 0 to 1, at most ``PSNR_DB_MAX``."""
    error = float(np.mean(np.square(one - other, dtype=np.float64)))
    return PSNR_DB_MAX if error <= 10 ** (-PSNR_DB_MAX / 10) else -10 * float(np.log10(error))


class _Stats:
    """Local mean and mean square of pictures (...xHxW)."""

    __slots__ = ("mean", "square")

    def __init__(self, pictures: Floats) -> None:
        self.mean = _filtered(pictures)
        self.square = _filtered(pictures * pictures)

    @classmethod
    def of(cls, mean: Floats, square: Floats) -> _Stats:
        """From statistics at hand."""
        made = cls.__new__(cls)
        made.mean, made.square = mean, square
        return made


def _mean_ssim(one: _Stats, other: _Stats, product: Floats) -> Floats:
    means = one.mean * other.mean
    squares = one.mean * one.mean + other.mean * other.mean
    above = (2 * means + C1) * (2 * (product - means) + C2)
    below = (squares + C1) * (one.square + other.square - squares + C2)
    mean: Floats = (above / below).mean(axis=(-2, -1))
    return mean


def _filtered(pictures: Floats) -> Floats:
    """Gaussian-weighted local means, where the window fits: two products with banded matrices."""
    height, width = pictures.shape[-2:]
    rows = _band(height, min(height, width)).astype(pictures.dtype, copy=False)
    columns = _band(width, min(height, width)).astype(pictures.dtype, copy=False)
    result: Floats = rows @ pictures @ columns.T
    return result


@lru_cache(maxsize=64)
def _band(side: int, shortest: int) -> NDArray[np.float64]:
    """The window at each place along a side."""
    window = min(WINDOW_PX, shortest - (shortest + 1) % 2)
    offsets = np.arange(window) - window // 2
    weights = np.exp(-(offsets**2) / (2 * SIGMA_PX**2))
    weights /= weights.sum()
    band = np.zeros((side - window + 1, side))
    for place in range(len(band)):
        band[place, place : place + window] = weights
    band.setflags(write=False)
    return band
