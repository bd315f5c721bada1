"""The message that carries one frame over a hop: fixed metadata, then tensors at fixed offsets."""

from __future__ import annotations

import struct
from typing import NamedTuple

from vaultline.core.limits import RECORD_FRAGMENT_BYTES, RECORD_SLACK_BYTES
from vaultline.core.tensors import TensorSpec, align, layout

#: Frame index, source timestamp (seconds) and the owner's clock when it was sent (ns).
HEAD = struct.Struct("!QdQ")
STAGE = struct.Struct("!7Q")

#: Finished frames that may wait for the socket while the next pass computes.
OUTPUT_FRAMES_EXTRA = 2


class StageTimes(NamedTuple):
    """What one stage reports of one frame, nanoseconds of that machine's monotonic clock.

    ``compute_ns`` is this frame's share of its pass: frames that are stacked in the last step
    start and finish together. ``open_ns`` is decryption of the input. ``seal_ns`` and ``send_ns``
    (encryption, and time in the socket) are those of the frame before, since they end after this
    frame was sealed.
    """

    arrived_ns: int = 0
    started_ns: int = 0
    finished_ns: int = 0
    compute_ns: int = 0
    open_ns: int = 0
    seal_ns: int = 0
    send_ns: int = 0


class HopClock(NamedTuple):
    """Nanoseconds that a message took on this side of a hop, and when it was done."""

    crypto_ns: int = 0
    socket_ns: int = 0
    done_ns: int = 0


class FrameLayout:
    """Where everything is in the message of a hop."""

    def __init__(self, specs: tuple[TensorSpec, ...], stages: int) -> None:
        self.specs = specs
        self.stages = stages
        self.meta_bytes = HEAD.size + stages * STAGE.size
        self.offsets, end = layout(specs, align(self.meta_bytes))
        self.message_bytes = align(end)

    def copy_meta(self, source: memoryview, target: memoryview) -> None:
        """Carry head and stage times from one hop's message to the next one's."""
        target[: self.meta_bytes] = source[: self.meta_bytes]

    def write_times(self, message: memoryview, stage: int, times: StageTimes) -> None:
        """Write one stage's times."""
        STAGE.pack_into(message, HEAD.size + stage * STAGE.size, *times)


def record_buffer_bytes(message_bytes: int) -> int:
    """Memory of the record buffer of a hop whose messages have this size."""
    return min(message_bytes, RECORD_FRAGMENT_BYTES) + RECORD_SLACK_BYTES
