"""Batch normalisation followed by a scale and an offset per channel is one batch normalisation.

Caffe's BatchNorm and Scale layers arrive as BatchNormalization, Mul, Add. Where no convolution
comes before to absorb them (DenseNet), the engine runs three passes over the tensor and leaves the
blocked layout for two of them.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx

from vaultline.graph.structure import Array, Model, Node, make_node, rebuilt


def apply(model: Model) -> Model:
    """Fold Mul and Add by per-channel weights into the batch normalisation that feeds them."""
    readers = Counter(name for node in model.nodes for name in node.reads)
    readers.update(spec.name for spec in model.outputs)
    weights = dict(model.weights)
    nodes: list[Node] = []
    place: dict[str, int] = {}
    for node in model.nodes:
        source = node.proto.input[0] if node.proto.input else ""
        factor = _channels(node, model) if readers[source] == 1 and source in place else None
        if factor is None:
            if _inference_norm(node, model):
                place[node.writes[0]] = len(nodes)
            nodes.append(node)
            continue
        index = place.pop(source)
        nodes[index] = _folded(nodes[index], node, factor, weights)
        place[node.writes[0]] = index
    return rebuilt(model, nodes, weights, model.specs)


def _inference_norm(node: Node, model: Model) -> bool:
    return (
        node.op == "BatchNormalization"
        and len(node.proto.output) == 1
        and all(name in model.weights for name in node.proto.input[1:])
    )


def _channels(node: Node, model: Model) -> Array | None:
    """The operand of Mul or Add as a vector over channels, or None if it is anything else."""
    if node.op not in ("Mul", "Add") or len(node.proto.input) != 2:
        return None
    array = model.weights.get(node.proto.input[1])
    spec = model.specs.get(node.writes[0])
    if array is None or spec is None or len(spec.shape) < 2:
        return None
    full = (1,) * (len(spec.shape) - array.ndim) + array.shape
    if len(full) != len(spec.shape) or any(
        side != 1 for axis, side in enumerate(full) if axis != 1
    ):
        return None
    return np.broadcast_to(array.reshape(-1), (spec.shape[1],))


def _folded(norm: Node, node: Node, factor: Array, weights: dict[str, Array]) -> Node:
    """``(s * n + b) * f = (s * f) * n + b * f``; an Add touches the offset only."""
    proto = onnx.NodeProto()
    proto.CopyFrom(norm.proto)
    result = node.writes[0]
    scale, offset = weights[proto.input[1]], weights[proto.input[2]]
    if node.op == "Mul":
        proto.input[1] = f"{result}/scale"
        weights[proto.input[1]] = scale * factor
    proto.input[2] = f"{result}/offset"
    weights[proto.input[2]] = offset * factor if node.op == "Mul" else offset + factor
    proto.output[0] = result
    return make_node(proto)
