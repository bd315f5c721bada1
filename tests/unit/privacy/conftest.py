"""Pictures made of shapes on gradients: edges, flat areas and colours, like photographs."""

from __future__ import annotations

import numpy as np
import pytest

from vaultline.privacy import Sample

SIDE = 48


def picture(number: int, side: int = SIDE) -> np.ndarray:
    """Picture ``number`` (side x side x 3, 0 to 1), another for each number."""
    random = np.random.default_rng(number)
    y, x = np.mgrid[:side, :side] / side
    image = np.empty((side, side, 3))
    for channel in range(3):
        a, b, c = random.uniform(-0.5, 0.5, 3)
        image[..., channel] = 0.5 + a * (x - 0.5) + b * (y - 0.5) + 0.1 * c
    for _ in range(8):
        cy, cx, radius = (*random.uniform(0, 1, 2), random.uniform(0.05, 0.3))
        inside = (y - cy) ** 2 + (x - cx) ** 2 < radius**2
        image[inside] = random.uniform(0, 1, 3) + 0.1 * np.sin(40 * x[inside])[:, np.newaxis]
    return np.clip(image, 0, 1)


@pytest.fixture(scope="session")
def pictures() -> list[np.ndarray]:
    return [picture(number) for number in range(9)]


@pytest.fixture(scope="session")
def samples(pictures: list[np.ndarray]) -> list[Sample]:
    """The pictures as they are: what crosses is the picture itself."""
    return [
        Sample(picture=image, stacks=(np.moveaxis(image, 2, 0).astype(np.float32),), owner=number)
        for number, image in enumerate(pictures)
    ]
