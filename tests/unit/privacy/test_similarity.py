from __future__ import annotations

import numpy as np
import pytest

from vaultline.privacy import luma, similarity
from vaultline.privacy.similarity import normalised


def greys(pictures: list[np.ndarray]) -> list[np.ndarray]:
    """Grey pictures that span 0 to 1, so that scaling a channel does not change it."""
    return [normalised(luma(image)) for image in pictures[:3]]


def with_noise(planes: list[np.ndarray]) -> list[tuple[np.ndarray, ...]]:
    """Each plane as channel 2 of the second stack, everything else noise."""
    random = np.random.default_rng(0)
    views = []
    for plane in planes:
        stacks = random.uniform(0, 1, (2, 4, *plane.shape)).astype(np.float32)
        stacks[1, 2] = plane
        views.append((stacks[0], stacks[1]))
    return views


def test_a_channel_that_is_the_picture_is_found(pictures: list[np.ndarray]) -> None:
    images = greys(pictures)
    found = similarity(images, with_noise([7 * grey - 3 for grey in images]))
    assert found.score == pytest.approx(1, abs=1e-4)
    assert (found.stack, found.channel, found.negative) == (1, 2, False)


def test_a_channel_that_is_the_negative_is_found(pictures: list[np.ndarray]) -> None:
    images = greys(pictures)
    found = similarity(images, with_noise([5 - grey for grey in images]))
    assert found.score == pytest.approx(1, abs=1e-4)
    assert (found.stack, found.channel, found.negative) == (1, 2, True)


def test_a_smaller_channel_is_compared_at_its_own_size(pictures: list[np.ndarray]) -> None:
    images = greys(pictures)
    small = [grey.reshape(24, 2, 24, 2).mean(axis=(1, 3)) for grey in images]
    found = similarity(images, with_noise(small))
    assert found.score > 0.98
    assert (found.stack, found.channel) == (1, 2)


def test_channels_without_contrast_show_nothing(pictures: list[np.ndarray]) -> None:
    images = greys(pictures)
    found = similarity(images, [(np.full((3, 48, 48), 9, dtype=np.float32),) for _ in images])
    assert found.score == 0


def test_planes_of_a_few_pixels_are_not_judged(pictures: list[np.ndarray]) -> None:
    images = greys(pictures)
    found = similarity(images, [(np.ones((500, 6, 6), dtype=np.float32),) for _ in images])
    assert (found.score, found.stack) == (0, -1)
