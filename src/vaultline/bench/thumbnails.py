"""Small PNG pictures for reports."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: Longest side of a picture in a report.
SIDE_PX = 112
#: Enough for a thumbnail, and a third of the bytes of full colour.
_COLOURS = 128


def thumbnail(picture: NDArray[np.floating]) -> bytes:
    """The PNG of a picture (HxW grey or HxWx3, 0 to 1) with its longest side ``SIDE_PX``.

    Larger pictures are averaged; smaller ones keep their pixels visible.
    """
    pixels = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    image = Image.fromarray(pixels)
    ratio = SIDE_PX / max(image.size)
    size = tuple(max(1, round(side * ratio)) for side in image.size)
    method = Image.Resampling.BOX if ratio < 1 else Image.Resampling.NEAREST
    small = image.resize((size[0], size[1]), method)
    if small.mode == "RGB":
        small = small.quantize(_COLOURS, method=Image.Quantize.MEDIANCUT)
    buffer = BytesIO()
    small.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
