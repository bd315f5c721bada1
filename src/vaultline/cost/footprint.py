"""What a compiled stage will hold, to the byte, before any enclave has loaded it.

The planner predicts from a profile of blocks; this counts the program itself, by the rules of the
enclave's executor and message buffers. A test holds the two to each other.
"""

from __future__ import annotations

from vaultline.core.frame_meta import hop_buffers_bytes
from vaultline.core.frames import FrameLayout
from vaultline.core.memory import MemoryPlan, StepMemory
from vaultline.core.paged import PAGE_BYTES
from vaultline.core.program import StageProgram, StageSettings, streamed_bytes
from vaultline.core.tensors import TensorSpec


def footprint(program: StageProgram) -> dict[str, int]:
    """Bytes by kind, as the enclave's ledger holds them once the stage is loaded."""
    settings = program.settings
    io = io_bytes(settings, program.specs(program.inputs), program.specs(program.outputs))
    held = {"resident": program.resident_bytes, "tile": 0, "activation": 0, "io": io}
    held |= {"engine": program.engine_bytes, "idle": program.workspace_bytes}
    if settings.mode == "paged":
        # Its weights and workspace come and go in a page cache of whatever else there is.
        rest = settings.budget_bytes - io - program.engine_bytes
        held |= {"resident": 0, "idle": max(rest, PAGE_BYTES)}
    return held


def memory_of(program: StageProgram) -> MemoryPlan:
    """How a compiled stage uses its protected memory, to the byte."""
    frames, held = program.settings.frames_per_pass, footprint(program)
    return MemoryPlan(
        resident_bytes=held["resident"],
        workspace_bytes=held["idle"],
        engine_bytes=held["engine"],
        io_bytes=held["io"],
        prefetch=program.prefetch,
        steps=tuple(
            StepMemory(
                first=number,
                last=number + 1,
                frames=frames if step.stackable else 1,
                streamed_bytes=streamed_bytes(program, step),
                activation_bytes=step.activation_bytes,
            )
            for number, step in enumerate(program.steps)
        ),
    )


def io_bytes(
    settings: StageSettings, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> int:
    """The message buffers of both hops."""
    before, after = (FrameLayout(specs, settings.stages) for specs in (inputs, outputs))
    return hop_buffers_bytes(
        queue_frames=max(settings.queue_frames, settings.frames_per_pass),
        frames_per_pass=settings.frames_per_pass,
        input_bytes=before.message_bytes,
        output_bytes=after.message_bytes,
        connections=settings.connections,
    )
