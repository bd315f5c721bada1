"""Frames into messages and results out of them, for every type that numpy has or lacks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vaultline.core.errors import InputError
from vaultline.core.tensors import TensorSpec
from vaultline.owner.frames import FrameCodec, OwnerFrame

SPECS = (
    TensorSpec(name="x", dtype="float32", shape=(1, 3)),
    TensorSpec(name="half", dtype="bfloat16", shape=(2, 2)),
)
TENSORS: list[Any] = [np.array([[1, 2, 3]], np.float32), np.array([[1, 2], [3, 4]], np.uint16)]


def codec() -> FrameCodec:
    """Of a stage that gives out what it takes in."""
    plan: Any = SimpleNamespace(stages=(SimpleNamespace(inputs=SPECS, outputs=SPECS),))
    return FrameCodec(plan)


def test_what_is_written_is_read_and_is_a_copy() -> None:
    made = codec()
    message = memoryview(bytearray(made.sent.message_bytes))
    made.write(message, OwnerFrame(7, 0.5, TENSORS), now_ns=11)
    result = made.read(message, now_ns=12)
    message[:] = bytes(len(message))
    assert (result.index, result.timestamp_s) == (7, 0.5)
    assert (result.sent_ns, result.received_ns) == (11, 12)
    for spec, tensor in zip(SPECS, TENSORS, strict=True):
        np.testing.assert_array_equal(result.outputs[spec.name], tensor)


@pytest.mark.parametrize(
    ("case", "tensors", "text"),
    [
        ("a tensor too few", TENSORS[:1], "wrong number"),
        ("another shape", [TENSORS[0].T, TENSORS[1]], "input 'x'"),
        ("another type", [TENSORS[0], TENSORS[1].astype(np.float16)], "input 'half'"),
    ],
)
def test_a_frame_that_does_not_fit_is_refused(case: str, tensors: list[Any], text: str) -> None:
    made = codec()
    message = memoryview(bytearray(made.sent.message_bytes))
    with pytest.raises(InputError, match=text):
        made.write(message, OwnerFrame(0, 0.0, tensors), now_ns=0)
