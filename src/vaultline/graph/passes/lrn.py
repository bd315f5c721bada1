"""Local response normalisation as a convolution.

The engine's LRN is scalar code. The sum over a window of channels is a 1x1 convolution with a
banded matrix, which is vectorised; ``x ** 0.75`` is two square roots.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from vaultline.core.tensors import TensorSpec
from vaultline.graph.structure import Array, Model, Node, make_node, rebuilt

#: The matrix has channels^2 elements and costs channels^2 multiplications a pixel: above this the
#: engine's own operator wins.
_CHANNELS_MAX = 512


def apply(model: Model) -> Model:
    """Replace every LRN over a known, moderate number of channels."""
    nodes: list[Node] = []
    weights, specs = dict(model.weights), dict(model.specs)
    for node in model.nodes:
        spec = model.specs.get(node.writes[0])
        if node.op != "LRN" or spec is None or not _fits(spec):
            nodes.append(node)
            continue
        nodes += [make_node(proto) for proto in _replacement(node, spec, weights, specs)]
    return rebuilt(model, nodes, weights, specs)


def _fits(spec: TensorSpec) -> bool:
    return len(spec.shape) == 4 and spec.dtype == "float32" and spec.shape[1] <= _CHANNELS_MAX


def _band(channels: int, size: int, scale: float) -> Array:
    """Element (i, j) is ``scale`` where channel j lies in the window around channel i."""
    row, column = np.indices((channels, channels))
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    inside = (column >= row - before) & (column <= row + after)
    return np.where(inside, np.float32(scale), np.float32(0))[:, :, None, None]


def _replacement(
    node: Node, spec: TensorSpec, weights: dict[str, Array], specs: dict[str, TensorSpec]
) -> list[onnx.NodeProto]:
    given = {item.name: helper.get_attribute_value(item) for item in node.proto.attribute}
    size, beta = int(given["size"]), float(given.get("beta", 0.75))
    scale, bias = float(given.get("alpha", 1e-4)) / size, float(given.get("bias", 1.0))
    source, result = node.proto.input[0], node.proto.output[0]
    channels = spec.shape[1]

    def inner(suffix: str) -> str:
        name = f"{result}/lrn/{suffix}"
        specs[name] = TensorSpec(name=name, dtype=spec.dtype, shape=spec.shape)
        return name

    band, offset = f"{result}/lrn/band", f"{result}/lrn/bias"
    weights[band] = _band(channels, size, scale)
    weights[offset] = np.full(channels, bias, np.float32)
    square, total = inner("square"), inner("sum")
    made = [
        helper.make_node("Mul", [source, source], [square]),
        helper.make_node("Conv", [square, band, offset], [total], kernel_shape=[1, 1]),
    ]
    if beta in (0.5, 0.75):
        root = power = inner("root")
        made.append(helper.make_node("Sqrt", [total], [root]))
        if beta == 0.75:
            fourth, power = inner("fourth"), inner("power")
            made.append(helper.make_node("Sqrt", [root], [fourth]))
            made.append(helper.make_node("Mul", [root, fourth], [power]))
    else:
        exponent, power = f"{result}/lrn/beta", inner("power")
        weights[exponent] = np.asarray(beta, np.float32)
        made.append(helper.make_node("Pow", [total, exponent], [power]))
    return [*made, helper.make_node("Div", [source, power], [result])]
