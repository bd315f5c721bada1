"""Equations of memory: what a segment needs on its device, as the enclave's ledger counts it.

    resident = weights + workspace + engine + io
    streamed = workspace + engine + io, and what is left over holds weights that stay
    engine   = sum over nodes + largest kernel + f * stacked + threads * thread
               + sum over steps of (step + f * (call + values * value)) + sessions
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
#: What the engine takes for itself, measured over ten networks (``graph.takings``): for a node, a
#: session, a step; for every frame of a pass a step and each of its values; for a thread.
NODE_BYTES, SESSION_BYTES, STEP_BYTES = 9 << 10, 24 << 10, 2 << 10
BOUND_STEP_BYTES, BOUND_VALUE_BYTES, THREAD_BYTES = 3 << 10, 1 << 9, 72 << 10
#: Equal steps share a session; the ten networks of the zoo make do with 17 for up to 160 steps.
SESSIONS_MAX = 24
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


def engine_bytes(*, nodes_bytes: Table, values: Table, steps: Table, frames: int) -> Table:
    """What the engine takes for itself, with one thread.

    Args:
        nodes_bytes: of nodes, kernels and tensors that steps allocate.
        values: that nodes read and write.
    """
    per_step = STEP_BYTES + frames * BOUND_STEP_BYTES
    sessions = np.minimum(steps, SESSIONS_MAX) * SESSION_BYTES
    need: Table = (
        nodes_bytes
        + THREAD_BYTES
        + steps * per_step
        + frames * BOUND_VALUE_BYTES * values
        + sessions
    )
    return need


def more_threads_bytes(threads: int) -> int:
    """What threads beyond the first take."""
    return (threads - 1) * THREAD_BYTES


def streamed_bytes(weight_bytes: Table, spare_bytes: Table) -> Table:
    """Weights that are decrypted on every pass: those for which there is no room."""
    need: Table = np.clip(weight_bytes - spare_bytes, 0.0, weight_bytes)
    return need
