"""Equations of memory: what a segment needs on its device, as the enclave's ledger counts it.

    resident = weights  + f * kept + scratch + io
    streamed = step + f * kept + scratch + io
    io       = q * in + (f + extra) * out + sources * record(in) + targets * record(out)

with f frames a pass, q buffers in the input queue, and a record buffer for each neighbour: the
replicas of the stage before are the sources, those of the stage after the targets. ``kept`` are
the tensors of a frame that wait between steps: a pass runs step by step over its frames, so those
of all frames are alive. ``scratch`` is what the engine holds within one call. Streaming has one
buffer, for the step with the most weights.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vaultline.core.frames import OUTPUT_FRAMES_EXTRA
from vaultline.core.limits import RECORD_FRAGMENT_BYTES, RECORD_SLACK_BYTES
from vaultline.core.tensors import ALIGNMENT_BYTES

Table = NDArray[np.float64]
#: What alignment adds to one step's weights: 64 bytes for each of 256.
ALIGNMENT_SLACK_BYTES = 256 * ALIGNMENT_BYTES


def record_bytes(message_bytes: Table) -> Table:
    """The record buffer of one neighbour whose messages have this size."""
    need: Table = np.minimum(message_bytes, RECORD_FRAGMENT_BYTES) + RECORD_SLACK_BYTES
    return need


def working_bytes(
    *,
    kept_bytes: Table,
    scratch_bytes: Table,
    in_bytes: Table,
    out_bytes: Table,
    frames: int,
    queue_frames: int,
    sources: int = 1,
    targets: int = 1,
) -> Table:
    """What a stage needs besides its weights; ``in_bytes`` and ``out_bytes`` are whole messages."""
    records = sources * record_bytes(in_bytes) + targets * record_bytes(out_bytes)
    messages = queue_frames * in_bytes + (frames + OUTPUT_FRAMES_EXTRA) * out_bytes
    need: Table = frames * kept_bytes + scratch_bytes + messages + records
    return need


def resident_bytes(weight_bytes: Table, working: Table) -> Table:
    """Need of a stage that keeps its weights."""
    return weight_bytes + working


def streamed_bytes(step: Table, working: Table) -> Table:
    """Need of a stage that decrypts its weights step by step into one buffer.

    In the buffer each weight starts at a multiple of ``ALIGNMENT_BYTES``; steps of small weights
    have many of them.
    """
    return step + np.minimum(step, ALIGNMENT_SLACK_BYTES) + working


def step_bytes(weight_bytes: Table, largest_weight_bytes: Table, wanted_bytes: int) -> Table:
    """Weights of one step: as wanted, at least the largest that has no tiles, at most all."""
    return np.minimum(np.maximum(largest_weight_bytes, wanted_bytes), weight_bytes)
