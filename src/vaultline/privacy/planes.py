"""Crossing tensors as stacks of planes: which axes are spatial, and what size they have."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt, log, prod

import numpy as np
from numpy.typing import NDArray

Planes = NDArray[np.float32]

#: Serdab-style rule of thumb: nothing is recognised in planes of at most this many pixels a side.
RESOLUTION_RULE_PX = 20


def planes_of(array: NDArray[np.generic], height_over_width: float) -> tuple[Planes, ...]:
    """A tensor as stacks of planes (CxHxW).

    Four axes or more end in channels, height, width, or in height, width, channels, whichever has
    the shape of the input, and what comes before is more channels; three are tokens of a grid (a
    class token apart), on either axis. All else is one column of 1 x 1 planes.

    Args:
        height_over_width: the input's aspect ratio.
    """
    values = np.asarray(array, dtype=np.float32)
    if not np.isfinite(values).all():
        values = np.nan_to_num(values)
    shape = values.shape
    if len(shape) >= 4:
        last = _misfit(shape[-3:-1], height_over_width) < _misfit(shape[-2:], height_over_width)
        planes = np.moveaxis(values, -1, -3) if last else values
        return (planes.reshape(-1, *planes.shape[-2:]),)
    if len(shape) == 3 and shape[0] == 1:
        for tokens in (values[0].T, values[0]):
            found = _grid(tokens.shape[1], height_over_width)
            if found:
                extra = tokens.shape[1] - prod(found)
                whole = tokens[:, extra:].reshape(-1, *found)
                return (whole, tokens[:, :1, np.newaxis])[: 1 + extra]
    return (values.reshape(-1, 1, 1),)


def _misfit(sides: tuple[int, ...], height_over_width: float) -> float:
    if min(sides) < 1:
        return float("inf")
    return abs(log(sides[0] / sides[1] / height_over_width))


def _grid(tokens: int, height_over_width: float) -> tuple[int, int] | None:
    """The grid of the input's aspect ratio that so many tokens, or all but one of them, fill."""
    for count in (tokens, tokens - 1):
        height = isqrt(round(count * height_over_width)) if count > 3 else 0
        for rows in (height, height + 1):
            if rows > 1 and count % rows == 0:
                columns = count // rows
                if columns > 1 and abs(log(rows / columns / height_over_width)) < 0.1:
                    return rows, columns
    return None


def resolution_px(stacks: Sequence[Planes]) -> int:
    """The largest spatial side of any plane; 0 if there is none."""
    return max((max(stack.shape[1:]) for stack in stacks), default=0)


def on_one_grid(stacks: Sequence[Planes]) -> Planes:
    """All channels on the finest grid; coarser planes are repeated, not smoothed."""
    if not stacks:
        return np.zeros((1, 1, 1), dtype=np.float32)
    height, width = max((stack.shape[1:] for stack in stacks), key=prod)
    if len(stacks) == 1:
        return stacks[0]
    return np.concatenate([_repeated(stack, height, width) for stack in stacks])


def _repeated(stack: Planes, height: int, width: int) -> Planes:
    rows = np.arange(height) * stack.shape[1] // height
    columns = np.arange(width) * stack.shape[2] // width
    return stack[:, rows][:, :, columns]


def resized(picture: NDArray[np.floating], height: int, width: int) -> NDArray[np.float32]:
    """A grey picture (HxW) at another size, by averaging over the area that each pixel covers."""
    rows, columns = _areas(picture.shape[0], height), _areas(picture.shape[1], width)
    result: NDArray[np.float32] = (rows @ picture @ columns.T).astype(np.float32)
    return result


def _areas(old: int, new: int) -> NDArray[np.float64]:
    """Row i: how much each old pixel contributes to new pixel i."""
    edges = np.arange(new + 1) * (old / new)
    begin, end = edges[:-1, np.newaxis], edges[1:, np.newaxis]
    pixels = np.arange(old)
    shared = np.clip(np.minimum(end, pixels + 1) - np.maximum(begin, pixels), 0, None)
    areas: NDArray[np.float64] = shared / (old / new)
    return areas
