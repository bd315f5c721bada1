"""The ledger under random programs: never exceeded, always balanced, at rest after every pass."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from onnx import TensorProto, helper, numpy_helper
from program_cases import Array, Stage, WatchedLedger, Weights, random_frames

from vaultline.channel.chunks import VaultTamperedError
from vaultline.core.errors import InfeasibleError, MachineError
from vaultline.core.paged import PAGE_BYTES
from vaultline.core.program import StageSettings, streamed_bytes
from vaultline.cost.footprint import io_bytes
from vaultline.enclave.executor import _LoadedStep
from vaultline.enclave.simulated_executor import PagedExecutor
from vaultline.graph.compile import CompiledStage, compile_segment
from vaultline.graph.engine import run_plain
from vaultline.graph.model import Model, load_model

CHANNELS, SIDE, WIDTH = 4, 6, 48


class _Net:
    """A network of convolutions, then of products, in the making."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(seed)

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        array = self._random.standard_normal(shape, np.float32) / np.float32(shape[-1] ** 0.5)
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def add(self, op: str, *reads: str, **attributes: object) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(reads), [name], **attributes))
        return name

    def model(self, ends: list[str]) -> Model:
        graph = helper.make_graph(
            self.nodes,
            "random",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, CHANNELS, SIDE, SIDE])],
            [onnx.ValueInfoProto(name=name) for name in ends],
            self.weights,
        )
        opsets = [helper.make_opsetid("", 17)]
        with TemporaryDirectory() as folder:
            path = Path(folder) / "random.onnx"
            onnx.save_model(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
            return load_model(path)


@st.composite
def models(draw: st.DrawFn) -> Model:
    """Pictures first, with branches that meet again, then rows, then one or two outputs."""
    net = _Net(draw(st.integers(0, 2**16)))
    pictures = ["x"]
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(("Conv", "Conv", "Relu", "Add", "MaxPool")))
        source = draw(st.sampled_from(pictures))
        if kind == "Conv":
            made = net.add("Conv", source, net.weight(CHANNELS, CHANNELS, 3, 3), pads=[1, 1, 1, 1])
        elif kind == "Add":
            made = net.add("Add", source, draw(st.sampled_from(pictures)))
        elif kind == "MaxPool":
            made = net.add("MaxPool", source, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        else:
            made = net.add("Relu", source)
        pictures.append(made)
    flat = net.add("Flatten", pictures[-1])
    rows = [net.add("MatMul", flat, net.weight(CHANNELS * SIDE * SIDE, WIDTH))]
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(("MatMul", "Gemm", "Sigmoid", "Add", "Softmax")))
        source = draw(st.sampled_from(rows))
        if kind == "MatMul":
            made = net.add("MatMul", source, net.weight(WIDTH, WIDTH))
        elif kind == "Gemm":
            made = net.add("Gemm", source, net.weight(WIDTH, WIDTH), net.weight(WIDTH), transB=1)
        elif kind == "Add":
            made = net.add("Add", source, draw(st.sampled_from(rows)))
        else:
            made = net.add(kind, source)
        rows.append(made)
    # The last of either kind, so that all of it is needed, and perhaps one from the middle.
    return net.model(list(dict.fromkeys([rows[-1], draw(st.sampled_from(rows + pictures[1:]))])))


@st.composite
def stages(draw: st.DrawFn) -> tuple[Model, CompiledStage]:
    """A model compiled for anything between the least memory it runs in and all it can use."""
    model = draw(models())
    how = StageSettings(
        stage=0,
        stages=1,
        threads=1,
        budget_bytes=1 << 30,
        mode=draw(st.sampled_from(("streamed", "streamed", "streamed", "resident", "paged"))),
        frames_per_pass=draw(st.integers(1, 4)),
        queue_frames=draw(st.integers(1, 4)),
    )
    prefetch, step_bytes = draw(st.booleans()), draw(st.sampled_from((512, 4096, 1 << 20)))

    def compiled(budget_bytes: int) -> CompiledStage:
        within = replace(how, budget_bytes=budget_bytes)
        return compile_segment(
            model, 0, model.node_count, settings=within, step_bytes=step_bytes, prefetch=prefetch
        )

    program = compiled(1 << 30).program
    kept = draw(st.sampled_from((0.0, 0.1, 0.3, 0.6, 1.0)))
    io = io_bytes(how, program.specs(program.inputs), program.specs(program.outputs))
    budget = io + program.engine_bytes + program.workspace_bytes
    budget += int(kept * program.resident_bytes)
    while True:
        try:
            return model, compiled(budget)
        except InfeasibleError as error:
            assert error.remedy
            budget = budget * 9 // 8 + 1024


class Arrays(Weights):
    """A compiled stage's weights; one reading of them may find one that was altered."""

    def __init__(self, stage: CompiledStage, fails_at: int | None = None) -> None:
        super().__init__([np.frombuffer(weight, np.uint8) for weight in stage.weights])
        self.fails_at = fails_at

    def read_weight_into(self, index: int, buffer: memoryview) -> None:
        if len(self.reads) == self.fails_at:
            self.fails_at = None
            buffer[:] = bytes(len(buffer))
            raise VaultTamperedError("a weight was altered")
        super().read_weight_into(index, buffer)


def check(model: Model, stage: Stage, frames: list[list[Array]]) -> None:
    """A pass gives each frame what the model gives, and the ledger is at rest after it."""
    found = stage.passed(frames)
    for (frame,), outputs in zip(frames, found, strict=True):
        right = run_plain(model, {"x": frame})
        for output, reference in zip(outputs, right.values(), strict=True):
            values = np.frombuffer(output, np.float32).reshape(reference.shape)
            np.testing.assert_allclose(values, reference, rtol=1e-4, atol=1e-4)
    rests(stage)


def rests(stage: Stage) -> None:
    ledger, program = stage.ledger, stage.executor._program
    assert isinstance(ledger, WatchedLedger)
    assert ledger.at_rest()
    if isinstance(stage.executor, PagedExecutor):  # its weights and tensors are in the cache
        assert ledger.free_bytes == 0
        assert ledger.held["idle"] // PAGE_BYTES == stage.executor.cache.capacity_pages
    else:
        assert ledger.held["idle"] == program.workspace_bytes
        assert ledger.held["resident"] == program.resident_bytes


@settings(max_examples=20, deadline=None, derandomize=True)
@given(made=stages(), data=st.data())
def test_the_ledger_balances_at_every_event(made: tuple[Model, CompiledStage], data) -> None:
    model, compiled = made
    program = compiled.program
    stage = Stage(program, Arrays(compiled))
    assert isinstance(stage.ledger, WatchedLedger)
    loaded = stage.ledger.events
    for seed in range(2):
        count = data.draw(st.integers(1, program.settings.frames_per_pass))
        check(model, stage, random_frames(program, count, seed))
    assert stage.ledger.events == loaded + 2 * (1 + 4 * len(program.steps))
    tiles = [streamed_bytes(program, step) for step in program.steps]
    ahead = [*tiles[1:], 0] if program.prefetch else [0] * len(tiles)
    peak = stage.ledger.peak
    assert peak["tile"] == max(map(sum, zip(tiles, ahead, strict=True)))
    assert peak["activation"] == max(step.activation_bytes for step in program.steps)
    stage.executor.close()


@settings(max_examples=14, deadline=None, derandomize=True)
@given(made=stages(), data=st.data())
def test_the_ledger_balances_whatever_ends_a_pass(made: tuple[Model, CompiledStage], data) -> None:
    """A weight that was altered, an engine that fails, or a caller that has enough; after each the
    stage computes as before."""
    model, compiled = made
    program = compiled.program
    source = Arrays(compiled)
    stage = Stage(program, source)
    frames = random_frames(program, data.draw(st.integers(1, program.settings.frames_per_pass)))
    residents = len(source.reads)
    check(model, stage, frames)
    reads = len(source.reads) - residents
    for _ in range(data.draw(st.integers(1, 3))):
        kind = data.draw(st.sampled_from(("weight", "engine", "caller")))
        if kind == "weight" and reads:
            source.fails_at = len(source.reads) + data.draw(st.integers(0, reads - 1))
            released: list[int] = []
            with pytest.raises(VaultTamperedError):
                released.extend(stage.passing(frames))
            assert released == []
        elif kind == "engine":
            fail_in_the_engine(stage, frames, data.draw(st.integers(0, 5)))
        else:
            passing = stage.passing(frames)
            assert isinstance(passing, Generator)
            for _ in range(data.draw(st.integers(0, len(frames)))):
                next(passing)
            passing.close()
        rests(stage)
        check(model, stage, frames)
    stage.executor.close()


def fail_in_the_engine(stage: Stage, frames: list[list[Array]], at: int) -> None:
    """Let the engine fail at some call, unless the pass has fewer."""
    plain, calls = _LoadedStep.run, []

    def failing(self: _LoadedStep, binding: object) -> None:
        calls.append(self)
        if len(calls) > at:
            raise MachineError("the engine failed on a frame")
        plain(self, binding)

    with patch.object(_LoadedStep, "run", failing):
        try:
            list(stage.passing(frames))
        except MachineError:
            assert len(calls) == at + 1
        else:
            assert len(calls) <= at
