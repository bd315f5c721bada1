"""Arrays as callers have them, and the bytes of tensors. bfloat16 stays as 16-bit words."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vaultline.core.errors import InputError
from vaultline.core.tensors import TensorSpec

Array = npt.NDArray[Any]


def dtype_of(name: str) -> str:
    """What numpy calls an element type of a tensor."""
    return "uint16" if name == "bfloat16" else name


def check_array(array: Array, spec: TensorSpec, message: str) -> None:
    """Refuse an array of another shape or type than a tensor's.

    Raises:
        InputError: with this message.
    """
    if array.shape != spec.shape or str(array.dtype) != dtype_of(spec.dtype):
        got, expected = f"{array.dtype} {array.shape}", f"{spec.dtype} {spec.shape}"
        raise InputError(message, got=got, expected=expected)


def write_array(array: Array, target: memoryview) -> None:
    """Write its elements where a tensor of that size is to be."""
    np.frombuffer(target, array.dtype)[:] = array.reshape(-1)


def view_of(data: memoryview, spec: TensorSpec) -> Array:
    """A tensor's bytes as an array, without a copy."""
    return np.frombuffer(data, dtype_of(spec.dtype)).reshape(spec.shape)
