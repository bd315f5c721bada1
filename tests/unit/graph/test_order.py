"""The order of a step's nodes is the engine's: offsets in the workspace depend on it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from vaultline.core.program import StageProgram, StageSettings
from vaultline.graph.compile import compile_segment
from vaultline.graph.model import Model, load_model
from vaultline.graph.order import as_run
from vaultline.graph.structure import Node, make_node
from vaultline.graph.zoo import ZOO, build


def executed(graph: bytes, folder: Path, rows: int = 1) -> list[str]:
    """Names of the nodes in the order in which the engine ran them."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    kinds = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_}
    session.run(
        None,
        {
            each.name: np.ones(
                [side if isinstance(side, int) else rows for side in each.shape], kinds[each.type]
            )
            for each in session.get_inputs()
        },
    )
    events = json.loads(Path(session.end_profiling()).read_text())
    runs = [each for each in events if each["name"].endswith("_kernel_time")]
    names = [each["name"].removesuffix("_kernel_time") for each in sorted(runs, key=_start)]
    return [name for name in names if name.startswith("node ")]


def _start(event: dict[str, int]) -> int:
    return event["ts"]


def in_graphs_order(program: StageProgram, folder: Path) -> None:
    for graph in program.graphs:
        proto = onnx.load_model_from_string(graph)
        for number, node in enumerate(proto.graph.node):
            node.name = f"node {number}"
        wanted = [node.name for node in proto.graph.node]
        assert executed(proto.SerializeToString(), folder) == wanted


def settings(frames: int, mode: str = "streamed") -> StageSettings:
    return StageSettings(
        stage=0,
        stages=1,
        threads=1,
        budget_bytes=64 << 20,
        mode=mode,
        frames_per_pass=frames,
        queue_frames=frames,
    )


def test_samples_run_in_the_order_of_their_graphs(sample: Model, tmp_path: Path) -> None:
    chosen = settings(1, "resident")
    stage = compile_segment(sample, 0, sample.node_count, settings=chosen, step_bytes=1 << 16)
    in_graphs_order(stage.program, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("name", ZOO, ids=str)
def test_the_zoo_runs_in_the_order_of_its_graphs(name: str, tmp_path: Path) -> None:
    model = load_model(build(name, tmp_path))
    for frames in (1, 4):
        stage = compile_segment(
            model, 0, model.node_count, settings=settings(frames), step_bytes=4 << 20
        )
        in_graphs_order(stage.program, tmp_path)


def nodes(*lines: str) -> list[Node]:
    """Each line: operator, operands, ``>``, results."""
    made = []
    for line in lines:
        left, right = line.split(">")
        op, *reads = left.split()
        made.append(make_node(onnx.helper.make_node(op, reads, right.split())))
    return made


ORDERS = {
    "a chain stays": (["Relu x > a", "Neg a > b"], "a b"),
    "branches stay": (["Relu x > a", "Neg x > b", "Add a b > c"], "a b c"),
    "a Shape runs at once": (
        ["NonZero x > n", "Relu x > a", "Neg a > b", "Shape n > s", "Size n > z"],
        "n s z a b",
    ),
    "a Shape of an input comes first": (["Relu x > a", "Shape x > s"], "s a"),
    "a Size of a Shape follows it": (["Relu x > a", "Neg a > b", "Shape a > s", "Size s > z"],
                                     "a s z b"),
}  # fmt: skip


@pytest.mark.parametrize("case", ORDERS, ids=str)
def test_nodes_are_put_in_the_engines_order(case: str, tmp_path: Path) -> None:
    lines, expected = ORDERS[case]
    ordered = as_run(nodes(*lines))
    assert " ".join(node.writes[0] for node in ordered) == expected
    assert as_run(ordered) == ordered
    # And that is what the engine does with the order as it was.
    given = nodes(*lines)
    names = {node.writes[0]: f"node {index}" for index, node in enumerate(given)}
    for node in given:
        node.proto.name = names[node.writes[0]]
    graph = onnx.helper.make_graph(
        [node.proto for node in given],
        "ordered",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 2])],
        [onnx.ValueInfoProto(name=name) for node in given for name in node.writes],
    )
    proto = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10
    )
    assert executed(proto.SerializeToString(), tmp_path) == [names[n] for n in expected.split()]
