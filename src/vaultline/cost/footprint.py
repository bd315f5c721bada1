"""What a compiled stage will hold, to the byte, before any enclave has loaded it.

The planner predicts from a profile of blocks; this counts the program itself, by the rules of the
enclave's executor and message buffers. A test holds the two to each other.
"""

from __future__ import annotations

from vaultline.core.frame_meta import hop_buffers_bytes
from vaultline.core.frames import FrameLayout
from vaultline.core.program import StageProgram


def footprint(program: StageProgram) -> dict[str, int]:
    """Bytes by kind, as the enclave's ledger holds them once the stage is loaded."""
    settings = program.settings
    return {
        "resident": program.resident_bytes,
        "tile": 0,
        "activation": 0,
        "io": hop_buffers_bytes(
            queue_frames=max(settings.queue_frames, settings.frames_per_pass),
            frames_per_pass=settings.frames_per_pass,
            input_bytes=_message_bytes(program, program.inputs),
            output_bytes=_message_bytes(program, program.outputs),
            connections=settings.connections,
        ),
        "engine": program.engine_bytes,
        "idle": program.workspace_bytes,
    }


def _message_bytes(program: StageProgram, tensors: tuple[int, ...]) -> int:
    return FrameLayout(program.specs(tensors), program.settings.stages).message_bytes
