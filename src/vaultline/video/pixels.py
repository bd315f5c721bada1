"""Pixels to pixels: deterministic conversion and resizing.

libswscale has SIMD paths that differ by a count or two between processors. ``BITEXACT`` and
``ACCURATE_RND`` keep it to one integer arithmetic, so that a frame has the same tensor (and hence
the same result) on every machine.
"""

from __future__ import annotations

from typing import cast

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

#: Bilinear whose kernel widens when it shrinks: an average over the source pixels, no aliasing.
_FLAGS = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
#: For colours also full chroma: without it white comes out as 253 in this arithmetic.
_COLOUR_FLAGS = _FLAGS | Interpolation.FULL_CHR_H_INT
#: Rec. 601 luma weights in thousandths.
_LUMA = (299, 587, 114)


class Scaler:
    """Resizes and converts; keeps libswscale's tables between frames of one size."""

    def __init__(self) -> None:
        self._to_rgb = VideoReformatter()
        self._to_size = VideoReformatter()

    def rgb(self, frame: av.VideoFrame) -> Pixels:
        """A decoded frame as HxWx3 RGB, turned upright if the file says how it was held."""
        converted = self._to_rgb.reformat(
            frame, format="rgb24", interpolation=_COLOUR_FLAGS, threads=1
        )
        image = cast(Pixels, converted.to_ndarray())
        turns = round(frame.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(image, turns)) if turns else image

    def resize(self, image: Pixels, width: int, height: int) -> Pixels:
        """An HxWxC image at another size, channel by channel.

        Each channel travels as a grey picture: scaling RGB as such would go through YUV inside
        libswscale and mix the channels.
        """
        if image.shape[:2] == (height, width):
            return image
        planes = [self._resize_plane(plane, width, height) for plane in np.moveaxis(image, 2, 0)]
        return np.stack(planes, axis=2)

    def _resize_plane(self, plane: Pixels, width: int, height: int) -> Pixels:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(plane), format="gray")
        scaled = self._to_size.reformat(
            frame, width=width, height=height, interpolation=_FLAGS, threads=1
        )
        return cast(Pixels, scaled.to_ndarray())


def luma(image: Pixels) -> Pixels:
    """HxWx3 RGB to HxWx1 grey (Rec. 601), rounded to nearest."""
    weighted = image.astype(np.uint32) @ np.array(_LUMA, dtype=np.uint32)
    return ((weighted + 500) // 1000).astype(np.uint8)[:, :, np.newaxis]
