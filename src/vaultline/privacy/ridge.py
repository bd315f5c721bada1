"""The default attack: a local ridge decoder, from features around a place to the pixels there.

One linear map serves all places of the grid, so a few dozen pictures give thousands of samples. It
predicts overlapping patches (``patches``) by their cosine components, each with the regularisation
that serves it best on training pictures that were left out: what the features do not tell, mostly
the fine detail of a coarse grid, falls back to the mean by itself. Features are whitened first:
after several layers most of what tells two pictures apart has little variance. Everything is in
closed form and without randomness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vaultline.privacy.patches import Patches, make_patches
from vaultline.privacy.planes import Planes, on_one_grid

Floats = NDArray[np.floating]

#: Relative to the mean variance of the features.
LAMBDAS = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
#: Directions with less than this share of the largest variance are not blown up to the same size.
_WHITENING_FLOOR = 1e-4
#: Directions with less than this share are rounding errors.
_RANK_FLOOR = 1e-12
#: Samples from which the directions of the features are taken: the Gram matrix stays small.
_DIRECTION_SAMPLES = 1024
#: Places whose features are in memory at once when a picture is reconstructed.
_CHUNK_PLACES = 8192
#: Places are spread by the plastic number (M. Roberts, "The unreasonable effectiveness of
#: quasirandom sequences", 2018): even coverage without a random source.
_SPREAD = (0.7548776662466927, 0.5698402909980532)


@dataclass(frozen=True, slots=True, kw_only=True)
class RidgeSettings:
    """How hard to try.

    Attributes:
        reach: places on each side of the centre whose features are used: 1 is 3 x 3.
        features_max: features of a neighbourhood after reduction.
        samples_max: places sampled from all training views.
        components_max: cosine components of a patch, per axis.
    """

    reach: int = 1
    features_max: int = 900
    samples_max: int = 12_000
    components_max: int = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class RidgeDecoder:
    """A fitted attack: call it with the crossing planes of one picture."""

    patches: Patches
    projection: _Projection
    reach: int
    weights: NDArray[np.float32]
    feature_mean: NDArray[np.float32]
    target_mean: NDArray[np.float32]

    def __call__(self, stacks: Sequence[Planes]) -> NDArray[np.float64]:
        """The reconstruction (HxWx3, 0 to 1)."""
        grid = _Grid(on_one_grid(stacks), self.reach)
        places = np.arange(grid.height * grid.width)
        rows = []
        for first in range(0, len(places), _CHUNK_PLACES):
            at = places[first : first + _CHUNK_PLACES]
            features = self.projection(grid.around(at // grid.width, at % grid.width))
            rows.append((features - self.feature_mean) @ self.weights + self.target_mean)
        return self.patches.picture(np.concatenate(rows))


def fit_ridge(
    views: Sequence[Sequence[Planes]],
    pictures: Sequence[Floats],
    owners: Sequence[int],
    settings: RidgeSettings | None = None,
) -> RidgeDecoder:
    """Fit the decoder on what crosses a cut for known pictures.

    Args:
        views: per training view, the stacks of planes.
        pictures: per training view, the pixels (HxWx3, 0 to 1).
        owners: per training view, which picture it is of. Regularisation is chosen on whole
            pictures that were left out, so there must be two at least.
    """
    how = settings or RidgeSettings()
    grids = [_Grid(on_one_grid(view), how.reach) for view in views]
    shape = (grids[0].height, grids[0].width)
    patches = make_patches((pictures[0].shape[0], pictures[0].shape[1]), shape, how.components_max)
    places = [_places(shape, how.samples_max // len(views), turn) for turn in range(len(views))]
    projection = _projection(grids, places, how)
    features = [
        projection(grid.around(*at)).astype(np.float32)
        for grid, at in zip(grids, places, strict=True)
    ]
    targets = [
        patches.components(picture)[at] for picture, at in zip(pictures, places, strict=True)
    ]
    left_out = set(sorted(set(owners))[1::3])
    parts = [
        _Part(
            [f for f, owner in zip(features, owners, strict=True) if (owner in left_out) == side],
            [t for t, owner in zip(targets, owners, strict=True) if (owner in left_out) == side],
        )
        for side in (False, True)
    ]
    feature_mean = _mean([part.x for part in parts])
    target_mean = _mean([part.y for part in parts])
    # What is known without features is the mean colour. A mean pattern of a few pictures is chance.
    target_mean[~patches.is_mean] = 0
    weights = _solve([part.centred(feature_mean, target_mean) for part in parts])
    return RidgeDecoder(
        patches=patches,
        projection=projection,
        reach=how.reach,
        weights=weights,
        feature_mean=feature_mean,
        target_mean=target_mean,
    )


class _Grid:
    """One view's planes on one grid, read at places and around them; edges are repeated."""

    def __init__(self, planes: Planes, reach: int) -> None:
        self._planes = planes
        _, self.height, self.width = planes.shape
        self._reach = reach if self.height * self.width > 1 else 0

    @property
    def neighbours(self) -> int:
        """How many places a neighbourhood has."""
        return (2 * self._reach + 1) ** 2

    def at(self, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> NDArray[np.float32]:
        """Features of the places themselves: places x channels."""
        return self._planes[:, rows, columns].T

    def around(self, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> NDArray[np.float32]:
        """Features of the neighbourhoods: places x neighbours x channels."""
        steps = range(-self._reach, self._reach + 1)
        down = [np.clip(rows + step, 0, self.height - 1) for step in steps]
        right = [np.clip(columns + step, 0, self.width - 1) for step in steps]
        return np.stack([self.at(r, c) for r in down for c in right], axis=1)


def _places(
    shape: tuple[int, int], count: int, turn: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of evenly spread places, others for each view; all if there are few."""
    height, width = shape
    if count >= height * width:
        every = np.arange(height * width)
        return every // width, every % width
    steps = np.arange(max(1, count)) + 1 + turn * max(1, count)
    rows, columns = ((steps * share % 1) for share in _SPREAD)
    return (rows * height).astype(np.intp), (columns * width).astype(np.intp)


class _Projection:
    """Centres channels and turns them to their whitened principal directions, tap by tap."""

    def __init__(self, mean: NDArray[np.float32], basis: NDArray[np.float32]) -> None:
        self._mean, self._basis = mean, basis

    def __call__(self, taps: NDArray[np.float32]) -> NDArray[np.float32]:
        """Places x neighbours x channels to places x features."""
        turned = (taps - self._mean) @ self._basis
        return np.asarray(turned.reshape(len(taps), -1), dtype=np.float32)


def _projection(
    grids: Sequence[_Grid],
    places: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]],
    how: RidgeSettings,
) -> _Projection:
    """Principal directions of the channels, from the smaller of covariance and Gram matrix."""
    every = max(1, sum(len(rows) for rows, _ in places) // _DIRECTION_SAMPLES)
    rows = [
        grid.at(*at)[turn % every :: every]
        for turn, (grid, at) in enumerate(zip(grids, places, strict=True))
    ]
    samples = np.concatenate(rows).astype(np.float64)
    mean = samples.mean(axis=0)
    samples -= mean
    wide = samples.shape[1] > len(samples)
    values, vectors = np.linalg.eigh(samples @ samples.T if wide else samples.T @ samples)
    largest = max(float(values[-1]), 0.0)
    keep = values > _RANK_FLOOR * largest
    keep[: max(0, len(values) - max(1, how.features_max // grids[0].neighbours))] = False
    if not largest or not keep.any():  # nothing varies: one direction that says nothing
        return _Projection(
            mean.astype(np.float32), np.zeros((samples.shape[1], 1), dtype=np.float32)
        )
    values, vectors = values[keep], vectors[:, keep]
    if wide:
        vectors = samples.T @ vectors / np.sqrt(values)
    scale = np.sqrt((values + _WHITENING_FLOOR * largest) / len(samples))
    return _Projection(mean.astype(np.float32), (vectors / scale).astype(np.float32))


class _Part:
    """Samples of some of the training pictures: features and the patches that belong to them."""

    def __init__(
        self, features: Sequence[NDArray[np.float32]], targets: Sequence[NDArray[np.float32]]
    ) -> None:
        self.x, self.y = np.concatenate(features), np.concatenate(targets)

    def centred(self, x: NDArray[np.float32], y: NDArray[np.float32]) -> _Part:
        """The samples without their means."""
        return _Part([self.x - x], [self.y - y])

    @property
    def products(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """X'X and X'Y."""
        return (self.x.T @ self.x).astype(np.float64), (self.x.T @ self.y).astype(np.float64)


def _mean(arrays: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    total = sum(array.sum(axis=0, dtype=np.float64) for array in arrays)
    return np.asarray(total / sum(len(array) for array in arrays), dtype=np.float32)


def _solve(parts: Sequence[_Part]) -> NDArray[np.float32]:
    """Ridge weights; per component, the regularisation that errs least on the second part."""
    (gram, cross), (left_gram, left_cross) = (part.products for part in parts)
    left = parts[1]
    errors = np.stack(
        [
            np.square(left.y - left.x @ _ridge(gram, cross, strength).astype(np.float32)).sum(0)
            for strength in LAMBDAS
        ]
    )
    chosen = errors.argmin(axis=0)
    weights = np.zeros_like(cross)
    for index in np.unique(chosen):
        those = chosen == index
        weights[:, those] = _ridge(
            gram + left_gram, cross[:, those] + left_cross[:, those], LAMBDAS[index]
        )
    return weights.astype(np.float32)


def _ridge(
    gram: NDArray[np.float64], cross: NDArray[np.float64], strength: float
) -> NDArray[np.float64]:
    """(X'X + lambda I)^-1 X'Y, lambda in units of the mean of the diagonal."""
    level = strength * float(np.trace(gram)) / len(gram)
    if not level:
        return np.zeros_like(cross)
    return np.asarray(np.linalg.solve(gram + level * np.eye(len(gram)), cross), dtype=np.float64)
