"""Runs a stage program on a pass of frames: weights in the ledger's buffers, engine stateless."""

from __future__ import annotations

import ctypes
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort

from vaultline.core.control import BufferKind, StageMetrics
from vaultline.core.errors import LocalProtocolError, MachineError, RefusedError
from vaultline.core.frames import FrameLayout, HopClock
from vaultline.core.program import StageProgram, Step, streamed_bytes
from vaultline.core.tensors import TensorSpec
from vaultline.enclave.ledger import Bytes, Ledger

#: ONNX's element types in the order of their numbers (onnx.proto, TensorProto.DataType), from 1.
_ONNX_TYPES = (
    "float32 uint8 int8 uint16 int16 int32 int64 string bool float16 float64 uint32 uint64 "
    "complex64 complex128 bfloat16"
)
_ELEMENT_TYPE = {name: number for number, name in enumerate(_ONNX_TYPES.split(), start=1)}
_NUMPY_TYPE = {"bfloat16": "uint16"}
#: A model of one operator, Abs from x to y, as ONNX.
_ABS = b64decode("CAg6JgoLCgF4EgF5IgNBYnMSAWdaCQoBeBIECgIIAWIJCgF5EgQKAggBQgQKABAN")


class ProgramRefusedError(MachineError):
    """The engine here is not the one that the program was compiled for."""


class PagedRefusedError(RefusedError):
    """A page cache is simulated by simulated enclaves only."""


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


#: glibc's name in malloc.h.
_M_MMAP_THRESHOLD = -3


def warm_up() -> None:
    """Have the engine read its code and make its tables: 10 MiB that no stage is to account for.

    And have the allocator give back what kernels take for a call, instead of keeping it.
    """
    # Other libraries than glibc don't keep it.
    getattr(ctypes.CDLL(None), "mallopt", max)(_M_MMAP_THRESHOLD, 1 << 18)
    _session(_ABS, 1).run(None, {"x": np.zeros(1, np.float32)})


def _value(data: Bytes, spec: TensorSpec, rows: int | None = None) -> ort.OrtValue:
    """The engine's view of the same bytes, nothing copied; ``rows`` replaces the first side."""
    shape = spec.shape if rows is None else (rows, *spec.shape[1:])
    array = data.view(np.dtype(_NUMPY_TYPE.get(spec.dtype, spec.dtype))).reshape(shape)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _ELEMENT_TYPE[spec.dtype])


class FrameBuffer:
    """One frame's message of one hop, with the engine's view of each tensor in it.

    ``clock``: when it came, and what that took.
    """

    def __init__(self, layout: FrameLayout, data: Bytes) -> None:
        self.layout, self.clock = layout, HopClock()
        self.message = data.data
        places = zip(layout.offsets, layout.specs, strict=True)
        self.parts = tuple(data[start : start + spec.nbytes] for start, spec in places)
        self.values = tuple(map(_value, self.parts, layout.specs))


class _LoadedStep:
    """A step with its session. Everything that is always at the same place is bound once, for each
    frame of a pass; only messages are bound on every run.

    Attributes:
        streamed: the weights to be decrypted before it runs, and where to.
        tile_bytes: what those take.
        inputs, outputs: the names that stand for tensors in messages, with their positions there;
            ``reread`` are outputs of the stage that the step reads.
    """

    def __init__(
        self,
        step: Step,
        session: ort.InferenceSession,
        weights: Sequence[tuple[str, ort.OrtValue]],
        streamed: tuple[tuple[int, Bytes], ...],
        tile_bytes: int,
        program: StageProgram,
    ) -> None:
        self.step, self.streamed, self.tile_bytes = step, streamed, tile_bytes
        self._session = session
        self._weights = weights
        self._bindings: dict[tuple[int, int], Any] = {}
        inputs = {tensor: position for position, tensor in enumerate(program.inputs)}
        outputs = {tensor: position for position, tensor in enumerate(program.outputs)}
        self.inputs = [(name, inputs[t]) for name, t in step.feeds if t in inputs]
        self.reread = [
            (name, outputs[t]) for name, t in step.feeds if t in outputs and t not in inputs
        ]
        self.outputs = [(name, outputs[t]) for name, t in step.fetches if t in outputs]
        edge = inputs.keys() | outputs.keys()
        self._kept_feeds = [(name, t) for name, t in step.feeds if t not in edge]
        self._kept_fetches = [(name, t) for name, t in step.fetches if t not in edge]

    def binding(self, frame: int, rows: int, kept: Callable[[int, int, int], ort.OrtValue]) -> Any:
        """The binding for ``rows`` frames from ``frame`` on; ``kept`` views the workspace."""
        key = (frame, rows)
        if key not in self._bindings:
            binding = self._session.io_binding()
            for name, value in self._weights:
                binding.bind_ortvalue_input(name, value)
            feeds, fetches = self._kept_feeds, self._kept_fetches
            if rows > 1:
                feeds, fetches = list(self.step.feeds), list(self.step.fetches)
            for name, tensor in feeds:
                binding.bind_ortvalue_input(name, kept(tensor, frame, rows))
            for name, tensor in fetches:
                binding.bind_ortvalue_output(name, kept(tensor, frame, rows))
            self._bindings[key] = binding
        return self._bindings[key]

    def run(self, binding: Any) -> None:
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise MachineError("the engine failed on a frame", got=str(error)) from error


class Executor:
    """A stage in memory.

    What it holds: the weights that stay; a workspace, in which the program has a place for every
    tensor and for the streamed weights of each step; and, reserved, what the engine takes.
    """

    def __init__(
        self,
        program: StageProgram,
        weights: WeightSource,
        ledger: Ledger,
        workspace: Bytes | None = None,
    ) -> None:
        """Load a stage: the weights that stay are read here, once.

        Args:
            workspace: shared with other stages of this process, of which one runs at a time; at
                least as large as this program's. By default the stage has its own.

        Raises:
            BudgetExceededError: the ledger has too little.
        """
        self._program, self._source, self._ledger = program, weights, ledger
        ledger.reserve("engine", program.engine_bytes, "the engine's sessions")
        self._resident = self._take("resident", program.resident_bytes, "the weights that stay")
        if workspace is None:
            workspace = self._take("idle", program.workspace_bytes, "the workspace")
        if len(workspace) < program.workspace_bytes:
            raise LocalProtocolError("the shared workspace is too small for the stage")
        self._workspace = workspace
        self._read_residents()
        sessions = [_session(graph, program.settings.threads) for graph in program.graphs]
        self._steps = [self._load(step, sessions[step.graph]) for step in program.steps]
        self._inputs = {tensor: position for position, tensor in enumerate(program.inputs)}
        self._outputs = {tensor: position for position, tensor in enumerate(program.outputs)}
        #: Frames of one pass are all done at the same moment.
        self.ends_stacked = bool(program.steps) and program.steps[-1].stackable
        self._through = tuple(
            (self._inputs[tensor], position)
            for tensor, position in self._outputs.items()
            if tensor in self._inputs
        )
        self._ahead = ThreadPoolExecutor(1, "decrypt") if program.prefetch else None
        self._decrypting: list[Future[None]] = []
        self._tile_bytes = self._streamed_bytes = self._passes = 0
        self._values: dict[tuple[int, int, int], ort.OrtValue] = {}

    @property
    def metrics(self) -> StageMetrics:
        """Memory and work so far."""
        return StageMetrics(
            budget_bytes=self._ledger.budget_bytes,
            held_bytes=self._ledger.held,
            peak_bytes=self._ledger.peak,
            streamed_bytes=self._streamed_bytes,
            passes=self._passes,
        )

    def close(self) -> None:
        """End the thread that decrypts ahead; no pass may follow."""
        if self._ahead is not None:
            self._ahead.shutdown()

    def run_pass(
        self, inputs: Sequence[FrameBuffer], outputs: Sequence[FrameBuffer]
    ) -> Iterator[int]:
        """Run up to ``frames_per_pass`` frames; yields each frame's position once it is done.

        However a pass ends, nothing is being decrypted after it and all that was lent is idle.

        Raises:
            MachineError: the engine failed.
            RefusedError: a streamed weight does not verify.
        """
        for before, after in zip(inputs, outputs, strict=True):
            for source, target in self._through:
                after.parts[target][:] = before.parts[source]
        try:
            yield from self._run_steps(inputs, outputs)
            self._passes += 1
        finally:
            wait(self._decrypting)
            self._decrypting.clear()
            self._ledger.give_back("tile", self._tile_bytes)
            self._tile_bytes = 0

    def _run_steps(
        self, inputs: Sequence[FrameBuffer], outputs: Sequence[FrameBuffer]
    ) -> Iterator[int]:
        done = 0
        for number, loaded in enumerate(self._steps):
            self._await_weights(number)
            with self._ledger.lent("activation", loaded.step.activation_bytes):
                if loaded.step.stackable and len(inputs) > 1:
                    self._run_stacked(loaded, inputs, outputs)
                else:
                    for frame, (before, after) in enumerate(zip(inputs, outputs, strict=True)):
                        self._run_one(loaded, frame, before, after)
                        if number == len(self._steps) - 1:
                            done = frame + 1
                            yield frame
            self._tile_bytes -= loaded.tile_bytes
            self._ledger.give_back("tile", loaded.tile_bytes)
        yield from range(done, len(inputs))

    def _await_weights(self, number: int) -> None:
        """Return when a step's weights are there; those of the next one may be on their way."""
        if not self._decrypting:
            self._begin(number)
        for decrypting in self._decrypting:
            decrypting.result()
        self._decrypting.clear()
        if self._ahead is not None and number + 1 < len(self._steps):
            self._begin(number + 1)

    def _begin(self, number: int) -> None:
        """Decrypt a step's weights, in the background if the program has room for it."""
        loaded = self._steps[number]
        self._ledger.lend("tile", loaded.tile_bytes)
        self._tile_bytes += loaded.tile_bytes
        if self._ahead is None:
            self._decrypt(loaded)
        else:
            self._decrypting.append(self._ahead.submit(self._decrypt, loaded))

    def _decrypt(self, loaded: _LoadedStep) -> None:
        for index, buffer in loaded.streamed:
            self._source.read_weight_into(index, buffer.data)
            self._streamed_bytes += len(buffer)

    def _take(self, kind: BufferKind, size_bytes: int, what: str) -> Bytes:
        return self._ledger.take(kind, size_bytes, what)

    def _read_residents(self) -> None:
        for index, weight in enumerate(self._program.weights):
            if weight.resident_at is not None:
                part = self._resident[weight.resident_at :][: weight.spec.nbytes]
                self._source.read_weight_into(index, part.data)

    def _load(self, step: Step, session: ort.InferenceSession) -> _LoadedStep:
        values, streamed = [], {}
        for each in step.weights:
            weight = self._program.weights[each.weight]
            if weight.resident_at is None:
                buffer = self._workspace[each.offset :][: weight.spec.nbytes]
                streamed[each.weight] = buffer
            else:
                buffer = self._resident[weight.resident_at :][: weight.spec.nbytes]
            values.append((each.input, _value(buffer, weight.spec)))
        tile_bytes = streamed_bytes(self._program, step)
        parts = tuple(streamed.items())
        return _LoadedStep(step, session, values, parts, tile_bytes, self._program)

    def _kept(self, tensor: int, frame: int, rows: int) -> ort.OrtValue:
        """The engine's view of ``rows`` frames of a tensor in the workspace."""
        # Inside a step all frames use the same one.
        key = (tensor, frame if self._program.places[tensor].frames > 1 else 0, rows)
        if key not in self._values:
            part, spec = self._slots(tensor, frame, rows), self._program.tensors[tensor]
            self._values[key] = _value(part, spec, rows if rows > 1 else None)
        return self._values[key]

    def _slots(self, tensor: int, frame: int, rows: int) -> Bytes:
        place, size = self._program.places[tensor], self._program.tensors[tensor].nbytes
        first = place.offset + (frame * size if place.frames > 1 else 0)
        return self._workspace[first : first + rows * size]

    def _run_one(
        self, loaded: _LoadedStep, frame: int, before: FrameBuffer, after: FrameBuffer
    ) -> None:
        binding = loaded.binding(frame, 1, self._kept)
        for name, position in loaded.inputs:
            binding.bind_ortvalue_input(name, before.values[position])
        for name, position in loaded.reread:
            binding.bind_ortvalue_input(name, after.values[position])
        for name, position in loaded.outputs:
            binding.bind_ortvalue_output(name, after.values[position])
        loaded.run(binding)

    def _run_stacked(
        self, loaded: _LoadedStep, inputs: Sequence[FrameBuffer], outputs: Sequence[FrameBuffer]
    ) -> None:
        """All frames in one call: the weights are read from memory once for all of them."""
        rows = len(inputs)
        for _, tensor in loaded.step.feeds:
            for part, slot in self._in_messages(tensor, inputs, outputs):
                slot[:] = part
        loaded.run(loaded.binding(0, rows, self._kept))
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
        slots = self._slots(tensor, 0, len(parts)).reshape(len(parts), -1)
        return list(zip(parts, slots, strict=True))


def _session(graph: bytes, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    # In the order of the graph: the program's places depend on it. (The default order is another.)
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        # Without fallback: it would print to standard output, which is the line to the host.
        return ort.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as error:
        raise MachineError("the engine refuses a step of the stage", got=str(error)) from error
