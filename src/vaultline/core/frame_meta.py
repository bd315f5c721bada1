"""The owner's side of frames: into a message, out of a result, and what buffers to plan for."""

from __future__ import annotations

from dataclasses import dataclass

from vaultline.core.frames import (
    HEAD,
    OUTPUT_FRAMES_EXTRA,
    STAGE,
    FrameLayout,
    StageTimes,
    record_buffer_bytes,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameMeta:
    """Frame index, source timestamp (seconds) and the owner's clock when it was sent (ns)."""

    index: int
    timestamp_s: float
    sent_ns: int


def write_meta(layout: FrameLayout, message: memoryview, meta: FrameMeta) -> None:
    """Write the head and clear the stage times."""
    HEAD.pack_into(message, 0, meta.index, meta.timestamp_s, meta.sent_ns)
    message[HEAD.size : layout.meta_bytes] = bytes(layout.meta_bytes - HEAD.size)


def read_meta(message: memoryview) -> FrameMeta:
    """Read the head."""
    index, timestamp_s, sent_ns = HEAD.unpack_from(message)
    return FrameMeta(index=index, timestamp_s=timestamp_s, sent_ns=sent_ns)


def read_times(layout: FrameLayout, message: memoryview) -> tuple[StageTimes, ...]:
    """Read every stage's times."""
    return tuple(
        StageTimes(*STAGE.unpack_from(message, HEAD.size + stage * STAGE.size))
        for stage in range(layout.stages)
    )


def tensor_bytes(layout: FrameLayout, message: memoryview, position: int) -> memoryview:
    """The bytes of the hop's tensor at ``position``."""
    start = layout.offsets[position]
    return message[start : start + layout.specs[position].nbytes]


def hop_buffers_bytes(
    *,
    queue_frames: int,
    frames_per_pass: int,
    input_bytes: int,
    output_bytes: int,
    connections: tuple[int, int] = (1, 1),
) -> int:
    """What a stage takes for its message buffers, both hops, each connection's record buffer too.

    ``input_bytes`` and ``output_bytes`` are message sizes (``FrameLayout.message_bytes``),
    ``connections`` those to replicas before and after (``StageSettings.connections``).
    """
    frames_out = frames_per_pass + OUTPUT_FRAMES_EXTRA
    before, after = connections
    records = before * record_buffer_bytes(input_bytes) + after * record_buffer_bytes(output_bytes)
    return queue_frames * input_bytes + frames_out * output_bytes + records
