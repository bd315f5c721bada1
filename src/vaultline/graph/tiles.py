"""Large weights, cut into tiles: of output columns (Gemm, MatMul), of output channels (Conv)."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from vaultline.core.tensors import TensorSpec
from vaultline.graph.steps import attributes
from vaultline.graph.structure import Array, Model, Node, make_node, rebuilt

_TILED = frozenset({"Gemm", "com.microsoft.FusedGemm", "MatMul"})
#: Tiles are multiples of this many outputs: one vector register's worth of floats.
_MULTIPLE = 16
_CONV = frozenset({"Conv", "com.microsoft.FusedConv", "com.microsoft.nchwc.Conv"})
#: Tiles of output channels are multiples of this many: what the engine's convolution computes
#: together, four blocks of sixteen.
_CHANNELS = 64


def tiled(model: Model, step_bytes: int) -> tuple[Model, frozenset[str]]:
    """Cut every matrix larger than ``step_bytes``; also return the outputs of the tiles' nodes."""
    nodes: list[Node] = []
    weights, specs = dict(model.weights), dict(model.specs)
    tiles: list[str] = []
    for node in model.nodes:
        widths = _widths(node, model, step_bytes)
        if len(widths) < 2:
            nodes.append(node)
            continue
        protos = _cut(node, widths, weights, specs)
        tiles += [proto.output[0] for proto in protos[:-1]]
        nodes += [make_node(proto) for proto in protos]
    return rebuilt(model, nodes, weights, specs), frozenset(tiles)


def can_be_tiled(node: Node, model: Model) -> bool:
    """Whether a node is a Gemm or MatMul by a matrix that can be cut."""
    return len(_widths(node, model, 1)) > 1


def _widths(node: Node, model: Model, step_bytes: int) -> list[int]:
    """Outputs per tile: equal but for the last, which may be smaller."""
    if node.op not in _TILED or node.writes[0] not in model.specs:
        return []
    matrix = model.weights.get(node.proto.input[1])
    if matrix is None or matrix.ndim != 2 or node.proto.input[0] in model.weights:
        return []
    outputs = model.specs[node.writes[0]].shape[-1]
    bias = model.weights.get(node.proto.input[2]) if len(node.proto.input) > 2 else None
    if len(node.proto.input) > 2 and node.proto.input[2] and bias is None:
        return []
    total = matrix.nbytes + (bias.nbytes if bias is not None else 0)
    if total <= step_bytes:
        return []
    most = max(_round_down(step_bytes * outputs // total), 1)
    count = -(-outputs // most)
    width = min(most, -(-outputs // count // _MULTIPLE) * _MULTIPLE or most)
    return [min(width, outputs - start) for start in range(0, outputs, width)]


def _round_down(width: int) -> int:
    return width // _MULTIPLE * _MULTIPLE if width >= _MULTIPLE else width


def _cut(
    node: Node, widths: list[int], weights: dict[str, Array], specs: dict[str, TensorSpec]
) -> list[onnx.NodeProto]:
    """One node per tile and a Concat. Tiles are contiguous: that is how they will be streamed."""
    source = node.proto
    result = specs[source.output[0]]
    matrix = weights[source.input[1]]
    by_rows = bool(attributes(node).get("transB", 0))
    protos, start = [], 0
    for index, width in enumerate(widths):
        proto = onnx.NodeProto()
        proto.CopyFrom(source)
        name = f"{result.name}/tile{index}"
        part = matrix[start : start + width] if by_rows else matrix[:, start : start + width]
        # Another node may cut the same weight otherwise; one that cuts it alike shares the tile.
        proto.input[1] = f"{source.input[1]}/{'rows' if by_rows else 'columns'}{start}+{width}"
        weights[proto.input[1]] = np.ascontiguousarray(part)
        _cut_bias(proto, weights, start, width)
        proto.output[0] = name
        shape = (*result.shape[:-1], width)
        specs[name] = TensorSpec(name=name, dtype=result.dtype, shape=shape)
        protos.append(proto)
        start += width
    names = [proto.output[0] for proto in protos]
    axis = len(result.shape) - 1
    return [*protos, helper.make_node("Concat", names, [result.name], axis=axis)]


def _cut_bias(proto: onnx.NodeProto, weights: dict[str, Array], start: int, width: int) -> None:
    """The tile's share of a bias, unless one value serves all outputs."""
    if len(proto.input) < 3 or not proto.input[2]:
        return
    bias = weights[proto.input[2]]
    if bias.ndim == 0 or bias.shape[-1] == 1:
        return
    proto.input[2] = f"{proto.input[2]}/columns{start}+{width}"
    weights[proto.input[2]] = np.ascontiguousarray(bias[..., start : start + width])


def conv_tile_bytes(node: Node, model: Model) -> int:
    """The least bytes of a tile of a convolution's weights; 0 if it can't be cut."""
    if node.op not in _CONV or attributes(node).get("group", 1) != 1:
        return 0
    operands = [name for name in node.proto.input[1:3] if name]
    if any(name not in model.weights for name in operands) or node.writes[0] not in model.specs:
        return 0
    kernel, result = model.weights[operands[0]], model.specs[node.writes[0]]
    channels = kernel.shape[0]
    if result.shape[:2] != (1, channels) or channels < 2 * _CHANNELS:
        return 0
    return int(-(-kernel.nbytes * _CHANNELS // channels))


def conv_tiles(
    node: Node,
    tile_bytes: int,
    weights: dict[str, Array],
    specs: dict[str, TensorSpec],
    opset: int,
) -> list[Node]:
    """A convolution as one node per tile of output channels, and the Concat of their results.

    In the engine's blocked layout such tiles of weights and results are contiguous too.

    Args:
        tile_bytes: the largest tile, at least ``conv_tile_bytes``.
    """
    source = node.proto
    result = specs[source.output[0]]
    kernel, channels = weights[source.input[1]], result.shape[1]
    width = max(tile_bytes * channels // kernel.nbytes // _CHANNELS, 1) * _CHANNELS
    count = -(-channels // width)
    width = -(-channels // count // _CHANNELS) * _CHANNELS
    protos: list[onnx.NodeProto] = []
    for index, start in enumerate(range(0, channels, width)):
        stop = min(start + width, channels)
        proto = onnx.NodeProto()
        proto.CopyFrom(source)
        proto.name = f"{node.name}/tile{index}"
        for position in (1, 2):
            if position < len(source.input) and source.input[position]:
                # Another node may cut the same weight otherwise.
                name = f"{source.input[position]}/channels{start}-{stop}"
                weights[name] = weights[source.input[position]][start:stop]
                proto.input[position] = name
        shape = (1, stop - start, *result.shape[2:])
        if len(source.input) > 3 and source.input[3]:
            name = f"{result.name}/sum{index}"
            specs[name] = TensorSpec(name=name, dtype=result.dtype, shape=shape)
            protos.append(slice_node(source.input[3], name, 1, (start, stop), weights, opset))
            proto.input[3] = name
        proto.output[0] = f"{result.name}/tile{index}"
        specs[proto.output[0]] = TensorSpec(name=proto.output[0], dtype=result.dtype, shape=shape)
        protos.append(proto)
    names = [proto.output[0] for proto in protos if proto.op_type == source.op_type]
    protos.append(helper.make_node("Concat", names, [result.name], axis=1))
    return [make_node(proto) for proto in protos]


def slice_node(
    source: str,
    target: str,
    axis: int,
    places: tuple[int, int],
    weights: dict[str, Array],
    opset: int,
) -> onnx.NodeProto:
    """A Slice along one axis: its operands became inputs in operator set 10."""
    start, stop = places
    if opset < 10:
        return helper.make_node(
            "Slice", [source], [target], starts=[start], ends=[stop], axes=[axis]
        )
    operands = []
    for what, value in (("first", start), ("last", stop), ("axis", axis)):
        operands.append(f"{target}/{what}")
        weights[operands[-1]] = np.asarray([value], np.int64)
    return helper.make_node("Slice", [source, *operands], [target])
