from __future__ import annotations

import numpy as np
import pytest

from vaultline.privacy.planes import on_one_grid, planes_of, resized, resolution_px

#: Shape of a tensor, aspect ratio of the input -> shapes of its stacks of planes.
SHAPES = {
    "channels first": ((1, 64, 56, 56), 1.0, [(64, 56, 56)]),
    "channels last": ((1, 56, 56, 64), 1.0, [(64, 56, 56)]),
    "channels in groups": ((1, 8, 30, 28, 28), 1.0, [(240, 28, 28)]),
    "a wide input, channels first": ((1, 72, 36, 64), 36 / 64, [(72, 36, 64)]),
    "a wide input, channels last": ((1, 36, 64, 72), 36 / 64, [(72, 36, 64)]),
    "pooled to one place": ((1, 2048, 1, 1), 1.0, [(2048, 1, 1)]),
    "a vector": ((1, 1000), 1.0, [(1000, 1, 1)]),
    "a scalar": ((), 1.0, [(1, 1, 1)]),
    "tokens": ((1, 196, 384), 1.0, [(384, 14, 14)]),
    "tokens and a class token": ((1, 197, 384), 1.0, [(384, 14, 14), (384, 1, 1)]),
    "tokens of a wide input": ((1, 8 * 14, 384), 8 / 14, [(384, 8, 14)]),
    "flattened planes": ((1, 500, 49), 1.0, [(500, 7, 7)]),
    "a sequence that is no grid": ((1, 11, 13), 1.0, [(143, 1, 1)]),
}


@pytest.mark.parametrize("case", SHAPES)
def test_spatial_axes_are_found(case: str) -> None:
    shape, aspect, expected = SHAPES[case]
    stacks = planes_of(np.zeros(shape, dtype=np.float32), aspect)
    assert [stack.shape for stack in stacks] == expected
    assert resolution_px(stacks) == max(max(sides[1:]) for sides in expected)


def test_values_stay_where_they_are() -> None:
    first = np.arange(2 * 3 * 3, dtype=np.float32).reshape(1, 2, 3, 3)
    (planes,) = planes_of(first, 1.0)
    assert np.array_equal(planes, first[0])
    (planes,) = planes_of(np.moveaxis(first, 1, 3), 1.0)
    assert np.array_equal(planes, first[0])
    tokens = first[0].reshape(2, 9).T[np.newaxis]
    (planes,) = planes_of(tokens, 1.0)
    assert np.array_equal(planes, first[0])


def test_a_class_token_is_kept_apart() -> None:
    tokens = np.zeros((1, 10, 2), dtype=np.float32)
    tokens[0, 0] = 7
    planes, token = planes_of(tokens, 1.0)
    assert not planes.any()
    assert token.reshape(-1).tolist() == [7, 7]


def test_nothing_crossing_has_no_resolution() -> None:
    assert resolution_px(()) == 0


def test_coarse_planes_are_repeated_on_the_finest_grid() -> None:
    fine = np.zeros((1, 4, 4), dtype=np.float32)
    coarse = np.array([[[1, 2], [3, 4]]], dtype=np.float32)
    joined = on_one_grid([coarse, fine])
    assert joined.shape == (2, 4, 4)
    assert joined[0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]


def test_a_resized_picture_keeps_its_mean() -> None:
    picture = np.random.default_rng(0).uniform(0, 1, (9, 12))
    for height, width in ((3, 4), (5, 7), (9, 12), (20, 30)):
        assert resized(picture, height, width).mean() == pytest.approx(picture.mean(), abs=1e-6)
    assert resized(picture, 9, 12) == pytest.approx(picture, abs=1e-6)


def test_what_is_not_finite_becomes_finite() -> None:
    (planes,) = planes_of(np.array([[np.nan, np.inf, -np.inf]], dtype=np.float32), 1.0)
    assert np.isfinite(planes).all()
