"""Similarity: does any channel look like the input?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vaultline.privacy.planes import Planes, resized
from vaultline.privacy.ssim import Floats, best_of_both_signs

#: On smaller planes SSIM is one number from a handful of pixels: the best of hundreds of channels
#: would be high by chance.
SIDE_MIN_PX = 7
#: Planes filtered at once: a hundred of 224 x 224 pixels are 20 MB.
_CHUNK_PIXELS = 5_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Revealing:
    """The channel that looks most like the input.

    Attributes:
        score: its SSIM, the mean over the pictures; 0 where no plane is large enough.
        stack, channel: where it is; -1 where there is none.
        negative: whether it is its negative that looks like the input.
    """

    score: float = 0.0
    stack: int = -1
    channel: int = -1
    negative: bool = False


def similarity(greys: Sequence[Floats], views: Sequence[Sequence[Planes]]) -> Revealing:
    """The best SSIM between pictures and the channels that were computed from them.

    A channel is scaled to 0..1 for each picture and compared, as is and negative, with the picture
    at the channel's size. Its score is the mean over the pictures.

    Args:
        greys: pictures (HxW, 0 to 1).
        views: for each picture, the stacks of planes that cross the cut.
    """
    best = Revealing()
    for index, stack in enumerate(views[0]):
        if min(stack.shape[1:]) < SIDE_MIN_PX:
            continue
        scores = np.mean(
            [_scores(grey, view[index]) for grey, view in zip(greys, views, strict=True)], axis=0
        )
        channel, sign = divmod(int(scores.argmax()), 2)
        score = float(scores[channel, sign])
        if best.stack < 0 or score > best.score:
            best = Revealing(score=score, stack=index, channel=channel, negative=bool(sign))
    return best


def _scores(grey: Floats, stack: Planes) -> NDArray[np.float32]:
    """Channels x signs; a channel without contrast shows nothing and scores 0."""
    channels, height, width = stack.shape
    picture = resized(grey, height, width)
    scores = np.zeros((channels, 2), dtype=np.float32)
    step = max(1, _CHUNK_PIXELS // (height * width))
    for first in range(0, channels, step):
        seen = stack[first : first + step]
        found = best_of_both_signs(picture, normalised(seen))
        flat = np.ptp(seen, axis=(1, 2)) <= 0
        found[flat] = 0
        scores[first : first + step] = found
    return scores


def normalised(planes: Planes) -> Planes:
    """Planes (...xHxW), each scaled to 0..1; all zero where there is no contrast."""
    low = planes.min(axis=(-2, -1), keepdims=True)
    spread = planes.max(axis=(-2, -1), keepdims=True) - low
    scaled: Planes = (planes - low) / np.where(spread > 0, spread, 1)
    return scaled
