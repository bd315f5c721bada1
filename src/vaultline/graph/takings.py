"""What the engine takes for itself while it runs a stage: a small upper bound, measured.

Sessions and bindings (process memory before and after, ten networks): up to 9 KiB a node, 24 KiB
a session, 2 KiB a step, and for every frame of a pass 3 KiB a step and 0.5 KiB a tensor that is
bound. Kernels' own buffers live while one node runs. Tensors inside of control flow are the
engine's too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import onnx
from onnx import shape_inference

from vaultline.core.tensors import ITEM_BYTES
from vaultline.cost.memory import (
    BOUND_STEP_BYTES,
    BOUND_VALUE_BYTES,
    NODE_BYTES,
    SESSION_BYTES,
    SESSIONS_MAX,
    STEP_BYTES,
    THREAD_BYTES,
)
from vaultline.graph import engine
from vaultline.graph.lifetimes import engine_made
from vaultline.graph.steps import Part, attributes, reads_of
from vaultline.graph.structure import Model, Node, subgraphs, value_info

#: Kernels that need nothing besides operands and results, or hardly anything.
_LEAN = frozenset(
    {
        "Abs", "Add", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Div",
        "Dropout", "Elu", "Equal", "Erf", "Exp", "Expand", "Flatten", "Floor", "Gather", "Gemm",
        "GlobalAveragePool", "GlobalMaxPool", "Greater", "HardSigmoid", "HardSwish", "Identity",
        "InstanceNormalization", "LeakyRelu", "Less", "Log", "MatMul", "Max", "MaxPool", "Min",
        "Mul", "Neg", "PRelu", "Pad", "Pow", "Reciprocal", "Relu", "Reshape", "Shape", "Sigmoid",
        "Size", "Slice", "Softplus", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh",
        "Transpose", "Unsqueeze", "Where",
        "com.microsoft.FusedGemm", "com.microsoft.Gelu", "com.microsoft.QuickGelu",
    }
)  # fmt: skip
#: Kernels that copy their operand several times: an operator's largest tensor times this.
_COPIES = {"LRN": 4, "Softmax": 5, "LogSoftmax": 5, "LSTM": 16, "GRU": 16, "RNN": 16}


def fixed_bytes(
    model: Model, parts: Sequence[Part], alone: frozenset[str], frames: int, threads: int
) -> int:
    """What the engine takes however the model is cut into steps: every node's share of its
    session, the largest buffer of a kernel, and tensors that have no place in the workspace.

    Args:
        alone: first outputs of tiles; those of one shape share a session.
    """
    tiles = [node for node in model.nodes if node.writes[0] in alone]
    kinds = {(node.op, *(_shape(name, model) for name in node.reads)) for node in tiles}
    counted = len(model.nodes) - len(tiles) + len(kinds)
    inside = sum(model.specs[name].nbytes for name in engine_made(model, parts, frames))
    stacked = {index for part in parts if part.stackable for index in range(part.first, part.last)}
    buffers = [
        kernel_bytes(node, model) * (frames if index in stacked else 1)
        for index, node in enumerate(model.nodes)
    ]
    flow = sum(size for size in _control_flow(model).values() if size is not None)
    kernels = max(buffers, default=0) + threads * THREAD_BYTES
    return counted * NODE_BYTES + frames * inside + flow + kernels


def steps_bytes(model: Model, parts: Sequence[Part], frames: int) -> int:
    """What steps take besides: a session (those of equal tiles are one, which is not counted on)
    and for every frame a list of what is bound."""
    total = 0
    for part in parts:
        nodes = model.nodes[part.first : part.last]
        bound = len(reads_of(nodes)) + sum(len(node.writes) for node in nodes)
        total += STEP_BYTES + frames * (BOUND_STEP_BYTES + bound * BOUND_VALUE_BYTES)
    return total + min(len(parts), SESSIONS_MAX) * SESSION_BYTES


def unbounded(model: Model) -> str | None:
    """What the engine will allocate without a known bound, in words; None if nothing."""
    edge = {spec.name for spec in (*model.inputs, *model.outputs)}
    for node in model.nodes:
        lost = [name for name in node.writes if name not in model.specs and name not in edge]
        if lost:
            return f"the size of {lost[0]!r}, which {node.op} makes, depends on the frame"
    for name, size in _control_flow(model).items():
        if size is None:
            return f"the sizes of tensors inside of the control flow that makes {name!r}"
    return None


def kernel_bytes(node: Node, model: Model) -> int:
    """The most bytes that a node's kernel allocates for itself for one frame."""
    sizes = [
        model.specs[name].nbytes for name in (*node.reads, *node.writes) if name in model.specs
    ]
    if node.op in _BUFFERS:
        known = all(name in model.specs for name in (*node.proto.input[:1], node.writes[0]))
        return _BUFFERS[node.op](node, model) if known else 0
    if node.op in _COPIES:
        return _COPIES[node.op] * max(sizes, default=0)
    if node.op in _LEAN or node.op.startswith("com.microsoft.nchwc."):
        return 0
    return sum(sizes)


def _convolution(node: Node, model: Model) -> int:
    """MLAS unfolds all of a group's input where there are more filters than output pixels."""
    kernel = _shape(node.proto.input[1], model)
    result = model.specs[node.writes[0]]
    if len(kernel) < 3:
        return 0
    pixels, filters = prod(result.shape[2:]), kernel[0] // attributes(node).get("group", 1)
    item = ITEM_BYTES[result.dtype]
    unfolded = pixels * prod(kernel[1:]) * item
    return unfolded if filters > pixels and prod(kernel[2:]) > 1 else 0


def _transposed_convolution(node: Node, model: Model) -> int:
    """The product before it is folded."""
    kernel, source = _shape(node.proto.input[1], model), model.specs[node.proto.input[0]]
    return prod(kernel[1:]) * prod(source.shape[2:]) * ITEM_BYTES[source.dtype]


_BUFFERS: Mapping[str, Callable[[Node, Model], int]] = {
    "Conv": _convolution,
    "com.microsoft.FusedConv": _convolution,
    "ConvTranspose": _transposed_convolution,
}


def _shape(name: str, model: Model) -> tuple[int, ...]:
    if name in model.weights:
        return tuple(model.weights[name].shape)
    return model.specs[name].shape if name in model.specs else ()


def _control_flow(model: Model) -> dict[str, int | None]:
    """By first output, bytes of the tensors inside of each node with subgraphs, twice: a loop has
    the former and the next ones. None if a size is not known."""
    if not any(list(subgraphs(node.proto)) for node in model.nodes):
        return {}
    proto = engine.weightless(model)
    fed = {value.name for value in (*proto.graph.input, *proto.graph.output)}
    specs = [spec for spec in model.specs.values() if spec.name not in fed]
    proto.graph.value_info.extend(value_info(spec) for spec in specs)
    try:
        nodes = shape_inference.infer_shapes(proto, data_prop=True).graph.node
    except (shape_inference.InferenceError, RuntimeError, ValueError):
        nodes = proto.graph.node
    found: dict[str, int | None] = {}
    for node in nodes:
        graphs = list(subgraphs(node))
        if graphs:
            sizes = [_inner_bytes(graph) for graph in graphs]
            known = [size for size in sizes if size is not None]
            found[node.output[0]] = 2 * sum(known) if len(known) == len(sizes) else None
    return found


def _inner_bytes(graph: onnx.GraphProto) -> int | None:
    """Bytes of all that a subgraph makes, those inside of it included."""
    values = {value.name: value.type for value in (*graph.value_info, *graph.output)}
    total: int = sum(tensor.ByteSize() for tensor in graph.initializer)
    for node in graph.node:
        for name in node.output:
            size = _type_bytes(values[name]) if name in values else None
            if name and size is None:
                return None
            total += size or 0
        for inner in subgraphs(node):
            size = _inner_bytes(inner)
            if size is None:
                return None
            total += size
    return total


def _type_bytes(kind: onnx.TypeProto) -> int | None:
    tensor = kind.tensor_type
    if not kind.HasField("tensor_type") or not tensor.HasField("shape"):
        return None
    dims = tensor.shape.dim
    if not all(dim.HasField("dim_value") for dim in dims):
        return None
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    sides: list[int] = [dim.dim_value for dim in dims]
    return prod(sides) * int(dtype.itemsize)
