"""Full-size models to measure with: real graphs, seeded weights, no download.

Nine graphs ship with the package ``onnx`` with their weights replaced by ``ConstantOfShape``; here
those become seeded values of a sane scale. MobileNetV2 (arXiv 1801.04381) is built from scratch.
Values are uniform, not normal: the generator's uniform floats are exact on every platform, so every
machine gets the same bytes and the same digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from vaultline.core.errors import InputError

ZOO: tuple[str, ...] = (
    "alexnet",
    "densenet121",
    "googlenet",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
    "mobilenetv2",
)
_LIGHT = {"alexnet": "bvlc_alexnet", "googlenet": "inception_v1"}
_VERSION = 1
#: Above this, weights go to a file beside the model, which loading maps instead of parsing.
_EXTERNAL_BYTES = 100 * 10**6
_Array = npt.NDArray[np.float32]


def build(name: str, out_dir: Path) -> Path:
    """Materialise a model under ``out_dir``, or find the one made earlier.

    Raises:
        InputError: no model of that name.
    """
    if name not in ZOO:
        raise InputError("no such model in the zoo", got=repr(name), expected=", ".join(ZOO))
    folder = out_dir / f"{name}-v{_VERSION}"
    path = folder / f"{name}.onnx"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    model = _mobilenetv2() if name == "mobilenetv2" else _materialise(name)
    model.graph.name = name
    onnx.checker.check_model(model)
    _save(model, path)
    return path


def _save(model: onnx.ModelProto, path: Path) -> None:
    """Write beside the final names first: a build that is interrupted leaves no half model."""
    data = path.with_suffix(".data")
    data.unlink(missing_ok=True)
    partial = path.with_suffix(".partial")
    large = model.ByteSize() > _EXTERNAL_BYTES
    onnx.save_model(
        model, partial, save_as_external_data=large, location=data.name, size_threshold=4096
    )
    partial.rename(path)


def _uniform(key: str, shape: Iterable[int], deviation: float, mean: float = 0.0) -> _Array:
    """Seeded uniform values with the given standard deviation and mean."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    values = np.random.Generator(np.random.PCG64(seed)).random(tuple(shape), dtype=np.float32)
    values -= np.float32(0.5)
    values *= np.float32(deviation * 12**0.5)
    if mean:
        values += np.float32(mean)
    return values


def _he(key: str, shape: tuple[int, ...], gain: float = 2.0) -> _Array:
    """He's scale (arXiv 1502.01852): activations keep their variance through ReLU."""
    return _uniform(key, shape, (gain / float(np.prod(shape[1:]))) ** 0.5)


def _materialise(name: str) -> onnx.ModelProto:
    folder = Path(onnx.__file__).parent / "backend/test/data/light"
    model = onnx.load(folder / f"light_{_LIGHT.get(name, name)}.onnx")
    graph = model.graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    roles = _roles(graph)
    shapes = {
        node.output[0]: tuple(int(side) for side in values[node.input[0]])
        for node in graph.node
        if node.op_type == "ConstantOfShape"
    }
    floats = {key: value.shape for key, value in values.items() if value.dtype == np.float32}
    shapes.update({key: shape for key, shape in floats.items() if key in roles})
    kept = [node for node in graph.node if node.op_type != "ConstantOfShape"]
    used = {tensor for node in kept for tensor in node.input}
    tensors = [
        numpy_helper.from_array(_weight(f"{name}/{key}", shapes[key], roles[key]), key)
        for key in shapes
        if key in used
    ]
    tensors += [t for t in graph.initializer if t.name in used and t.name not in shapes]
    inputs = [value for value in graph.input if value.name not in values]
    for field, items in (("node", kept), ("initializer", tensors), ("input", inputs)):
        graph.ClearField(field)
        getattr(graph, field).extend(items)
    model.ir_version = 8  # weights need not be listed as inputs
    return model


def _roles(graph: onnx.GraphProto) -> dict[str, str]:
    """What each weight is for: ``filter``, ``scale``, ``branch`` (scale before a sum), ``variance``
    or ``offset``."""
    summed = {tensor for node in graph.node if node.op_type == "Sum" for tensor in node.input}
    roles: dict[str, str] = {}
    alias: dict[str, str] = {}
    for node in graph.node:
        names = [alias.get(tensor, tensor) for tensor in node.input]
        if node.op_type in ("Unsqueeze", "Reshape"):
            alias[node.output[0]] = names[0]
        elif node.op_type == "BatchNormalization":
            scale = "branch" if node.output[0] in summed else "scale"
            kinds = (scale, "offset", "offset", "variance")
            roles.update(zip(names[1:], kinds, strict=True))
        elif node.op_type in ("Conv", "Gemm"):
            roles.update(zip(names[1:], ("filter", "offset"), strict=False))
        elif node.op_type in ("Mul", "Add"):
            roles[names[1]] = "scale" if node.op_type == "Mul" else "offset"
    return roles


def _weight(key: str, shape: tuple[int, ...], role: str) -> _Array:
    make: dict[str, Callable[[], _Array]] = {
        "filter": lambda: _he(key, shape),
        "scale": lambda: _uniform(key, shape, 0.1, mean=1.0),
        # Residual branches add up: a small scale keeps sixteen of them from growing.
        "branch": lambda: _uniform(key, shape, 0.05, mean=0.4),
        "variance": lambda: _uniform(key, shape, 0.1, mean=1.0),
        "offset": lambda: _uniform(key, shape, 0.05),
    }
    return make[role]()


def _mobilenetv2() -> onnx.ModelProto:
    """MobileNetV2 1.0 at 224 x 224, table 2 of the paper, with a dynamic batch."""
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, _Array] = {
        "zero": np.zeros((), np.float32),
        "six": np.full((), 6, np.float32),
    }

    def conv(
        source: str, name: str, channels: tuple[int, int], size: int, stride: int, *,
        groups: int = 1, clip: bool = True, branch: bool = False,
    ) -> str:  # fmt: skip
        into, out = channels
        gain = 2.0 if clip else 1.0
        weights[f"{name}.w"] = _he(f"mobilenetv2/{name}", (out, into // groups, size, size), gain)
        for part in ("scale", "offset", "mean", "variance"):
            role = {"scale": "branch" if branch else "scale", "mean": "offset"}.get(part, part)
            weights[f"{name}.{part}"] = _weight(f"mobilenetv2/{name}.{part}", (out,), role)
        pad = size // 2
        attributes: dict[str, Any] = {
            "kernel_shape": [size] * 2,
            "strides": [stride] * 2,
            "pads": [pad] * 4,
        }
        nodes.append(
            helper.make_node(
                "Conv", [source, f"{name}.w"], [f"{name}.conv"], group=groups, **attributes
            )
        )
        normalised = [f"{name}.{part}" for part in ("scale", "offset", "mean", "variance")]
        nodes.append(
            helper.make_node(
                "BatchNormalization", [f"{name}.conv", *normalised], [f"{name}.bn"], epsilon=1e-5
            )
        )
        if not clip:
            return f"{name}.bn"
        nodes.append(helper.make_node("Clip", [f"{name}.bn", "zero", "six"], [f"{name}.out"]))
        return f"{name}.out"

    def bottleneck(source: str, name: str, into: int, out: int, stride: int, factor: int) -> str:
        wide = into * factor
        hidden = source if factor == 1 else conv(source, f"{name}.expand", (into, wide), 1, 1)
        hidden = conv(hidden, f"{name}.depth", (wide, wide), 3, stride, groups=wide)
        residual = stride == 1 and into == out
        hidden = conv(hidden, f"{name}.project", (wide, out), 1, 1, clip=False, branch=residual)
        if not residual:
            return hidden
        nodes.append(helper.make_node("Add", [source, hidden], [f"{name}.sum"]))
        return f"{name}.sum"

    tensor, channels = conv("image", "stem", (3, 32), 3, 2), 32
    rows = (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),
        (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    )  # fmt: skip
    for row, (factor, out, repeats, first_stride) in enumerate(rows):
        for block in range(repeats):
            stride = first_stride if block == 0 else 1
            tensor = bottleneck(tensor, f"b{row}.{block}", channels, out, stride, factor)
            channels = out
    tensor = conv(tensor, "head", (320, 1280), 1, 1)
    weights["classes.w"] = _he("mobilenetv2/classes", (1000, 1280), 1.0)
    weights["classes.b"] = _uniform("mobilenetv2/classes.b", (1000,), 0.05)
    nodes += [
        helper.make_node("GlobalAveragePool", [tensor], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "classes.w", "classes.b"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "mobilenetv2",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["batch", 3, 224, 224])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 1000])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
