"""The buffers of a stage: as many bytes as the owner plans for."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from vaultline.core.frame_meta import hop_buffers_bytes
from vaultline.core.tensors import TensorSpec
from vaultline.enclave.ledger import BudgetExceededError, Ledger
from vaultline.enclave.pipeline import StageBuffers
from vaultline.testing.vaults import small_stage

#: Queue, frames a pass, floats of the frame: messages shorter and longer than one record.
SHAPES = {
    "one small frame": (1, 1, 3),
    "a queue and a pass": (8, 4, 1000),
    "frames of several records": (5, 2, 700_000),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_stage_takes_what_the_owner_plans_for_its_hops(shape: str) -> None:
    queue, frames, floats = SHAPES[shape]
    program = small_stage(()).program
    program = replace(
        program,
        settings=replace(program.settings, queue_frames=queue, frames_per_pass=frames),
        tensors=(TensorSpec(name="frame", dtype="float32", shape=(1, floats)),),
    )
    ledger = Ledger(1 << 30)
    buffers = StageBuffers(program, ledger)
    planned = hop_buffers_bytes(
        queue_frames=queue,
        frames_per_pass=frames,
        input_bytes=buffers.input_layout.message_bytes,
        output_bytes=buffers.output_layout.message_bytes,
    )
    assert ledger.held["io"] == planned == (1 << 30) - ledger.free_bytes
    with pytest.raises(BudgetExceededError):
        StageBuffers(program, Ledger(planned - 1))
