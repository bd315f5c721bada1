"""What is known of a tensor before it exists: name, element type, shape, size."""

from __future__ import annotations

from math import prod

from vaultline.core.errors import InputError
from vaultline.core.limits import TENSOR_BYTES_MAX
from vaultline.core.serde import Struct

#: Bytes per element of the types that may cross a cut. ``bfloat16`` travels as raw 16-bit words.
_TYPES_BY_BYTES = {
    1: "bool int8 uint8",
    2: "bfloat16 float16 int16 uint16",
    4: "float32 int32 uint32",
    8: "float64 int64 uint64",
}
ITEM_BYTES = {name: size for size, names in _TYPES_BY_BYTES.items() for name in names.split()}
#: Tensors start at multiples of this in every message and buffer: one cache line, one AVX-512 word.
ALIGNMENT_BYTES = 64


class TensorSpec(Struct, frozen=True):
    """A tensor's name, element type (numpy's name) and full static shape, batch included."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.dtype not in ITEM_BYTES:
            raise InputError(
                f"tensor {self.name!r} has an element type that cannot cross a cut",
                got=self.dtype,
                expected="one of " + ", ".join(ITEM_BYTES),
            )
        if any(side < 0 for side in self.shape) or self.nbytes > TENSOR_BYTES_MAX:
            raise InputError(
                f"tensor {self.name!r} has an impossible shape",
                got=str(self.shape),
                expected=f"non-negative sides and at most {TENSOR_BYTES_MAX} bytes",
            )

    @property
    def nbytes(self) -> int:
        """Size in bytes of the dense tensor."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]


def align(size_bytes: int) -> int:
    """Round a size up to the alignment of tensors."""
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def layout(tensors: tuple[TensorSpec, ...], start: int = 0) -> tuple[tuple[int, ...], int]:
    """Aligned offsets of tensors laid out one after another, and the end of the last one."""
    offsets, end = [], start
    for tensor in tensors:
        end = align(end)
        offsets.append(end)
        end += tensor.nbytes
    return tuple(offsets), end
