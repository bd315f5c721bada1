"""Loading a model: checked, its shapes fixed, its constant parts folded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from onnx import numpy_helper

from vaultline.core.errors import InputError, VaultlineError
from vaultline.core.tensors import TensorSpec
from vaultline.graph import engine, fold, parse, shapes
from vaultline.graph.structure import Model, Node, value_info, with_sizes

__all__ = ["Model", "Node", "TensorSpec", "load_model", "save"]


def load_model(path: Path, *, input_shapes: Mapping[str, tuple[int, ...]] | None = None) -> Model:
    """Load and check an ONNX model.

    Constants become initializers, what depends on constants alone is computed, symbolic first
    sides (the batch) become 1, every shape that can be known is. Weights stay in their files,
    mapped, so the model may be larger than 2 GiB.

    Args:
        input_shapes: full shapes of inputs whose sides the file leaves open.

    Raises:
        InputError: not ONNX, an unknown operator, or a shape that has to be given.
    """
    try:
        return _load(path, input_shapes or {})
    except VaultlineError:
        raise
    # A damaged file passes the parser and fails anywhere in the libraries behind it, whose
    # errors share no base class.
    except Exception as error:
        raise InputError(
            f"the model {path} is damaged or uses ONNX in a way that is not supported",
            got=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            expected="a model that onnx.checker.check_model accepts",
            remedy="check the file, and export or copy it again",
        ) from error


def _load(path: Path, input_shapes: Mapping[str, tuple[int, ...]]) -> Model:
    source = parse.read_proto(path)
    graph = source.graph
    weights = parse.read_weights(graph, path.parent)
    protos = parse.returned(parse.take_constants(graph, weights, path.parent), graph, weights)
    listed = [value for value in graph.input if value.name not in weights]
    if not listed:
        raise InputError(
            "the model has no input, so there is nothing to send it",
            got="weights alone" if weights else "no inputs and no weights",
            expected="at least one input that changes from frame to frame",
            remedy="export the model with its input as a graph input",
        )
    inputs = shapes.fixed_inputs(listed, dict(input_shapes))
    known = [*weights, *(spec.name for spec in inputs)]
    nodes = parse.in_order(protos, known)
    origin = Model(
        name=graph.name or path.stem,
        opsets={_domain(item.domain): item.version for item in source.opset_import},
        inputs=inputs,
        outputs=tuple(_placeholder(value.name) for value in graph.output),
        nodes=tuple(nodes),
        weights=weights,
        specs={},
    )
    _check_outputs(origin)
    return _finish(fold.folded(origin), origin)


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _placeholder(name: str) -> TensorSpec:
    """An output whose type and shape are not inferred yet."""
    return TensorSpec(name=name, dtype="uint8", shape=())


def _check_outputs(model: Model) -> None:
    made = {name for node in model.nodes for name in node.writes}
    made.update(spec.name for spec in model.inputs)
    lost = [spec.name for spec in model.outputs if spec.name not in made]
    if lost:
        raise InputError(
            "the model has an output that nothing makes",
            got=lost[0],
            remedy="check the export with onnx.checker.check_model",
        )


def _finish(model: Model, origin: Model) -> Model:
    """Infer what is left with the engine, which also checks every operator."""
    open_names = [name for node in model.nodes for name in node.writes if name not in model.specs]
    found = engine.engine_specs(model, open_names)
    specs = {**model.specs, **{n: s for n, s in found.items() if isinstance(s, TensorSpec)}}
    unknown = {n: s for n, s in found.items() if isinstance(s, str)}
    outputs = []
    for spec in model.outputs:
        if spec.name not in specs:
            raise InputError(
                f"the shape of the model's output {spec.name!r} is not known before it runs",
                got=unknown.get(spec.name, "no shape"),
                expected="a static shape, since frames have one size",
                remedy="give --input-shape for every dynamic input, or cut off the "
                "data-dependent end of the model",
            )
        outputs.append(specs[spec.name])
    return replace(
        model,
        outputs=tuple(outputs),
        specs=specs,
        unknown=unknown,
        nodes=with_sizes(model.nodes, model.weights, specs),
        origin=origin,
    )


def save(model: Model, path: Path) -> None:
    """Write a model or segment as an ONNX file; more than 1 GiB of weights go beside it.

    Raises:
        InputError: the model passes an input through, which ONNX cannot express in a file
            without a node.
    """
    through = [spec.name for spec in model.outputs if spec in model.inputs]
    if through:
        raise InputError(
            "a segment with pass-through tensors has no file form",
            got=through[0],
            remedy="save another segment, or the whole model",
        )
    weights = engine.used_weights(model)
    beside = sum(array.nbytes for array in weights.values()) > 1 << 30
    tensors = []
    if beside:
        location = path.with_suffix(".data")
        with location.open("wb") as data:
            for name, array in weights.items():
                data.write(b"\0" * (-data.tell() % 4096))
                tensors.append(engine.external(name, array, location.name, data.tell()))
                np.ascontiguousarray(array).tofile(data)
    else:
        tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    inputs = [value_info(spec) for spec in model.inputs]
    outputs = [value_info(spec) for spec in model.outputs]
    whole = engine.proto(model.name, model.opsets, model.nodes, inputs, outputs, tensors)
    path.write_bytes(whole.SerializeToString())
