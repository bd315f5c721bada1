"""What a compiled stage will hold, to the byte, before any enclave has loaded it.

The planner predicts from a profile of blocks; this counts the program itself, by the rules of the
enclave's executor and message buffers. A test holds the two to each other.
"""

from __future__ import annotations

from vaultline.core.frame_meta import hop_buffers_bytes
from vaultline.core.frames import FrameLayout
from vaultline.core.program import StageProgram
from vaultline.core.tensors import align


def footprint(program: StageProgram) -> dict[str, int]:
    """Bytes by kind, as the enclave's ledger names them."""
    settings = program.settings
    specs = [weight.spec for weight in program.weights]
    needs = [{index for _, index in step.weights} for step in program.steps]
    resident = tile = 0
    if settings.mode == "resident":
        resident = sum(specs[index].nbytes for index in set().union(*needs))
    else:
        tile = max((sum(align(specs[index].nbytes) for index in need) for need in needs), default=0)
    scratch = max((step.scratch_bytes for step in program.steps), default=0)
    slots = sum(program.tensors[tensor].nbytes for tensor in _slots(program))
    return {
        "resident": resident,
        "tile": tile,
        "activation": scratch + settings.frames_per_pass * slots,
        "io": hop_buffers_bytes(
            queue_frames=max(settings.queue_frames, settings.frames_per_pass),
            frames_per_pass=settings.frames_per_pass,
            input_bytes=_message_bytes(program, program.inputs),
            output_bytes=_message_bytes(program, program.outputs),
            connections=settings.connections,
        ),
    }


def _slots(program: StageProgram) -> set[int]:
    """Tensors with a buffer per frame of a pass: all between steps, and those of the messages
    that a stacked step needs side by side."""
    edge = {*program.inputs, *program.outputs}
    return {
        tensor
        for step in program.steps
        for _, tensor in (*step.feeds, *step.fetches)
        if tensor not in edge or (step.stackable and program.settings.frames_per_pass > 1)
    }


def _message_bytes(program: StageProgram, tensors: tuple[int, ...]) -> int:
    return FrameLayout(program.specs(tensors), program.settings.stages).message_bytes
