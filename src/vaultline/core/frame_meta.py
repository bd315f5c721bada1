"""What the owner writes into a frame's message, and reads from that of its result."""

from __future__ import annotations

from dataclasses import dataclass

from vaultline.core.frames import HEAD, STAGE, FrameLayout, StageTimes


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
