"""The scores of one cut: resolution, similarity and reconstruction together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vaultline.core.errors import InputError
from vaultline.privacy.planes import Planes, resolution_px
from vaultline.privacy.similarity import Revealing, similarity
from vaultline.privacy.ssim import Floats, luma, psnr_db, ssim

#: From the stacks of planes that cross a cut to a reconstruction (HxWx3, 0 to 1).
Decoder = Callable[[Sequence[Planes]], NDArray[np.float64]]
#: From training views, their pictures and which picture each is of, to a decoder.
Fit = Callable[[Sequence[Sequence[Planes]], Sequence[Floats], Sequence[int]], Decoder]
#: Held-out pictures on which a blank scores more than this are blank themselves.
_BLIND_MAX = 0.999


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One picture, as the model gets it, and what crosses the cut for it.

    Attributes:
        picture: HxWx3, 0 to 1.
        stacks: planes per crossing tensor.
        owner: number of the picture; several training samples are views of one.
    """

    picture: Floats
    stacks: Sequence[Planes]
    owner: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A cut's scores, and the pictures that show what they mean.

    Attributes:
        ssim: mean over the held-out pictures of their SSIM with the reconstructions, in grey.
        blind: the same for the best picture that is made without any tensor.
        reconstruction: how far ``ssim`` goes from ``blind`` to 1: 0 is no better than blind.
        reconstructions: of the held-out pictures, in order.
    """

    resolution_px: int
    revealing: Revealing
    ssim: float
    blind: float
    reconstruction: float
    psnr_db: float
    reconstructions: tuple[NDArray[np.float64], ...]


def measure_cut(training: Sequence[Sample], held_out: Sequence[Sample], fit: Fit) -> Measured:
    """Attack a cut: fit on the training samples, score on the held-out ones.

    Raises:
        InputError: a picture is on both sides, or the held-out pictures are blank.
    """
    both = {sample.owner for sample in training} & {sample.owner for sample in held_out}
    if both:
        raise InputError(
            "a picture to be reconstructed must not be one that the decoder was fitted on",
            got=f"pictures {sorted(both)} on both sides",
        )
    decoder = fit(
        [sample.stacks for sample in training],
        [sample.picture for sample in training],
        [sample.owner for sample in training],
    )
    made = tuple(decoder(sample.stacks) for sample in held_out)
    pictures = [sample.picture for sample in held_out]
    greys = [luma(picture) for picture in pictures]
    score = _mean_ssim(greys, made)
    blind = blind_ssim([sample.picture for sample in training], pictures)
    return Measured(
        resolution_px=resolution_px(held_out[0].stacks),
        revealing=similarity(greys, [sample.stacks for sample in held_out]),
        ssim=score,
        blind=blind,
        reconstruction=above_blind(score, blind),
        psnr_db=float(np.mean([psnr_db(*pair) for pair in zip(pictures, made, strict=True)])),
        reconstructions=made,
    )


def above_blind(score: float, blind: float) -> float:
    """The share of the way from a blind guess to a perfect copy that an attack's SSIM goes.

    SSIM calls two smooth surfaces alike whatever they show, so that a blank scores 0.4 and more on
    ordinary pictures. What an attacker gets without the tensor is no leakage of the tensor.
    """
    return min(1.0, max(0.0, (score - blind) / (1 - blind)))


def blind_ssim(training: Sequence[Floats], pictures: Sequence[Floats]) -> float:
    """The SSIM of the better of two guesses: the mean training picture, and its mean colour.

    Raises:
        InputError: the pictures are as good as blank, so that nothing could be leaked.
    """
    mean: NDArray[np.float64] = np.mean(training, axis=0, dtype=np.float64)
    colour = np.broadcast_to(mean.mean(axis=(0, 1)), mean.shape)
    greys = [luma(picture) for picture in pictures]
    best = max(_mean_ssim(greys, [guess] * len(greys)) for guess in (mean, colour))
    if best > _BLIND_MAX:
        raise InputError(
            "the pictures show nothing: a blank reproduces them",
            got=f"an SSIM of {best:.4f} for their mean",
            expected="ordinary pictures",
            remedy="give pictures like those that the model will see",
        )
    return best


def _mean_ssim(greys: Sequence[Floats], made: Sequence[NDArray[np.float64]]) -> float:
    return float(
        np.mean([ssim(grey, luma(guess)) for grey, guess in zip(greys, made, strict=True)])
    )
