"""Equations of memory: what a segment needs on its device, as the enclave's ledger counts it.

    resident = weights + workspace + engine + io
    streamed = workspace + engine + io, and what is left over holds weights that stay
    engine   = session * nodes + f * stacked
    io       = q * in + (f + extra) * out + sources * record(in) + targets * record(out)

with f frames a pass, q buffers in the input queue, and a record buffer for each neighbour: the
replicas of the stage before are the sources, those of the stage after the targets. ``workspace`` is
the largest step (``cost.steps``), and what is lost between its buffers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vaultline.core.frames import OUTPUT_FRAMES_EXTRA
from vaultline.core.limits import RECORD_FRAGMENT_BYTES, RECORD_SLACK_BYTES

Table = NDArray[np.float64]
#: What the engine takes for a node, and for it in every frame of a pass; for a step's session, of
#: which equal steps share one; and for its own buffers. ``graph.takings`` counts a compiled stage.
NODE_BYTES, BOUND_BYTES = 9 << 10, 9 << 9
SESSION_BYTES, SESSIONS_MAX, BUFFER_BYTES = 28 << 10, 24, 72 << 10
#: Buffers of different sizes may leave gaps: at most one part in so many of a workspace, over the
#: segments of the zoo's models.
_GAPS = 16


def workspace_bytes(peak_bytes: Table) -> Table:
    """The workspace for a largest step."""
    return peak_bytes + peak_bytes / _GAPS


def record_bytes(message_bytes: Table) -> Table:
    """The record buffer of one neighbour whose messages have this size."""
    need: Table = np.minimum(message_bytes, RECORD_FRAGMENT_BYTES) + RECORD_SLACK_BYTES
    return need


def io_bytes(
    *,
    in_bytes: Table,
    out_bytes: Table,
    frames: int,
    queue_frames: int,
    sources: int = 1,
    targets: int = 1,
) -> Table:
    """Message and record buffers; ``in_bytes`` and ``out_bytes`` are whole messages."""
    records = sources * record_bytes(in_bytes) + targets * record_bytes(out_bytes)
    messages: Table = queue_frames * in_bytes + (frames + OUTPUT_FRAMES_EXTRA) * out_bytes
    return messages + records


def engine_bytes(*, nodes: Table, stacked_bytes: Table, frames: int) -> Table:
    """What the engine takes for itself: sessions, and tensors inside of steps that stack frames."""
    own = (NODE_BYTES + BOUND_BYTES * frames) * nodes
    sessions = SESSION_BYTES * np.minimum(nodes, SESSIONS_MAX) + BUFFER_BYTES
    need: Table = own + sessions + (frames * stacked_bytes if frames > 1 else 0.0)
    return need


def streamed_bytes(weight_bytes: Table, spare_bytes: Table) -> Table:
    """Weights that are decrypted on every pass: those for which there is no room."""
    need: Table = np.clip(weight_bytes - spare_bytes, 0.0, weight_bytes)
    return need
