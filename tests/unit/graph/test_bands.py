"""Bands of rows: the same numbers at every border, in less memory; what can't be split says why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from vaultline.bench.stage_bench import StageBench
from vaultline.core.errors import InfeasibleError
from vaultline.core.program import StageSettings
from vaultline.cost.footprint import footprint
from vaultline.graph.arrange import BLOCKS
from vaultline.graph.bands import Banding, bounds, runs
from vaultline.graph.compile import (
    CompiledStage,
    compile_segment,
    optimised,
)
from vaultline.graph.engine import run_plain
from vaultline.graph.isa import local_isa
from vaultline.graph.least import least_budget
from vaultline.graph.model import Model, load_model
from vaultline.graph.rows import windows
from vaultline.graph.structure import rebuilt

KIB = 1 << 10


class Net:
    """Builds a network node by node."""

    def __init__(self, channels: int, height: int, width: int, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.input = helper.make_tensor_value_info("x", 1, [1, channels, height, width])
        self.random = np.random.default_rng(seed)
        self.opset = 13
        self.last, self.shape = "x", (channels, height, width)

    def add(self, op: str, reads: list[str], **attributes: object) -> str:
        self.last = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, reads, [self.last], **attributes))
        return self.last

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        fan = max(1, int(np.prod(shape[1:])))
        self.weights[name] = self.random.standard_normal(shape).astype(np.float32) / fan**0.5
        return name

    def conv(self, source: str, before: int, after: int, kernel: int = 3, **more: object) -> str:
        group = int(more.get("group", 1))  # type: ignore[call-overload]
        weights = [self.weight(after, before // group, kernel, kernel), self.weight(after)]
        pad = more.pop("pads", [kernel // 2] * 4)
        return self.add("Conv", [source, *weights], pads=pad, **more)

    def model(self, folder: Path) -> Model:
        ends = [onnx.ValueInfoProto(name=self.last)]
        inits = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        graph = helper.make_graph(self.nodes, "net", [self.input], ends, inits)
        opsets = [helper.make_opsetid("", self.opset)]
        path = folder / "net.onnx"
        onnx.save_model(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
        return load_model(path)


def feeds_of(model: Model, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {spec.name: random.standard_normal(spec.shape).astype("f") for spec in model.inputs}


def split(model: Model, block: int, bands: int, pick: int) -> Model:
    """One of the model's runs in bands."""
    ways = windows(model)
    found = runs(model, ways)
    if not found:
        return model
    run = found[pick % len(found)]
    banding = Banding(model, ways, block)
    made = banding.write(run, bands)
    nodes = [*model.nodes[: run.first], *made, *model.nodes[run.last :]]
    return rebuilt(
        model, nodes, {**model.weights, **banding.weights}, {**model.specs, **banding.specs}
    )


KINDS = "conv grouped depthwise same max average residual twice branch norm relu lrn"


@st.composite
def nets(draw: st.DrawFn) -> Net:
    """Chains of convolutions and poolings with residuals, branches and normalisation."""
    channels, height = draw(st.sampled_from([3, 16, 24])), draw(st.integers(9, 24))
    net = Net(channels, height, draw(st.integers(9, 16)), draw(st.integers(0, 9)))
    side = min(net.shape[1:])
    net.opset = draw(st.sampled_from([9, 13]))
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(KINDS.split()))
        kernel, stride = draw(st.sampled_from([1, 3, 5])), draw(st.sampled_from([1, 2]))
        source = net.last
        if kind in ("max", "average") and side > 4:
            pads = [draw(st.integers(0, 1)) for _ in range(4)]
            more: dict[str, object] = {"pads": pads}
            if net.opset >= 10:
                more["ceil_mode"] = draw(st.integers(0, 1))
            if kind == "average":
                more["count_include_pad"] = draw(st.integers(0, 1))
            op = "MaxPool" if kind == "max" else "AveragePool"
            window = draw(st.sampled_from([2, 3]))
            net.add(op, [source], kernel_shape=[window] * 2, strides=[stride] * 2, **more)
            side = side // stride - 1
        elif kind == "conv" and side > 10:
            dilation = draw(st.sampled_from([1, 2]))
            pads = [draw(st.integers(0, kernel - 1)) for _ in range(4)]
            after = draw(st.sampled_from([16, 20, 32]))
            net.conv(
                source, channels, after, kernel, pads=pads, dilations=[dilation] * 2,
                strides=[stride] * 2,
            )  # fmt: skip
            channels, side = after, (side - 2 * kernel) // stride
        elif kind == "same" and side > 4:
            weights = [net.weight(channels, channels, kernel, kernel)]
            how = draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER"]))
            net.add("Conv", [source, *weights], auto_pad=how, strides=[stride] * 2)
            side //= stride
        elif kind == "grouped" and channels % 4 == 0:
            net.conv(source, channels, channels, kernel, group=4)
        elif kind == "depthwise":
            net.conv(source, channels, channels, 3, group=channels)
        elif kind == "residual":
            inner = net.add("Relu", [net.conv(source, channels, channels)])
            net.add("Add", [net.conv(inner, channels, channels), source])
        elif kind == "twice":
            net.add("Add", [net.conv(source, channels, channels, 3), source])
        elif kind == "branch":
            left, right = (net.conv(source, channels, 16, k) for k in (1, 5))
            net.add("Concat", [left, right, source], axis=1)
            channels += 32
        elif kind == "norm":
            rest = [net.weight(channels) for _ in range(3)]
            spread = net.weight(channels)
            net.weights[spread] = np.abs(net.weights[spread]) + 0.5
            net.add("BatchNormalization", [source, *rest, spread])
        elif kind == "lrn":
            net.add("LRN", [source], size=5, alpha=0.1)
        else:
            net.add("Relu", [source])
    return net


@settings(derandomize=True, deadline=None, max_examples=40)
@given(net=nets(), bands=st.integers(2, 7), pick=st.integers(0, 50), data=st.data())
def test_any_run_in_any_number_of_bands_gives_the_same(
    net: Net, bands: int, pick: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    plain = net.model(tmp_path_factory.mktemp("net"))
    blocked = local_isa() != "portable" and data.draw(st.booleans(), "blocked")
    source = optimised(plain, blocked=True) if blocked else plain
    fed = feeds_of(plain)
    made = split(source, BLOCKS[local_isa()] if blocked else 1, bands, pick)
    expected, got = run_plain(source, fed), run_plain(made, fed)
    for name, reference in expected.items():
        scale = np.abs(reference).max()
        np.testing.assert_allclose(got[name], reference, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("height", [1, 2, 7, 224])
def test_bands_cover_every_row_once(height: int) -> None:
    for bands in range(1, 40):
        found = bounds(height, bands)
        assert [row for a, b in found for row in range(a, b)] == list(range(height))
        sizes = [b - a for a, b in found]
        assert max(sizes) - min(sizes) <= 1


def vgg(folder: Path) -> Model:
    """Large pictures first, small ones with large weights later."""
    net = Net(3, 128, 128)
    channels = 3
    for after in (16, 32, 64):
        net.add("Relu", [net.conv(net.last, channels, after)])
        net.add("Relu", [net.conv(net.last, after, after)])
        net.add("MaxPool", [net.last], kernel_shape=[2, 2], strides=[2, 2])
        channels = after
    net.conv(net.last, 64, 128)
    net.add("GlobalAveragePool", [net.last])
    net.add("Flatten", [net.last])
    net.add("Gemm", [net.last, net.weight(10, 128)], transB=1)
    return net.model(folder)


def resnet(folder: Path) -> Model:
    """Residual blocks; the third doubles its stride with a shortcut of its own."""
    net = Net(3, 224, 224)
    net.add("Relu", [net.conv(net.last, 3, 32, 7, strides=[2, 2])])
    for before, after, stride in ((32, 32, 1), (32, 64, 2), (64, 64, 2), (64, 64, 1)):
        start = net.last
        inner = net.add("Relu", [net.conv(start, before, after, strides=[stride] * 2)])
        inner = net.conv(inner, after, after)
        if before != after or stride > 1:
            start = net.conv(start, before, after, 1, strides=[stride] * 2)
        net.add("Relu", [net.add("Add", [inner, start])])
    net.add("GlobalAveragePool", [net.last])
    net.add("Flatten", [net.last])
    return net.model(folder)


def how(budget: int, frames: int, mode: str = "streamed") -> StageSettings:
    return StageSettings(
        stage=0,
        stages=1,
        threads=1,
        budget_bytes=budget,
        mode=mode,  # type: ignore[arg-type]
        frames_per_pass=frames,
        queue_frames=frames,
    )


def outputs(stage: CompiledStage, frames: int) -> list[np.ndarray]:
    """What the enclave's executor makes of seeded frames."""
    bench = StageBench(stage)
    for number, buffer in enumerate(bench.inputs):
        values = np.random.default_rng(number).standard_normal(buffer.layout.specs[0].shape)
        buffer.parts[0][:] = values.astype("f").reshape(-1).view(np.uint8)
    bench.pass_s(frames)
    return [buffer.parts[0].view(np.float32).copy() for buffer in bench.outputs]


def need(stage: CompiledStage) -> int:
    return sum(footprint(stage.program).values())


def least(model: Model, frames: int, **more: object) -> int:
    return least_budget(
        model, 0, model.node_count, settings=how(1, frames), step_bytes=256 * KIB, **more
    ).budget_bytes


@pytest.mark.parametrize("frames", [1, 2, 4])
@pytest.mark.parametrize("net", [vgg, resnet])
@pytest.mark.parametrize("portable", [False, True])
def test_a_network_runs_below_what_its_largest_tensors_need(
    net, frames: int, portable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = net(tmp_path)

    def compiled(budget: int) -> CompiledStage:
        return compile_segment(
            model, 0, model.node_count, settings=how(budget, frames), step_bytes=256 * KIB,
            portable=portable,
        )  # fmt: skip

    free = compiled(1 << 30)
    enough = least(model, frames, portable=portable)
    with monkeypatch.context() as patched:
        patched.setattr("vaultline.graph.fit.Fitting._plan", lambda self, room: None)
        unsplit = least(model, frames, portable=portable)
    assert enough < (0.9 if frames == 1 else 1.0) * unsplit
    split = compiled(enough)
    assert need(split) <= enough
    assert split.program.workspace_bytes < free.program.workspace_bytes
    for whole, parts in zip(outputs(free, frames), outputs(split, frames), strict=True):
        np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-5)


def test_the_least_budget_is_enough_and_less_is_not(tmp_path: Path) -> None:
    model = vgg(tmp_path)
    found = least_budget(model, 0, model.node_count, settings=how(1, 1), step_bytes=256 * KIB)
    stage = compile_segment(
        model, 0, model.node_count, settings=how(found.budget_bytes, 1), step_bytes=256 * KIB
    )
    assert need(stage) <= found.budget_bytes
    assert "Conv" in found.reason and "KiB" in found.reason
    with pytest.raises(InfeasibleError) as refused:
        compile_segment(
            model, 0, model.node_count,
            settings=how(found.budget_bytes - 80 * KIB, 1), step_bytes=256 * KIB,
        )  # fmt: skip
    assert refused.value.got and refused.value.remedy


def test_what_cannot_be_split_is_named_with_the_reason(tmp_path: Path) -> None:
    net = Net(8, 64, 64)
    net.add("Relu", [net.conv(net.last, 8, 32)])
    net.add("InstanceNormalization", [net.last, net.weight(32), net.weight(32)])
    net.add("MaxPool", [net.last], kernel_shape=[8, 8], strides=[8, 8])
    model = net.model(tmp_path)
    with pytest.raises(InfeasibleError) as refused:
        compile_segment(model, 0, 4, settings=how(900 * KIB, 1), step_bytes=256 * KIB)
    said = refused.value.diagnostics()
    assert "InstanceNormalization" in said
    assert "does not work row by row" in said
    assert "512.0 KiB" in said


def test_resident_weights_leave_room_for_bands_too(tmp_path: Path) -> None:
    model = resnet(tmp_path)
    free = compile_segment(
        model, 0, model.node_count, settings=how(1 << 30, 1, "resident"), step_bytes=1
    )
    budget = need(free) - 200 * KIB
    split = compile_segment(
        model, 0, model.node_count, settings=how(budget, 1, "resident"), step_bytes=1
    )
    assert split.program.resident_bytes == free.program.resident_bytes
    assert need(split) <= budget
    np.testing.assert_allclose(outputs(split, 1)[0], outputs(free, 1)[0], rtol=1e-4, atol=1e-5)


def test_a_convolution_with_large_weights_runs_in_tiles_of_channels(tmp_path: Path) -> None:
    net = Net(128, 8, 8)
    start = net.add("Relu", [net.last])
    net.add("Add", [net.conv(start, 128, 128), start])
    net.conv(net.last, 128, 256)
    net.add("GlobalAveragePool", [net.last])
    model = net.model(tmp_path)
    kernel = 256 * 128 * 9 * 4
    free = compile_segment(model, 0, model.node_count, settings=how(1 << 30, 2), step_bytes=kernel)
    budget = least(model, 2)
    assert footprint(free.program)["io"] + kernel > budget
    split = compile_segment(model, 0, model.node_count, settings=how(budget, 2), step_bytes=kernel)
    assert need(split) <= budget
    # Both convolutions: that of the residual block, whose sum is fused into it, as well.
    assert max(len(data) for data in split.weights) == 64 * 128 * 9 * 4
    for whole, parts in zip(outputs(free, 2), outputs(split, 2), strict=True):
        np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-5)
