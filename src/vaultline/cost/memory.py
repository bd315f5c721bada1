"""Equations of memory: what a segment needs on its device.

    resident = weights             + f * activations + scratch + q * in + f * out
    streamed = 2 * step            + f * activations + scratch + q * in + f * out

with f frames a pass and q buffers in the input queue. A pass runs step by step over its frames, so
the activations of all of them are alive; the engine's scratch is that of one call. Streaming needs
two step buffers: one is decrypted while the other is in use.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Bytes = TypeVar("Bytes", float, NDArray[np.float64])


def working_bytes(
    *,
    activation_bytes: Bytes,
    scratch_bytes: Bytes,
    in_bytes: Bytes,
    out_bytes: Bytes,
    frames: int,
    queue_frames: int,
) -> Bytes:
    """What a stage needs besides its weights."""
    frame_bytes = activation_bytes + out_bytes
    return frames * frame_bytes + scratch_bytes + queue_frames * in_bytes


def resident_bytes(weight_bytes: Bytes, working: Bytes) -> Bytes:
    """Need of a stage that keeps its weights."""
    return weight_bytes + working


def streamed_bytes(step: Bytes, working: Bytes) -> Bytes:
    """Need of a stage that decrypts its weights step by step."""
    return 2 * step + working


def step_bytes(
    weight_bytes: NDArray[np.float64], largest_weight_bytes: NDArray[np.float64], wanted_bytes: int
) -> NDArray[np.float64]:
    """Weights of one step: as wanted, at least the largest that has no tiles, at most all."""
    return np.minimum(np.maximum(largest_weight_bytes, wanted_bytes), weight_bytes)
