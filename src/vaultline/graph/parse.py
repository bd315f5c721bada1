"""From files to nodes and arrays: parsing, external data, subgraph weights, order."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import helper, inliner, numpy_helper

from vaultline.core.errors import InputError
from vaultline.core.tensors import ITEM_BYTES
from vaultline.graph.structure import Array, Node, make_node, subgraphs


def read_proto(path: Path) -> onnx.ModelProto:
    """Parse a model file without its external data; model-local functions are inlined.

    Raises:
        InputError: no such file, or not an ONNX model.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise InputError(
            f"the model {path} cannot be read", got=error.strerror, remedy="check the path"
        ) from error
    except (DecodeError, ValueError) as error:
        raise _not_onnx(path, str(error)) from error
    if not model.graph.output or not model.opset_import:
        raise _not_onnx(path, "no graph with outputs, or no operator set")
    return inliner.inline_local_functions(model) if model.functions else model


def _not_onnx(path: Path, got: str) -> InputError:
    return InputError(
        f"{path} is not an ONNX model",
        got=got,
        expected="a serialised ModelProto",
        remedy="export the model to ONNX (torch.onnx.export, tf2onnx, ...) and give that file",
    )


def read_weights(graph: onnx.GraphProto, folder: Path) -> dict[str, Array]:
    """The initializers by name; external ones are maps of their files.

    Raises:
        InputError: sparse weights, or external data that is missing, short or outside the folder.
    """
    if graph.sparse_initializer:
        raise InputError(
            "the model has sparse weights", remedy="export the model again with dense weights"
        )
    return {tensor.name: _array(tensor, folder) for tensor in graph.initializer}


def _array(tensor: onnx.TensorProto, folder: Path) -> Array:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return _mapped(tensor, folder)
    return numpy_helper.to_array(tensor)


def _mapped(tensor: onnx.TensorProto, folder: Path) -> Array:
    """Map an external tensor. The location is the model author's word: it may not leave."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = (folder / entries.get("location", "")).resolve()
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    if dtype.name not in ITEM_BYTES:
        raise InputError(
            f"weight {tensor.name!r} has an element type that is not supported",
            got=dtype.name,
            expected="one of " + ", ".join(ITEM_BYTES),
        )
    shape = tuple(tensor.dims)
    count = int(np.prod(shape, dtype=np.int64))
    offset = int(entries.get("offset", "0"))
    inside = location.is_relative_to(folder.resolve())
    if not inside or not location.is_file():
        raise InputError(
            f"the external data of weight {tensor.name!r} cannot be read",
            got=entries.get("location", "no location"),
            expected="a file in the model's own folder",
            remedy="copy the data files beside the model under the names that it states",
        )
    if location.stat().st_size < offset + count * dtype.itemsize or offset < 0:
        raise InputError(
            f"the external data of weight {tensor.name!r} is cut short",
            got=f"{location.stat().st_size} bytes in {location.name}",
            expected=f"at least {offset + count * dtype.itemsize}",
            remedy="copy the data file again",
        )
    if count == 0:
        return np.empty(shape, dtype)
    # A view of plain type: ``np.memmap`` objects are slower to slice.
    return np.asarray(np.memmap(location, np.uint8, "r", offset, (count * dtype.itemsize,))).view(
        dtype
    ).reshape(shape)  # fmt: skip


def take_constants(
    graph: onnx.GraphProto, weights: dict[str, Array], folder: Path
) -> list[onnx.NodeProto]:
    """The nodes without tensor-valued ``Constant``, whose values join ``weights``.

    Constants and initializers inside of control flow move to the outer graph too (they become
    captures), so that no weight is left inside a node.
    """
    nodes = []
    for node in graph.node:
        value = _constant_value(node, folder)
        if value is not None:
            weights[node.output[0]] = value
            continue
        for inner in subgraphs(node):
            _hoist(inner, weights, folder)
        nodes.append(node)
    return nodes


def _constant_value(node: onnx.NodeProto, folder: Path) -> Array | None:
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    for attribute in node.attribute:
        if attribute.name == "value":
            return _array(attribute.t, folder)
        if attribute.name in ("value_float", "value_floats"):
            return np.asarray(helper.get_attribute_value(attribute), np.float32)
        if attribute.name in ("value_int", "value_ints"):
            return np.asarray(helper.get_attribute_value(attribute), np.int64)
    return None


def _hoist(graph: onnx.GraphProto, weights: dict[str, Array], folder: Path) -> None:
    """Move a subgraph's initializers and constants out, but what the subgraph itself returns."""
    returned = {value.name for value in graph.output} | {value.name for value in graph.input}
    kept_tensors, kept_nodes = [], []
    for tensor in graph.initializer:
        if tensor.name in returned or tensor.name in weights:
            kept_tensors.append(tensor)
        else:
            weights[tensor.name] = _array(tensor, folder)
    for node in graph.node:
        value = _constant_value(node, folder)
        if value is None or node.output[0] in returned or node.output[0] in weights:
            for inner in subgraphs(node):
                _hoist(inner, weights, folder)
            kept_nodes.append(node)
        else:
            weights[node.output[0]] = value
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept_tensors)
    graph.node.extend(kept_nodes)


def in_order(protos: Iterable[onnx.NodeProto], known: Iterable[str]) -> list[Node]:
    """Topological order, the file's own where that is one already.

    Args:
        known: names of inputs and weights.

    Raises:
        InputError: a node reads what nothing makes, two make the same, or there is a cycle.
    """
    ready, nodes = set(known), [make_node(proto) for proto in protos]
    made: set[str] = set(ready)
    for node in nodes:
        twice = made.intersection(node.writes)
        if twice:
            raise _bad_graph(f"tensor {sorted(twice)[0]!r} is made twice")
        made.update(node.writes)
    ordered: list[Node] = []
    while nodes:
        waiting = []
        for node in nodes:
            missing = [name for name in node.reads if name not in ready]
            lost = [name for name in missing if name not in made]
            if lost:
                raise _bad_graph(f"node {node.name!r} reads {lost[0]!r}, which nothing makes")
            if missing:
                waiting.append(node)
            else:
                ordered.append(node)
                ready.update(node.writes)
        if len(waiting) == len(nodes):
            raise _bad_graph(f"the nodes around {nodes[0].name!r} form a cycle")
        nodes = waiting
    return ordered


def _bad_graph(got: str) -> InputError:
    return InputError(
        "the model's graph is not valid",
        got=got,
        expected="a directed acyclic graph in which every tensor is made once",
        remedy="check the export with onnx.checker.check_model",
    )


def rename_reads(node: onnx.NodeProto, names: dict[str, str]) -> None:
    """Rename what a node reads from its scope, inside of its subgraphs too."""
    node.input[:] = [names.get(name, name) for name in node.input]
    for graph in subgraphs(node):
        own = {value.name for value in graph.input} | {item.name for item in graph.initializer}
        own.update(name for inner in graph.node for name in inner.output)
        visible = {old: new for old, new in names.items() if old not in own}
        for inner in graph.node:
            rename_reads(inner, visible)
        for value in graph.output:
            value.name = visible.get(value.name, value.name)


def returned(
    protos: list[onnx.NodeProto], graph: onnx.GraphProto, weights: dict[str, Array]
) -> list[onnx.NodeProto]:
    """A weight that is itself an output gets an Identity: outputs are made by nodes."""
    extra = []
    for value in graph.output:
        if value.name in weights:
            inner = f"{value.name}/constant"
            weights[inner] = weights.pop(value.name)
            for node in protos:
                rename_reads(node, {value.name: inner})
            extra.append(helper.make_node("Identity", [inner], [value.name]))
    return [*extra, *protos]


def domains(proto: onnx.NodeProto) -> set[str]:
    """The operator-set domains that a node and its subgraphs use."""
    inner = [domains(node) for graph in subgraphs(proto) for node in graph.node]
    return {proto.domain, *(domain for found in inner for domain in found)}
