"""A picture as overlapping patches on a grid, each as its lowest cosine components.

Per axis this is a pair of matrices: analysis takes a side of the picture to the components of all
patches along it, synthesis blends the patches back under a sine window. A picture's components are
``rows.analysis @ picture @ columns.analysis.T``, and back likewise.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

import numpy as np
from numpy.typing import NDArray

#: What the window keeps at the edges of a patch, so that the picture's border is covered.
_WINDOW_FLOOR = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One side of the picture.

    Attributes:
        places: patches along the side.
        components: of each patch.
        analysis: (places * components) x side.
        synthesis: side x (places * components).
    """

    places: int
    components: int
    analysis: NDArray[np.float64]
    synthesis: NDArray[np.float64]


def make_axis(side: int, places: int, components_max: int) -> Axis:
    """Patches around evenly spread places along a side.

    A patch is twice as long as the distance between places, so that neighbours overlap by half; a
    single pixel where there are as many places as pixels; the whole side for a single place.
    Beyond the border the picture is mirrored.
    """
    stride = _stride(side, places)
    centres = side / 2 + (np.arange(places) - (places - 1) / 2) * stride
    length = side if places == 1 else 1 if stride <= 1 else round(2 * stride)
    while _first(centres[0], length) > 0 or _first(centres[-1], length) + length < side:
        length += 1  # so that the border is covered too
    components = min(length, components_max)
    basis = _cosines(length, components)
    window = np.sin(np.pi * (np.arange(length) + 0.5) / length) + _WINDOW_FLOOR
    analysis = np.zeros((places, components, side))
    synthesis = np.zeros((side, places, components))
    weights = np.zeros(side)
    for place, centre in enumerate(centres):
        first = _first(centre, length)
        for offset in range(length):
            at = first + offset
            inside = at if 0 <= at < side else -at - 1 if at < 0 else 2 * side - 1 - at
            analysis[place, :, inside] += basis[:, offset]
            if inside == at:
                synthesis[at, place] += window[offset] * basis[:, offset]
                weights[at] += window[offset]
    synthesis /= weights[:, np.newaxis, np.newaxis]
    return Axis(
        places=places,
        components=components,
        analysis=analysis.reshape(-1, side),
        synthesis=synthesis.reshape(side, -1),
    )


def _first(centre: float, length: int) -> int:
    """The first pixel of a patch; halves are always rounded up, so that all patches lie alike."""
    return floor(centre - length / 2 + 0.5)


def _stride(side: int, places: int) -> float:
    """How many pixels lie between neighbouring places.

    Convolutions without padding lose the border: 55 places on 224 pixels are 4 pixels apart, not
    4.07, and places that drift against the picture would spoil a decoder that is shared by all.
    """
    exact = side / places
    if exact > 1:
        for whole in (2.0 ** int(np.log2(exact)), float(round(exact))):
            if 0.98 < exact / whole < 1.25:
                return whole
    return exact


def _cosines(length: int, components: int) -> NDArray[np.float64]:
    """The lowest rows of the orthonormal DCT-II."""
    order = np.arange(components)[:, np.newaxis]
    basis = np.cos(np.pi * (np.arange(length) + 0.5) * order / length) * np.sqrt(2 / length)
    basis[0] /= np.sqrt(2)
    scaled: NDArray[np.float64] = basis
    return scaled


@dataclass(frozen=True, slots=True, kw_only=True)
class Patches:
    """Both axes: pictures (HxWx3) to components (rows x columns x n) and back."""

    rows: Axis
    columns: Axis

    @property
    def is_mean(self) -> NDArray[np.bool_]:
        """Which of a patch's components are the means of its colours."""
        each = self.rows.components * self.columns.components
        found: NDArray[np.bool_] = np.arange(3 * each) % each == 0
        return found

    def components(self, picture: NDArray[np.floating]) -> NDArray[np.float32]:
        """All patches of a picture (HxWx3) as places x places x n."""
        planes = np.moveaxis(picture, 2, 0)
        found = self.rows.analysis @ planes @ self.columns.analysis.T
        split = found.reshape(
            3, self.rows.places, self.rows.components, self.columns.places, self.columns.components
        )
        joined = split.transpose(1, 3, 0, 2, 4).astype(np.float32)
        return joined.reshape(self.rows.places, self.columns.places, -1)

    def picture(self, components: NDArray[np.floating]) -> NDArray[np.float64]:
        """The picture (HxWx3), from 0 to 1, of components as ``components`` gives them."""
        split = components.reshape(
            self.rows.places, self.columns.places, 3, self.rows.components, self.columns.components
        )
        planes = split.transpose(2, 0, 3, 1, 4).reshape(
            3, self.rows.analysis.shape[0], self.columns.analysis.shape[0]
        )
        blended = self.rows.synthesis @ planes @ self.columns.synthesis.T
        image: NDArray[np.float64] = np.clip(np.moveaxis(blended, 0, 2), 0, 1)
        return image


def make_patches(picture: tuple[int, int], grid: tuple[int, int], components_max: int) -> Patches:
    """Patches of pictures of (height, width) around the places of a grid of (rows, columns)."""
    return Patches(
        rows=make_axis(picture[0], grid[0], components_max),
        columns=make_axis(picture[1], grid[1], components_max),
    )
