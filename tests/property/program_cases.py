"""Stage programs made by hand, sources of their weights, and a pass from arrays to bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from vaultline.core.control import BufferKind
from vaultline.core.frames import FrameLayout
from vaultline.core.program import StageProgram, Step, StepWeight
from vaultline.core.tensors import TensorSpec
from vaultline.enclave.executor import Executor, FrameBuffer, WeightSource
from vaultline.enclave.ledger import Bytes, Ledger
from vaultline.enclave.simulated_executor import PagedExecutor
from vaultline.testing.programs import Arrangement, Draft, arranged

_ONNX = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "bool": TensorProto.BOOL,
    "int64": TensorProto.INT64,
    "uint8": TensorProto.UINT8,
}
Array = np.ndarray[Any, Any]


def spec(name: str, shape: Sequence[int], dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=tuple(shape))


def graph(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, TensorSpec],
    outputs: dict[str, TensorSpec],
    *,
    stacked: Sequence[str] = (),
) -> bytes:
    """A step's graph; ``stacked`` names have an open first side."""

    def info(name: str, of: TensorSpec) -> onnx.ValueInfoProto:
        shape: list[int | str] = list(of.shape)
        if name in stacked:
            shape[0] = "rows"
        return helper.make_tensor_value_info(name, _ONNX[of.dtype], shape)

    made = helper.make_graph(
        nodes,
        "step",
        [info(*entry) for entry in inputs.items()],
        [info(*entry) for entry in outputs.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(made, opset_imports=opset, ir_version=9).SerializeToString())


@dataclass(slots=True)
class Weights:
    """Counts how often each weight is decrypted."""

    arrays: list[Array]
    reads: list[int] = field(default_factory=list)

    def read_weight_into(self, index: int, buffer: memoryview) -> None:
        self.reads.append(index)
        buffer[:] = self.arrays[index].tobytes()


def program(
    tensors: Sequence[TensorSpec],
    ends: tuple[tuple[int, ...], tuple[int, ...]],
    graphs: Sequence[bytes],
    steps: Sequence[Step],
    weights: Sequence[Array] = (),
    *,
    how: Arrangement = "apart",
    frames: int = 4,
    **options: Any,
) -> StageProgram:
    draft = Draft(
        tensors=tuple(tensors),
        inputs=ends[0],
        outputs=ends[1],
        graphs=tuple(graphs),
        steps=tuple(steps),
        weights=tuple(
            spec(f"w{k}", array.shape, str(array.dtype)) for k, array in enumerate(weights)
        ),
        frames=frames,
        **options,
    )
    return arranged(draft, how)


class WatchedLedger(Ledger):
    """Checks itself after every event: all of the budget is held or free, and nothing negative."""

    events = 0

    def reserve(self, kind: BufferKind, size_bytes: int, what: str) -> None:
        super().reserve(kind, size_bytes, what)
        self.check()

    def lend(self, kind: BufferKind, size_bytes: int) -> None:
        super().lend(kind, size_bytes)
        self.check()

    def give_back(self, kind: BufferKind, size_bytes: int) -> None:
        super().give_back(kind, size_bytes)
        self.check()

    def check(self) -> None:
        assert sum(self.held.values()) + self.free_bytes == self.budget_bytes
        assert min(*self.held.values(), self.free_bytes) >= 0
        assert all(self.held[kind] <= self.peak[kind] <= self.budget_bytes for kind in self.held)
        self.events += 1

    def at_rest(self) -> bool:
        """Nothing is lent."""
        return self.held["tile"] == self.held["activation"] == 0


class Stage:
    """A program in memory with buffers for the frames of a pass."""

    def __init__(
        self,
        made: StageProgram,
        weights: WeightSource | None = None,
        ledger: Ledger | None = None,
        workspace: Bytes | None = None,
    ) -> None:
        self.ledger = ledger or WatchedLedger(made.settings.budget_bytes)
        frames = made.settings.frames_per_pass
        self._before, self._after = (
            [self._buffer(FrameLayout(made.specs(ends), 1)) for _ in range(frames)]
            for ends in (made.inputs, made.outputs)
        )
        source = weights or Weights([])
        self.executor: Executor
        if made.settings.mode == "paged":
            self.executor = PagedExecutor(made, source, self.ledger)
        else:
            self.executor = Executor(made, source, self.ledger, workspace)

    def _buffer(self, layout: FrameLayout) -> FrameBuffer:
        return FrameBuffer(layout, self.ledger.take("io", layout.message_bytes, "a frame"))

    def passing(self, frames: Sequence[Sequence[Array]]) -> Iterator[int]:
        """A pass that goes on as positions are asked for."""
        before, after = self._before[: len(frames)], self._after[: len(frames)]
        for buffer, tensors in zip(before, frames, strict=True):
            for part, tensor in zip(buffer.parts, tensors, strict=True):
                part[:] = np.frombuffer(tensor.tobytes(), np.uint8)
        return self.executor.run_pass(before, after)

    def passed(self, frames: Sequence[Sequence[Array]]) -> list[list[bytes]]:
        """Every frame's outputs as bytes, from one pass."""
        assert list(self.passing(frames)) == list(range(len(frames)))
        return [[part.tobytes() for part in buffer.parts] for buffer in self._after[: len(frames)]]


def run(
    made: StageProgram, frames: Sequence[Sequence[Array]], weights: WeightSource | None = None
) -> list[list[bytes]]:
    """Every frame's outputs as bytes, from the one pass of a stage of its own."""
    stage = Stage(made, weights)
    try:
        return stage.passed(frames)
    finally:
        stage.executor.close()


def chain(
    count: int, *, side: int = 4, frames: int = 3, how: Arrangement = "packed", **options: Any
) -> tuple[StageProgram, list[Array]]:
    """So many products in a row, a step and a streamed weight for each."""
    random = np.random.default_rng(count)
    tensors = [spec(f"t{number}", (1, side)) for number in range(count + 1)]
    weights = [random.standard_normal((side, side)).astype(np.float32) / side for _ in range(count)]
    node = helper.make_node("MatMul", ["a", "w"], ["o"])
    product = graph([node], {"a": tensors[0], "w": spec("w", (side, side))}, {"o": tensors[0]})
    steps = [
        Step(
            graph=0,
            feeds=(("a", number),),
            weights=(StepWeight(input="w", weight=number),),
            fetches=(("o", number + 1),),
        )
        for number in range(count)
    ]
    options = {"mode": "streamed", **options}
    ends = ((0,), (count,))
    return program(tensors, ends, [product], steps, weights, frames=frames, how=how, **options), (
        weights
    )


def random_frames(made: StageProgram, count: int, seed: int = 1) -> list[list[Array]]:
    """Frames for a stage whose inputs are all float32."""
    random = np.random.default_rng(seed)
    return [
        [random.standard_normal(each.shape, np.float32) for each in made.specs(made.inputs)]
        for _ in range(count)
    ]
