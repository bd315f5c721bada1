"""Which nodes of an optimised segment may stack frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from onnx import helper

from vaultline.core.tensors import TensorSpec
from vaultline.graph.structure import Model, Node

#: A run of row-independent nodes becomes a step of its own if its weights are worth reading once
#: for several frames.
STACK_BYTES_MIN = 1 << 20

_UNARY = frozenset(
    {
        "Abs", "Clip", "Dropout", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish",
        "Identity", "LeakyRelu", "Neg", "Relu", "Sigmoid", "Softplus", "Sqrt", "Tanh",
        "com.microsoft.FastGelu", "com.microsoft.Gelu", "com.microsoft.QuickGelu",
    }
)  # fmt: skip
_BINARY = frozenset({"Add", "BiasGelu", "Div", "Mul", "PRelu", "Sub", "Sum"})
_GEMM = frozenset({"Gemm", "com.microsoft.FusedGemm"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Nodes ``[first, last)`` of the optimised order."""

    first: int
    last: int
    stackable: bool


def attributes(node: Node) -> dict[str, Any]:
    """A node's attributes as Python values."""
    return {item.name: helper.get_attribute_value(item) for item in node.proto.attribute}


def regions(model: Model) -> list[Part]:
    """Ranges of nodes that no step may cross: runs that may stack frames, and what lies between."""
    return [
        Part(first=first, last=last, stackable=stackable)
        for first, last, stackable in _regions(model, boundary_bytes(model))
    ]


def boundary_bytes(model: Model) -> list[int | None]:
    """Bytes of tensors that nodes made and that are needed after each position; None if unknown."""
    last_use: dict[str, int] = {}
    for index, node in enumerate(model.nodes):
        last_use.update(dict.fromkeys(node.reads, index))
    last_use.update({spec.name: len(model.nodes) for spec in model.outputs})
    live: dict[str, TensorSpec | None] = {}
    found: list[int | None] = [0]
    for index, node in enumerate(model.nodes):
        for name in node.writes:
            if last_use.get(name, -1) > index:
                live[name] = model.specs.get(name)
        for name in node.reads:
            if last_use[name] == index:
                live.pop(name, None)
        sizes = [spec.nbytes if spec else None for spec in live.values()]
        found.append(None if None in sizes else sum(size or 0 for size in sizes))
    return found


def _regions(model: Model, crossing: list[int | None]) -> list[tuple[int, int, bool]]:
    """Maximal runs of row-independent nodes that are worth it, and what lies between."""
    rowwise = [is_rowwise(node, model) for node in model.nodes]
    regions: list[tuple[int, int, bool]] = []
    start = position = 0
    while position < len(rowwise):
        end = position
        while end < len(rowwise) and rowwise[end]:
            end += 1
        known = crossing[position] is not None and crossing[end] is not None
        if end > position and known and weights_of(model, position, end) >= STACK_BYTES_MIN:
            if position > start:
                regions.append((start, position, False))
            regions.append((position, end, True))
            start = end
        position = max(end, position + 1)
    if start < len(rowwise):
        regions.append((start, len(rowwise), False))
    return regions


def weights_of(model: Model, first: int, last: int) -> int:
    """Bytes of the weights that nodes ``[first, last)`` read, each once."""
    names = {name for node in model.nodes[first:last] for name in node.reads}
    return sum(
        model.weights[name].nbytes
        for name in names
        if name in model.weights and name not in model.constants
    )


def is_rowwise(node: Node, model: Model) -> bool:
    """Whether frames stacked along axis 0 pass through a node without influencing each other."""
    frames = [name for name in node.reads if name not in model.weights]
    specs = [model.specs.get(name) for name in (*frames, *node.writes)]
    if not frames or any(spec is None or spec.shape[:1] != (1,) for spec in specs):
        return False
    check = _CHECKS.get(node.op)
    return check is not None and check(node, model)


def _binary(node: Node, model: Model) -> bool:
    """Frames of one rank; weights that broadcast along axis 0."""
    ranks = {len(model.specs[name].shape) for name in node.reads if name not in model.weights}
    rank = max(ranks)
    operands = [model.weights[name] for name in node.reads if name in model.weights]
    broadcast = all(a.ndim < rank or (a.ndim == rank and a.shape[0] == 1) for a in operands)
    return len(ranks) == 1 and broadcast and len(model.specs[node.writes[0]].shape) == rank


def _gemm(node: Node, model: Model) -> bool:
    left, right, *rest = node.proto.input
    bias = model.weights.get(rest[0]) if rest and rest[0] else None
    fine = not rest or not rest[0] or (bias is not None and (bias.ndim < 2 or bias.shape[0] == 1))
    is_row = left not in model.weights and not attributes(node).get("transA", 0)
    return is_row and right in model.weights and fine


def _matmul(node: Node, model: Model) -> bool:
    left, right = node.proto.input
    if left in model.weights or len(model.specs[left].shape) < 2:
        return False
    if right in model.weights:
        return model.weights[right].ndim == 2
    return len(model.specs[left].shape) == len(model.specs[right].shape) > 2


def _axis(default: int) -> Callable[[Node, Model], bool]:
    """Operators along one axis, which must not be the frames'."""

    def check(node: Node, model: Model) -> bool:
        rank = len(model.specs[node.proto.input[0]].shape) if node.proto.input else 0
        axis = attributes(node).get("axis", default)
        return bool(rank and (axis + rank if axis < 0 else axis) >= 1)

    return check


def _reshape(node: Node, model: Model) -> bool:
    """Rows keep their number (both first sides are 1) and the target is known."""
    return node.proto.input[1] in model.weights


def _concat(node: Node, model: Model) -> bool:
    return _axis(0)(node, model) and not any(name in model.weights for name in node.reads)


_CHECKS: Mapping[str, Callable[[Node, Model], bool]] = {
    **dict.fromkeys(_UNARY, lambda node, model: True),
    **dict.fromkeys(_BINARY, _binary),
    **dict.fromkeys(_GEMM, _gemm),
    "MatMul": _matmul,
    "Softmax": _axis(-1),
    "LayerNormalization": _axis(-1),
    "Concat": _concat,
    "Flatten": _axis(1),
    "Reshape": _reshape,
    "Transpose": lambda node, model: attributes(node).get("perm", [1])[0] == 0,
}


def reads_of(nodes: Iterable[Node]) -> list[str]:
    """What nodes read that none of them makes, in order, without repeats."""
    made: set[str] = set()
    found: dict[str, None] = {}
    for node in nodes:
        found.update(dict.fromkeys(name for name in node.reads if name not in made))
        made.update(node.writes)
    return list(found)
