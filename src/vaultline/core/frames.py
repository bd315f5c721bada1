"""The message that carries one frame over a hop: fixed metadata, then tensors at fixed offsets."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vaultline.core.limits import RECORD_FRAGMENT_BYTES, RECORD_SLACK_BYTES
from vaultline.core.tensors import TensorSpec, align, layout

_HEAD = struct.Struct("!QdQ")
_STAGE = struct.Struct("!6Q")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """What one stage reports of one frame, nanoseconds of that machine's monotonic clock.

    ``open_ns`` is decryption of the input. ``seal_ns`` and ``send_ns`` (encryption, and time in
    the socket) are those of the frame before, since they end after this frame was sealed.
    """

    arrived_ns: int = 0
    started_ns: int = 0
    finished_ns: int = 0
    open_ns: int = 0
    seal_ns: int = 0
    send_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameMeta:
    """Frame index, source timestamp (seconds) and the owner's clock when it was sent (ns)."""

    index: int
    timestamp_s: float
    sent_ns: int


class FrameLayout:
    """Where everything is in the message of a hop."""

    def __init__(self, specs: tuple[TensorSpec, ...], stages: int) -> None:
        self.specs = specs
        self.stages = stages
        meta_bytes = align(_HEAD.size + stages * _STAGE.size)
        self.offsets, end = layout(specs, meta_bytes)
        self.message_bytes = align(end)

    def write_meta(self, message: memoryview, meta: FrameMeta) -> None:
        """Write the head and clear the stage times."""
        _HEAD.pack_into(message, 0, meta.index, meta.timestamp_s, meta.sent_ns)
        size = self.stages * _STAGE.size
        message[_HEAD.size : _HEAD.size + size] = bytes(size)

    def read_meta(self, message: memoryview) -> FrameMeta:
        """Read the head."""
        index, timestamp_s, sent_ns = _HEAD.unpack_from(message)
        return FrameMeta(index=index, timestamp_s=timestamp_s, sent_ns=sent_ns)

    def copy_meta(self, source: memoryview, target: memoryview) -> None:
        """Carry head and stage times from one hop's message to the next one's."""
        size = _HEAD.size + self.stages * _STAGE.size
        target[:size] = source[:size]

    def write_times(self, message: memoryview, stage: int, times: StageTimes) -> None:
        """Write one stage's times."""
        _STAGE.pack_into(
            message,
            _HEAD.size + stage * _STAGE.size,
            times.arrived_ns,
            times.started_ns,
            times.finished_ns,
            times.open_ns,
            times.seal_ns,
            times.send_ns,
        )

    def read_times(self, message: memoryview) -> tuple[StageTimes, ...]:
        """Read every stage's times."""
        rows = []
        for stage in range(self.stages):
            values = _STAGE.unpack_from(message, _HEAD.size + stage * _STAGE.size)
            names = StageTimes.__slots__
            rows.append(StageTimes(**dict(zip(names, values, strict=True))))
        return tuple(rows)

    def tensor(self, message: memoryview, position: int) -> memoryview:
        """The bytes of the hop's tensor at ``position``."""
        start = self.offsets[position]
        return message[start : start + self.specs[position].nbytes]


#: Finished frames that may wait for the socket while the next pass computes.
OUTPUT_FRAMES_EXTRA = 2


def hop_buffers_bytes(
    *, queue_frames: int, frames_per_pass: int, input_bytes: int, output_bytes: int
) -> int:
    """Memory of a stage's message buffers, both hops, each with its record buffer.

    ``input_bytes`` and ``output_bytes`` are message sizes (``FrameLayout.message_bytes``).
    """
    record_bytes = sum(
        min(size, RECORD_FRAGMENT_BYTES) + RECORD_SLACK_BYTES
        for size in (input_bytes, output_bytes)
    )
    frames_out = frames_per_pass + OUTPUT_FRAMES_EXTRA
    return queue_frames * input_bytes + frames_out * output_bytes + record_bytes
