"""Static shapes: fixing dynamic inputs, inferring the rest without touching the weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, shape_inference

from vaultline.core.errors import InputError
from vaultline.core.tensors import ITEM_BYTES, TensorSpec
from vaultline.graph import engine
from vaultline.graph.structure import Model

_REMEDY = "give its full shape, for example --input-shape {name}=1,3,224,224"


def fixed_inputs(
    values: Sequence[onnx.ValueInfoProto], given: Mapping[str, tuple[int, ...]]
) -> tuple[TensorSpec, ...]:
    """Specs of the model's inputs: a symbolic first side is the batch and becomes 1.

    Raises:
        InputError: another side is open and no shape was given, or a given one does not fit.
    """
    unknown = [name for name in given if name not in {value.name for value in values}]
    if unknown:
        raise InputError(
            "a shape was given for an input that the model does not have",
            got=unknown[0],
            expected="one of " + ", ".join(value.name for value in values),
        )
    symbols: dict[str, int] = {}
    for value in values:
        for dim, side in zip(value.type.tensor_type.shape.dim, given.get(value.name, ())):  # noqa: B905
            if dim.dim_param:
                symbols[dim.dim_param] = side
    return tuple(_fixed(value, given.get(value.name), symbols) for value in values)


def _fixed(
    value: onnx.ValueInfoProto, given: tuple[int, ...] | None, symbols: Mapping[str, int]
) -> TensorSpec:
    kind = value.type.tensor_type
    name = value.name
    if not value.type.HasField("tensor_type") or not kind.elem_type:
        raise InputError(f"the model's input {name!r} is not a tensor", expected="tensors only")
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
    if dtype not in ITEM_BYTES:
        raise InputError(
            f"the model's input {name!r} has an element type that is not supported",
            got=dtype,
            expected="one of " + ", ".join(ITEM_BYTES),
        )
    if not kind.HasField("shape"):
        if given is None:
            raise _open(name, "no shape at all")
        return TensorSpec(name=name, dtype=dtype, shape=given)
    sides = [_side(dim, index, symbols) for index, dim in enumerate(kind.shape.dim)]
    if given is None:
        known = [side for side in sides if side is not None]
        if len(known) < len(sides):
            raise _open(name, _text(kind.shape.dim))
        return TensorSpec(name=name, dtype=dtype, shape=tuple(known))
    stated = [dim.dim_value if dim.dim_value > 0 else None for dim in kind.shape.dim]
    fits = len(given) == len(stated) and all(
        side in (None, got) and got > 0 for side, got in zip(stated, given, strict=True)
    )
    if not fits:
        raise InputError(
            f"the shape given for input {name!r} does not fit the model",
            got=str(given),
            expected=_text(kind.shape.dim),
        )
    return TensorSpec(name=name, dtype=dtype, shape=given)


def _side(
    dim: onnx.TensorShapeProto.Dimension, index: int, symbols: Mapping[str, int]
) -> int | None:
    if dim.dim_value > 0:
        return dim.dim_value
    if dim.dim_param in symbols:
        return symbols[dim.dim_param]
    return 1 if index == 0 else None


def _open(name: str, got: str) -> InputError:
    return InputError(
        f"the shape of the model's input {name!r} is open",
        got=got,
        expected="static sides, the first one (the batch) excepted",
        remedy=_REMEDY.format(name=name),
    )


def _text(dims: Iterable[onnx.TensorShapeProto.Dimension]) -> str:
    return "[" + ", ".join(dim.dim_param or str(dim.dim_value or "?") for dim in dims) + "]"


def inferred(model: Model) -> dict[str, TensorSpec]:
    """What ONNX's own shape inference finds; a broken model yields nothing (the engine says why).

    Weights take part by shape only, small constants by value.
    """
    outputs = [onnx.ValueInfoProto(name=spec.name) for spec in engine.computed(model)]
    plain = engine.weightless(model, outputs=outputs)
    specs = {spec.name: spec for spec in model.inputs}
    try:
        graph = shape_inference.infer_shapes(plain, data_prop=True).graph
    except (shape_inference.InferenceError, RuntimeError, ValueError):
        return specs
    for value in (*graph.value_info, *graph.output):
        spec = _static(value)
        if spec is not None and spec.name not in model.weights:
            specs[spec.name] = spec
    return specs


def _static(value: onnx.ValueInfoProto) -> TensorSpec | None:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not kind.elem_type or not kind.HasField("shape"):
        return None
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
    dims = kind.shape.dim
    if dtype not in ITEM_BYTES or not all(dim.HasField("dim_value") for dim in dims):
        return None
    return TensorSpec(name=value.name, dtype=dtype, shape=tuple(dim.dim_value for dim in dims))
