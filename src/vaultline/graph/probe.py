"""What computes next to nothing: all the time that is left is the way of a frame, or of a call."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from vaultline.core.program import PROGRAM_VERSION, Place, StageProgram, StageSettings, Step
from vaultline.core.tensors import TensorSpec, align
from vaultline.graph import engine
from vaultline.graph.compile import CompiledStage
from vaultline.graph.structure import make_node

_SMALL = 16


def save_hop_probe(path: Path, elements: int) -> None:
    """Three nodes in a line over float32: large to large, large to small, small to small.

    Args:
        path: where to write the model.
        elements: of the large tensors.
    """
    shapes = {"x": elements, "a": elements, "b": _SMALL, "y": _SMALL}
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size])
        for name, size in shapes.items()
    }
    ends = {
        name: helper.make_tensor(name, TensorProto.INT64, [1], [value])
        for name, value in (("zero", 0), ("small", _SMALL), ("axis", 1))
    }
    nodes = [
        helper.make_node("Abs", ["x"], ["a"]),
        helper.make_node("Slice", ["a", "zero", "small", "axis"], ["b"]),
        helper.make_node("Abs", ["b"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "hop-probe",
        [values["x"]],
        [values["y"]],
        initializer=list(ends.values()),
        value_info=[values["a"], values["b"]],
    )
    opset = helper.make_opsetid("", 13)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)


def idle_stage(settings: StageSettings, steps: int) -> CompiledStage:
    """A stage of so many steps, each of which negates a few numbers; one session runs them all."""
    specs = tuple(
        TensorSpec(name=f"t{number}", dtype="float32", shape=(1, _SMALL))
        for number in range(steps + 1)
    )
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, _SMALL]) for name in ("x", "y")
    ]
    node = make_node(helper.make_node("Neg", ["x"], ["y"]))
    graph = engine.proto("idle", {"": 13}, [node], ends[:1], ends[1:], [])
    size = align(specs[0].nbytes)
    between = [Place(offset=size * (step % 2), frames=1) for step in range(steps - 1)]
    program = StageProgram(
        version=PROGRAM_VERSION,
        engine_version="none",
        isa="portable",
        settings=settings,
        tensors=specs,
        places=(Place(), *between, Place()),
        inputs=(0,),
        outputs=(steps,),
        weights=(),
        graphs=(graph.SerializeToString(deterministic=True),),
        steps=tuple(
            Step(graph=0, feeds=(("x", step),), weights=(), fetches=(("y", step + 1),))
            for step in range(steps)
        ),
        workspace_bytes=2 * size,
    )
    return CompiledStage(program=program, weights=())
