"""Seeded input tensors: the same frames for every alternative that is compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vaultline.core.tensors import TensorSpec

Array = npt.NDArray[Any]
_FLOATS = ("float32", "float64", "float16")


def noise(spec: TensorSpec, rng: np.random.Generator) -> Array:
    """Uniform in [0, 1) for floats, zeros for the rest (indices, masks)."""
    if spec.dtype in _FLOATS:
        return rng.random(spec.shape).astype(spec.dtype)
    return np.zeros(spec.shape, spec.dtype)


def frames_of(specs: Sequence[TensorSpec], count: int, seed: int = 0) -> list[list[Array]]:
    """``count`` frames of tensors for these inputs."""
    rng = np.random.default_rng(seed)
    return [[noise(spec, rng) for spec in specs] for _ in range(count)]
