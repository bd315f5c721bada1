"""The plain use of ONNX Runtime: protobufs without weights, one thread, weights shared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from vaultline.core.errors import InputError
from vaultline.core.tensors import ITEM_BYTES, TensorSpec
from vaultline.graph.structure import (
    Array,
    Model,
    Node,
    value_info,
    weight_info,
)

IR_VERSION = 10
#: Of the engine; programs that are not portable run on no other.
VERSION = str(ort.__version__)
_PROVIDERS = ["CPUExecutionProvider"]
_TYPES = {
    "float": "float32",
    "double": "float64",
    **{name: name for name in ITEM_BYTES if name not in ("float32", "float64")},
}


def options(
    level: ort.GraphOptimizationLevel = ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    *,
    threads: int = 1,
) -> ort.SessionOptions:
    """Session options: few threads, no arena, quiet."""
    chosen = ort.SessionOptions()
    chosen.intra_op_num_threads = threads
    chosen.inter_op_num_threads = 1
    chosen.graph_optimization_level = level
    chosen.enable_cpu_mem_arena = False
    chosen.log_severity_level = 4
    return chosen


def session(model: bytes, chosen: ort.SessionOptions | None = None) -> ort.InferenceSession:
    """Load a graph.

    Raises:
        InputError: the engine refuses it: an unknown operator, a type error, an opset too new.
    """
    try:
        # The fallback to other providers would print to standard output and try the same again.
        return ort.InferenceSession(
            model, chosen or options(), providers=_PROVIDERS, enable_fallback=0
        )
    except Exception as error:  # the engine's errors share no base class of their own
        raise InputError(
            "the engine does not accept the model",
            got=" ".join(str(error).split())[:500],
            expected=f"operators and opsets that onnxruntime {ort.__version__} implements",
            remedy="export the model again with supported operators "
            "(onnx.version_converter lowers an opset)",
        ) from error


def proto(
    name: str,
    opsets: Mapping[str, int],
    nodes: Iterable[Node],
    inputs: Iterable[onnx.ValueInfoProto],
    outputs: Iterable[onnx.ValueInfoProto],
    initializers: Iterable[onnx.TensorProto],
) -> onnx.ModelProto:
    """Assemble a model protobuf."""
    graph = onnx.GraphProto(name=name)
    graph.node.extend(node.proto for node in nodes)
    graph.input.extend(inputs)
    graph.output.extend(outputs)
    graph.initializer.extend(initializers)
    imports = [helper.make_opsetid(domain, version) for domain, version in sorted(opsets.items())]
    return helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)


def external(name: str, array: Array, location: str, offset: int) -> onnx.TensorProto:
    """An initializer whose bytes lie elsewhere."""
    tensor = onnx.TensorProto(name=name, data_location=onnx.TensorProto.EXTERNAL)
    tensor.data_type = int(helper.np_dtype_to_tensor_dtype(array.dtype))
    tensor.dims.extend(array.shape)
    for key, value in (("location", location), ("offset", offset), ("length", array.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def used_weights(model: Model) -> dict[str, Array]:
    """The initializers that some node reads."""
    names = dict.fromkeys(name for node in model.nodes for name in node.reads)
    return {name: model.weights[name] for name in names if name in model.weights}


def computed(model: Model) -> list[TensorSpec]:
    """Outputs that nodes compute: all but those that are passed through."""
    fed = {spec.name for spec in model.inputs}
    return [spec for spec in model.outputs if spec.name not in fed]


def weightless(
    model: Model,
    *,
    outputs: Sequence[onnx.ValueInfoProto] | None = None,
    large: Literal["input", "external"] = "input",
) -> onnx.ModelProto:
    """The model with small constants inside and weights as inputs, or as external data in memory.

    Pass-through tensors are not outputs: ONNX has no graph output that is also an input.
    """
    weights = used_weights(model)
    small = {name: array for name, array in weights.items() if name in model.constants}
    inputs = [value_info(spec) for spec in model.inputs]
    inits = [numpy_helper.from_array(array, name) for name, array in small.items()]
    for name, array in weights.items():
        if name not in small and large == "input":
            inputs.append(weight_info(name, array))
        elif name not in small:
            inits.append(external(name, array, "memory", 0))
    wanted = outputs if outputs is not None else [value_info(spec) for spec in computed(model)]
    return proto(model.name, model.opsets, model.nodes, inputs, wanted, inits)


def large_weights(model: Model) -> dict[str, Array]:
    """The initializers that count as weights and that some node reads."""
    return {name: a for name, a in used_weights(model).items() if name not in model.constants}


def plain_session(model: Model, chosen: ort.SessionOptions | None = None) -> ort.InferenceSession:
    """A session without optimisations whose weights are fed on every run."""
    return session(weightless(model).SerializeToString(), chosen)


def run_plain(
    model: Model, feeds: Mapping[str, Array], loaded: ort.InferenceSession | None = None
) -> dict[str, Array]:
    """Run a model or segment as it stands: no optimisation, one thread, weights not copied.

    Args:
        feeds: a value for each of ``model.inputs``.
        loaded: a session of ``plain_session(model)`` to use again.

    Returns:
        A value for each of ``model.outputs``, those passed through included.
    """
    wanted = [spec.name for spec in computed(model)]
    given = {spec.name: feeds[spec.name] for spec in model.inputs}
    results: dict[str, Array] = {}
    if wanted:
        running = loaded or plain_session(model)
        accepted = {value.name for value in running.get_inputs()}
        values = {**given, **large_weights(model)}
        fed = {name: value for name, value in values.items() if name in accepted}
        results = dict(zip(wanted, running.run(wanted, fed), strict=True))
    return {
        spec.name: results[spec.name] if spec.name in results else given[spec.name]
        for spec in model.outputs
    }


def engine_specs(model: Model, tensors: Sequence[str]) -> dict[str, TensorSpec | str]:
    """What the engine infers of tensors: a static spec, or the reason why there is none.

    Raises:
        InputError: the engine does not accept the model.
    """
    wanted = list(dict.fromkeys((*(spec.name for spec in computed(model)), *tensors)))
    outputs = [onnx.ValueInfoProto(name=name) for name in wanted]
    running = session(weightless(model, outputs=outputs).SerializeToString())
    found = {value.name: _spec(value) for value in running.get_outputs()}
    # The engine states no sides both for scalars and for tensors of unknown rank.
    unclear = [
        name for name, spec in found.items() if isinstance(spec, TensorSpec) if not spec.shape
    ]
    if unclear:
        found.update(_probed(model, running, unclear))
    return found


def _probed(
    model: Model, running: ort.InferenceSession, tensors: list[str]
) -> dict[str, TensorSpec | str]:
    """Shapes of tensors of unknown rank (what a Loop carries) from two runs on different data."""
    random = np.random.default_rng(0)
    seen = []
    for scale in (0.0, 1.0):
        feeds = {
            spec.name: (random.standard_normal(spec.shape) * scale)
            .astype(spec.dtype if spec.dtype.startswith("float") else np.uint8)
            .astype(spec.dtype)
            for spec in model.inputs
        }
        try:
            results = running.run(tensors, {**feeds, **large_weights(model)})
        except Exception as error:  # made-up data may be out of range; the engine's errors vary
            return dict.fromkeys(tensors, f"its rank is not known, nor was found by a run: {error}")
        seen.append(results)
    return {
        name: TensorSpec(name=name, dtype=str(one.dtype), shape=tuple(one.shape))
        if one.shape == two.shape
        else f"its shape depends on the data: {one.shape}, {two.shape}"
        for name, one, two in zip(tensors, *seen, strict=True)
    }


def _spec(value: ort.NodeArg) -> TensorSpec | str:
    kind = value.type.removeprefix("tensor(").removesuffix(")")
    if kind not in _TYPES:
        return f"its type is {value.type}"
    if not all(isinstance(side, int) for side in value.shape):
        return f"its shape {value.shape} depends on the data"
    return TensorSpec(name=value.name, dtype=_TYPES[kind], shape=tuple(value.shape))


def optimise(model: Model, level: ort.GraphOptimizationLevel, folder: Path) -> onnx.ModelProto:
    """Let the engine optimise offline; large weights end up in ``folder``'s ``weights.bin``."""
    weights = large_weights(model)
    chosen = options(level)
    chosen.optimized_model_filepath = str(folder / "optimised.onnx")
    for key, value in (
        ("optimized_model_external_initializers_file_name", "weights.bin"),
        ("optimized_model_external_initializers_min_size_in_bytes", "1024"),
        ("disable_prepacking", "1"),
    ):
        chosen.add_session_config_entry(f"session.{key}", value)
    # ``ortvalue_from_numpy`` shares the memory of contiguous arrays; keep them while it is used.
    arrays = [np.ascontiguousarray(array) for array in weights.values()]
    if arrays:
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays]
        chosen.add_external_initializers(list(weights), values)
    session(weightless(model, large="external").SerializeToString(), chosen)
    return onnx.load(folder / "optimised.onnx", load_external_data=False)
