"""Stages in little memory: nothing overlaps, nothing is stale, and the outputs are the model's."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
import onnx
from hypothesis import event, given, settings
from hypothesis import strategies as st
from layout_cases import Play, Weights, networks

from vaultline.core.errors import InfeasibleError
from vaultline.core.frames import FrameLayout
from vaultline.core.limits import MIB
from vaultline.core.program import StageProgram, StageSettings
from vaultline.cost.footprint import footprint
from vaultline.enclave.executor import Executor, FrameBuffer
from vaultline.enclave.ledger import Ledger
from vaultline.graph import fit, steps, turn
from vaultline.graph.compile import CompiledStage, compile_segment
from vaultline.graph.engine import run_plain
from vaultline.graph.model import Model, load_model


def loaded(proto: onnx.ModelProto) -> Model:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "random.onnx"
        onnx.save_model(proto, path)
        return load_model(path)


def compiled(
    model: Model, mode: str, budget: int, frames: int, *, prefetch: bool = False, **more: object
) -> CompiledStage:
    chosen = StageSettings(
        stage=0,
        stages=1,
        threads=1,
        budget_bytes=budget,
        mode=mode,
        frames_per_pass=frames,
        queue_frames=frames,
    )
    # Small products stack frames too, and the engine's own share does not hide everything else.
    with (
        mock.patch.object(steps, "STACK_BYTES_MIN", 1 << 10),
        mock.patch.object(turn, "STACK_BYTES_MIN", 1 << 10),
        mock.patch.object(fit, "fixed_bytes", lambda *given: 0),
        mock.patch.object(fit, "steps_bytes", lambda *given: 0),
    ):
        return compile_segment(
            model, 0, model.node_count, settings=chosen, step_bytes=1 << 12, prefetch=prefetch,
            **more,
        )  # fmt: skip


def budget_between(model: Model, frames: int, share: float) -> int:
    """What the engine and the messages need, and a share of all that a resident stage needs."""
    held = footprint(compiled(model, "resident", 1 << 40, frames).program)
    fixed = held["io"] + held["engine"]
    return fixed + int(share * (held["resident"] + held["idle"]))


def feeds_of(model: Model, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {spec.name: rng.standard_normal(spec.shape, np.float32) for spec in model.inputs}


class Poisoned:
    """A stage whose workspace holds nothing but what is still needed, before every call."""

    def __init__(self, stage: CompiledStage) -> None:
        self.program = stage.program
        # A paged stage counts whole pages of each tensor, which may be more than the workspace.
        paged = stage.program.settings.mode == "paged"
        self._idle = stage.program.workspace_bytes + (MIB if paged else 0)
        engine = stage.program.engine_bytes
        self._ledger = Ledger(stage.program.resident_bytes + self._idle + engine)
        self._ledger.reserve("idle", self._idle, "the workspace")
        self._workspace = np.full(stage.program.workspace_bytes, 0xFF, np.uint8)
        self.executor = Executor(
            stage.program, Weights(stage), self._ledger, workspace=self._workspace
        )
        self._needed: list = []
        for each in self.executor._steps:
            each.run = self._wrapped(each.run)
        self.inputs = self._buffers(stage.program.inputs)
        self.outputs = self._buffers(stage.program.outputs)
        assert self._ledger.free_bytes == 0

    def _buffers(self, tensors: tuple[int, ...]) -> list[FrameBuffer]:
        layout = FrameLayout(self.program.specs(tensors), 1)
        size = layout.message_bytes
        data = [np.zeros(size, np.uint8) for _ in range(self.program.settings.frames_per_pass)]
        return [FrameBuffer(layout, each) for each in data]

    def _wrapped(self, run):
        def call(binding) -> None:
            kept = np.zeros(len(self._workspace), bool)
            for item in self._needed.pop(0):
                kept[item.start : item.start + item.size] = True
            self._workspace[~kept] = 0xFF
            run(binding)

        return call

    def run(self, frames: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        """A pass of as many frames as are given."""
        self._workspace[:] = 0xFF
        self._needed = Play(self.program, len(frames)).needed()
        specs = self.program.specs(self.program.inputs)
        for fed, buffer in zip(frames, self.inputs, strict=False):
            for spec, part in zip(specs, buffer.parts, strict=True):
                part[:] = np.ascontiguousarray(fed[spec.name]).reshape(-1).view(np.uint8)
        for buffer in self.outputs:
            for part in buffer.parts:
                part[:] = 0xFF
        count = len(frames)
        done = list(self.executor.run_pass(self.inputs[:count], self.outputs[:count]))
        assert done == list(range(count))
        assert not self._needed
        assert self._ledger.held["idle"] == self._idle
        results = self.program.specs(self.program.outputs)
        return [
            {
                spec.name: part.view(spec.dtype).reshape(spec.shape).copy()
                for spec, part in zip(results, buffer.parts, strict=True)
            }
            for buffer in self.outputs[:count]
        ]


def check(model: Model, stage: CompiledStage, seed: int = 0) -> None:
    """Full and partial passes give the model's outputs; no live buffers overlap."""
    most = stage.program.settings.frames_per_pass
    poisoned = Poisoned(stage)
    for count in dict.fromkeys((most, max(1, most - 1), 1, most)):
        Play(stage.program, count).check()
        frames = [feeds_of(model, seed + number) for number in range(count)]
        for fed, got in zip(frames, poisoned.run(frames), strict=True):
            for name, reference in run_plain(model, fed).items():
                np.testing.assert_allclose(got[name], reference, rtol=1e-4, atol=1e-5)


def within(program: StageProgram, budget: int) -> bool:
    return sum(footprint(program).values()) <= budget


@given(networks(), st.data())
@settings(derandomize=True, deadline=None, max_examples=60)
def test_streamed_networks_equal_the_model_at_any_budget(
    proto: onnx.ModelProto, data: st.DataObject
) -> None:
    model = loaded(proto)
    frames = data.draw(st.sampled_from((1, 2, 4)))
    share = data.draw(st.floats(0.1, 1.3))
    prefetch, portable = data.draw(st.booleans()), data.draw(st.booleans())
    budget = budget_between(model, frames, share)
    try:
        stage = compiled(model, "streamed", budget, frames, prefetch=prefetch, portable=portable)
    except InfeasibleError as error:
        assert error.expected
        event("no bound" if "no bound" in str(error) else "infeasible")
        return
    event("streams" if any(w.resident_at is None for w in stage.program.weights) else "all fits")
    assert within(stage.program, budget)
    check(model, stage)


@given(networks(), st.sampled_from((1, 2, 4)), st.sampled_from(("resident", "paged")))
@settings(derandomize=True, deadline=None, max_examples=40)
def test_loaded_networks_equal_the_model(proto: onnx.ModelProto, frames: int, mode: str) -> None:
    model = loaded(proto)
    stage = compiled(model, mode, 1 << 40, frames)
    assert all(weight.resident_at is not None for weight in stage.program.weights)
    check(model, stage)


@given(networks(), st.data())
@settings(derandomize=True, deadline=None, max_examples=40)
def test_networks_that_keep_no_weights_equal_the_model_at_any_budget(
    proto: onnx.ModelProto, data: st.DataObject
) -> None:
    model = loaded(proto)
    frames = data.draw(st.sampled_from((1, 2, 4)))
    budget = budget_between(model, frames, data.draw(st.floats(0.1, 1.3)))
    try:
        stage = compiled(model, "streamed", budget, frames, keep=False)
    except InfeasibleError as error:
        assert error.expected
        event("no bound" if "no bound" in str(error) else "infeasible")
        return
    event(f"{min(len(stage.program.steps), 5)} steps")
    assert stage.program.resident_bytes == 0
    assert all(weight.resident_at is None for weight in stage.program.weights)
    assert within(stage.program, budget)
    more = compiled(model, "streamed", 2 * budget, frames, keep=False)
    assert len(more.program.steps) <= len(stage.program.steps)
    check(model, stage)
