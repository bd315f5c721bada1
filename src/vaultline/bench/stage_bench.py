"""A compiled stage in this process, ready to be timed: through the executor that enclaves run."""

from __future__ import annotations

import time
from dataclasses import dataclass

from vaultline.core.frames import FrameLayout
from vaultline.core.limits import MIB
from vaultline.core.program import StageSettings
from vaultline.core.tensors import TensorSpec
from vaultline.enclave.executor import Executor, FrameBuffer
from vaultline.enclave.ledger import Ledger
from vaultline.graph.compile import CompiledStage, compile_segment
from vaultline.graph.structure import Model

#: More than any block needs: profiling is not what the budget protects from.
_BUDGET_BYTES = 1 << 40
#: Frames of a pass in which blocks with stackable products are timed besides single frames.
PASS_FRAMES = 4


@dataclass(slots=True)
class InMemoryWeights:
    """Weights of a compiled stage, as the executor reads them, without a vault."""

    stage: CompiledStage

    def read_weight_into(self, index: int, buffer: memoryview) -> None:
        """Copy a weight."""
        buffer[:] = self.stage.weights[index]


class StageBench:
    """A compiled stage in this process, with buffers for one pass, to be timed."""

    def __init__(self, stage: CompiledStage) -> None:
        program = stage.program
        ledger = Ledger(_BUDGET_BYTES)
        self.program = program
        self.executor = Executor(program, InMemoryWeights(stage), ledger)
        self.inputs = self._buffers(program.specs(program.inputs), ledger)
        self.outputs = self._buffers(program.specs(program.outputs), ledger)

    def _buffers(self, specs: tuple[TensorSpec, ...], ledger: Ledger) -> list[FrameBuffer]:
        layout = FrameLayout(specs, self.program.settings.stages)
        return [
            FrameBuffer(layout, ledger.take("io", layout.message_bytes, "a frame"))
            for _ in range(self.program.settings.frames_per_pass)
        ]

    def pass_s(self, frames: int) -> float:
        """Seconds of one pass."""
        before_s = time.perf_counter()
        for _ in self.executor.run_pass(self.inputs[:frames], self.outputs[:frames]):
            pass
        return time.perf_counter() - before_s


def segment_bench(model: Model, first: int, last: int) -> StageBench:
    """A segment compiled as profiles time it."""
    return StageBench(
        compile_segment(model, first, last, settings=bench_settings(), step_bytes=8 * MIB)
    )


def bench_settings(frames: int = PASS_FRAMES) -> StageSettings:
    """Settings of a stage that is only timed: all resident, one thread."""
    return StageSettings(
        stage=0,
        stages=1,
        threads=1,
        budget_bytes=_BUDGET_BYTES,
        mode="resident",
        frames_per_pass=frames,
        queue_frames=frames,
    )
