"""Runs a stage program on a pass of frames: weights in the ledger's buffers, engine stateless."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort

from vaultline.core.errors import MachineError
from vaultline.core.frames import FrameLayout
from vaultline.core.program import StageProgram, Step
from vaultline.core.tensors import TensorSpec, align
from vaultline.enclave.ledger import Bytes, Ledger

#: ONNX's element types in the order of their numbers (onnx.proto, TensorProto.DataType), from 1.
_ONNX_TYPES = (
    "float32 uint8 int8 uint16 int16 int32 int64 string bool float16 float64 uint32 uint64 "
    "complex64 complex128 bfloat16"
)
_ELEMENT_TYPE = {name: number for number, name in enumerate(_ONNX_TYPES.split(), start=1)}
_NUMPY_TYPE = {"bfloat16": "uint16"}


class ProgramRefusedError(MachineError):
    """The engine here is not the one that the program was compiled for."""


class WeightSource(Protocol):
    """Where weights come from: the stage's section of the vault."""

    def read_weight_into(self, index: int, buffer: memoryview) -> None:
        """Decrypt weight ``index`` into a buffer of exactly its size."""


def check_engine(program: StageProgram, isa: str) -> None:
    """Refuse a program that was compiled for another engine or instruction set.

    Raises:
        ProgramRefusedError: with what was found and expected.
    """
    if program.isa == "portable":
        return
    found, expected = (ort.__version__, isa), (program.engine_version, program.isa)
    if found != expected:
        raise ProgramRefusedError(
            "the stage was compiled for another machine",
            got=f"onnxruntime {found[0]} on {found[1]}",
            expected=f"onnxruntime {expected[0]} on {expected[1]}",
            remedy="plan again for this device, or set `portable` for it in the cluster file",
        )


def _value(data: Bytes, spec: TensorSpec, rows: int | None = None) -> ort.OrtValue:
    """The engine's view of the same bytes, nothing copied; ``rows`` replaces the first side."""
    shape = spec.shape if rows is None else (rows, *spec.shape[1:])
    array = data.view(np.dtype(_NUMPY_TYPE.get(spec.dtype, spec.dtype))).reshape(shape)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _ELEMENT_TYPE[spec.dtype])


class FrameBuffer:
    """One frame's message of one hop, with the engine's view of each tensor in it."""

    def __init__(self, layout: FrameLayout, data: Bytes) -> None:
        self.layout = layout
        self.message = data.data
        places = zip(layout.offsets, layout.specs, strict=True)
        self.parts = tuple(data[start : start + spec.nbytes] for start, spec in places)
        self.values = tuple(map(_value, self.parts, layout.specs))


@dataclass(slots=True)
class _LoadedStep:
    """A step with its session's binding; weights are bound once, frames on every run."""

    step: Step
    session: ort.InferenceSession
    binding: Any
    weights: tuple[tuple[int, Bytes], ...]


class Executor:
    """A stage in memory.

    What it holds: resident weights, or one buffer for the largest step's weights; a slot per frame
    of a pass for every tensor between steps; and, reserved, the engine's internal tensors.
    """

    def __init__(self, program: StageProgram, weights: WeightSource, ledger: Ledger) -> None:
        settings = program.settings
        self._program = program
        self._source = weights
        self._ledger = ledger
        self._frames = settings.frames_per_pass
        self._streamed = settings.mode == "streamed"
        #: Tensors that live in messages, and their positions there.
        self._inputs = {tensor: position for position, tensor in enumerate(program.inputs)}
        self._outputs = {tensor: position for position, tensor in enumerate(program.outputs)}
        scratch_bytes = max((step.scratch_bytes for step in program.steps), default=0)
        ledger.reserve("activation", scratch_bytes, "the engine's internal tensors")
        self._slots = self._take_slots()
        self._slot_values: dict[tuple[int, int, int], ort.OrtValue] = {}
        buffers = self._take_weights()
        # One arena a session: for the few of a resident stage it saves page faults, for the
        # many small ones of a streamed stage it would hold memory that the next one needs.
        self._sessions = [
            _session(graph, settings.threads, arena=not self._streamed) for graph in program.graphs
        ]
        self._steps = list(map(self._load, program.steps, buffers))
        #: Frames of one pass are all done at the same moment.
        self.ends_stacked = bool(program.steps) and program.steps[-1].stackable
        self._through = tuple(
            (self._inputs[tensor], position)
            for tensor, position in self._outputs.items()
            if tensor in self._inputs
        )

    def run_pass(
        self, inputs: Sequence[FrameBuffer], outputs: Sequence[FrameBuffer]
    ) -> Iterator[int]:
        """Run up to ``frames_per_pass`` frames; yields each frame's position once it is done.

        Raises:
            MachineError: the engine failed.
            RefusedError: a streamed weight does not verify.
        """
        for before, after in zip(inputs, outputs, strict=True):
            for source, target in self._through:
                after.parts[target][:] = before.parts[source]
        done = 0
        for number, loaded in enumerate(self._steps):
            if self._streamed:
                for index, buffer in loaded.weights:
                    self._source.read_weight_into(index, buffer.data)
            if loaded.step.stackable and len(inputs) > 1:
                self._run_stacked(loaded, inputs, outputs)
                continue
            for frame, (before, after) in enumerate(zip(inputs, outputs, strict=True)):
                self._run_one(loaded, frame, before, after)
                if number == len(self._steps) - 1:
                    done = frame + 1
                    yield frame
        yield from range(done, len(inputs))

    def _take_slots(self) -> dict[int, Bytes]:
        """``frames_per_pass`` of every tensor between steps, one after another.

        Stage inputs and outputs live in their messages; they get slots only where a stacked step
        needs the frames side by side.
        """
        slots: dict[int, Bytes] = {}
        for step in self._program.steps:
            stacked = step.stackable and self._frames > 1
            for _, tensor in (*step.feeds, *step.fetches):
                inner = tensor not in self._inputs and tensor not in self._outputs
                if tensor not in slots and (inner or stacked):
                    spec = self._program.tensors[tensor]
                    size_bytes = spec.nbytes * self._frames
                    slots[tensor] = self._ledger.take(
                        "activation", size_bytes, "frames between steps"
                    )
        return slots

    def _take_weights(self) -> list[dict[int, Bytes]]:
        """For each step, the buffer of each of its weights; resident ones are read here, once."""
        specs = [weight.spec for weight in self._program.weights]
        needs = [sorted({index for _, index in step.weights}) for step in self._program.steps]
        if not self._streamed:
            resident: dict[int, Bytes] = {}
            for index in sorted({index for need in needs for index in need}):
                buffer = self._ledger.take("resident", specs[index].nbytes, "the weights")
                self._source.read_weight_into(index, buffer.data)
                resident[index] = buffer
            return [resident] * len(needs)
        largest = max((sum(align(specs[i].nbytes) for i in need) for need in needs), default=0)
        tile = self._ledger.take("tile", largest, "the largest step's weights")
        placed = []
        for need in needs:
            offset, buffers = 0, {}
            for index in need:
                buffers[index] = tile[offset : offset + specs[index].nbytes]
                offset += align(specs[index].nbytes)
            placed.append(buffers)
        return placed

    def _load(self, step: Step, mine: dict[int, Bytes]) -> _LoadedStep:
        session = self._sessions[step.graph]
        binding = session.io_binding()
        for name, index in step.weights:
            value = _value(mine[index], self._program.weights[index].spec)
            binding.bind_ortvalue_input(name, value)
        used = sorted({index for _, index in step.weights})
        weights = tuple((index, mine[index]) for index in used)
        return _LoadedStep(step=step, session=session, binding=binding, weights=weights)

    def _slot(self, tensor: int, first: int, rows: int) -> ort.OrtValue:
        key = (tensor, first, rows)
        if key not in self._slot_values:
            spec = self._program.tensors[tensor]
            part = self._slots[tensor][first * spec.nbytes : (first + rows) * spec.nbytes]
            self._slot_values[key] = _value(part, spec, rows if rows > 1 else None)
        return self._slot_values[key]

    def _run_one(
        self, loaded: _LoadedStep, frame: int, before: FrameBuffer, after: FrameBuffer
    ) -> None:
        for name, tensor in loaded.step.feeds:
            loaded.binding.bind_ortvalue_input(name, self._find(tensor, frame, before, after))
        for name, tensor in loaded.step.fetches:
            loaded.binding.bind_ortvalue_output(name, self._find(tensor, frame, before, after))
        _run(loaded)

    def _find(
        self, tensor: int, frame: int, before: FrameBuffer, after: FrameBuffer
    ) -> ort.OrtValue:
        if tensor in self._inputs:
            return before.values[self._inputs[tensor]]
        if tensor in self._outputs:
            return after.values[self._outputs[tensor]]
        return self._slot(tensor, frame, 1)

    def _run_stacked(
        self, loaded: _LoadedStep, inputs: Sequence[FrameBuffer], outputs: Sequence[FrameBuffer]
    ) -> None:
        """All frames in one call: the weights are read from memory once for all of them."""
        rows = len(inputs)
        for name, tensor in loaded.step.feeds:
            for part, slot in self._in_messages(tensor, inputs, outputs):
                slot[:] = part
            loaded.binding.bind_ortvalue_input(name, self._slot(tensor, 0, rows))
        for name, tensor in loaded.step.fetches:
            loaded.binding.bind_ortvalue_output(name, self._slot(tensor, 0, rows))
        _run(loaded)
        for _, tensor in loaded.step.fetches:
            for part, slot in self._in_messages(tensor, inputs, outputs):
                part[:] = slot

    def _in_messages(
        self, tensor: int, inputs: Sequence[FrameBuffer], outputs: Sequence[FrameBuffer]
    ) -> list[tuple[Bytes, Bytes]]:
        """For a tensor that lives in messages: its part of each, and the slot beside it."""
        if tensor in self._inputs:
            parts = [frame.parts[self._inputs[tensor]] for frame in inputs]
        elif tensor in self._outputs:
            parts = [frame.parts[self._outputs[tensor]] for frame in outputs]
        else:
            return []
        slots = self._slots[tensor][: len(parts) * len(parts[0])].reshape(len(parts), -1)
        return list(zip(parts, slots, strict=True))


def _session(graph: bytes, threads: int, *, arena: bool) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = arena
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        # Without fallback: it would print to standard output, which is the line to the host.
        return ort.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as error:
        raise MachineError("the engine refuses a step of the stage", got=str(error)) from error


def _run(loaded: _LoadedStep) -> None:
    try:
        loaded.session.run_with_iobinding(loaded.binding)
    except Exception as error:
        raise MachineError("the engine failed on a frame", got=str(error)) from error
