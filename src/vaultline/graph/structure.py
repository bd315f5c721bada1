"""A model as this package sees it: nodes in order, weights as arrays, static tensor specs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from vaultline.core.errors import InputError
from vaultline.core.serde import canonical_json
from vaultline.core.tensors import TensorSpec

Array = npt.NDArray[Any]
#: An initializer stays a constant of its graph only if it has one element, or is of 64-bit integers
#: or booleans and at most this large: shapes, axes, pads, clip bounds, which operators insist on
#: knowing; or if it is such a factor of an operator that resizes. All else is a weight.
CONSTANT_BYTES_MAX = 256


def _is_structure(array: Array) -> bool:
    structural = array.dtype in (np.int64, np.bool_) and array.nbytes <= CONSTANT_BYTES_MAX
    return array.size <= 1 or structural


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node of the topological order; control flow is one node with its subgraphs inside.

    Attributes:
        proto: the ONNX node; never changed once it is here.
        reads: tensors that it needs, without repeats: its inputs and what its subgraphs capture.
        writes: tensors that it makes.
        weight_bytes: bytes of the weights that it reads (a shared weight counts at each reader).
        output_bytes: bytes of what it makes, as far as shapes are known.
    """

    proto: onnx.NodeProto
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    weight_bytes: int = 0
    output_bytes: int = 0

    @property
    def name(self) -> str:
        """The node's name, or its first output's where it has none."""
        return self.proto.name or (self.writes[0] if self.writes else self.op)

    @property
    def op(self) -> str:
        """The operator, with its domain unless that is ONNX's own."""
        domain = self.proto.domain
        return self.proto.op_type if domain in ("", "ai.onnx") else f"{domain}.{self.proto.op_type}"


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model, or a segment of one. Immutable by convention; arrays may be maps of files.

    Attributes:
        inputs, outputs: what is fed and fetched, in order. A tensor in both is passed through.
        nodes: in topological order.
        weights: every initializer by name, small constants included.
        specs: of every tensor whose shape is known and static; ``unknown`` says why others aren't.
    """

    name: str
    opsets: Mapping[str, int]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    nodes: tuple[Node, ...]
    weights: Mapping[str, Array]
    specs: Mapping[str, TensorSpec]
    unknown: Mapping[str, str] = field(default_factory=dict)
    origin: Model | None = field(default=None, repr=False)

    @cached_property
    def constants(self) -> frozenset[str]:
        """Initializers that are small operands of structure rather than weights."""
        factors = {
            name
            for node in self.nodes
            if node.op in ("Resize", "Upsample")
            for name in node.proto.input[1:]
        }
        return frozenset(
            name
            for name, array in self.weights.items()
            if _is_structure(array) or (name in factors and array.nbytes <= CONSTANT_BYTES_MAX)
        )

    @property
    def node_count(self) -> int:
        """Nodes in the topological order; cuts are numbered 0 to this."""
        return len(self.nodes)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all initializers, each once."""
        return sum(array.nbytes for array in self.weights.values())

    def shape_of(self, tensor: str) -> tuple[int, ...]:
        """The static shape of a tensor, batch included.

        Raises:
            InputError: no such tensor, or its shape is not known before the model runs.
        """
        if tensor in self.weights:
            return tuple(self.weights[tensor].shape)
        if tensor not in self.specs:
            reason = self.unknown.get(tensor, "the model has no such tensor")
            raise InputError(f"the shape of tensor {tensor!r} is not known", got=reason)
        return self.specs[tensor].shape

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of structure and weights as the user's file states them.

        It does not depend on where the weights are stored, on node names or on documentation.
        """
        return self.origin.digest if self.origin else _digest(self)


def _digest(model: Model) -> str:
    """Hash the structure, then every weight in the order of names."""
    structure = {
        "opsets": dict(model.opsets),
        "inputs": [[spec.name, spec.dtype] for spec in model.inputs],
        "outputs": [spec.name for spec in model.outputs],
        "nodes": [_structure(node.proto).hex() for node in model.nodes],
        "weights": [
            [name, str(array.dtype), list(array.shape)]
            for name, array in sorted(model.weights.items())
        ],
    }
    state = hashlib.sha256(canonical_json(structure))
    for _, array in sorted(model.weights.items()):
        state.update(raw_bytes(array))
    return state.hexdigest()


def _structure(proto: onnx.NodeProto) -> bytes:
    """A node without what does not change its meaning; attributes by name."""
    plain = onnx.NodeProto()
    plain.CopyFrom(proto)
    attributes = sorted(proto.attribute, key=lambda attribute: attribute.name)
    for name in ("name", "doc_string", "attribute"):
        plain.ClearField(name)
    plain.attribute.extend(attributes)
    return bytes(plain.SerializeToString(deterministic=True))


def raw_bytes(array: Array) -> memoryview:
    """An array's bytes in row-major order, without a copy where it is contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def subgraphs(proto: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs held directly by a node's attributes (If, Loop, Scan, ...)."""
    for attribute in proto.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def captures(proto: onnx.NodeProto) -> list[str]:
    """Names of the outer scope that a node's subgraphs read, without repeats, in order."""
    found: dict[str, None] = {}
    for graph in subgraphs(proto):
        found.update(dict.fromkeys(_free_names(graph)))
    return list(found)


def _free_names(graph: onnx.GraphProto) -> Iterator[str]:
    defined = {value.name for value in graph.input} | {item.name for item in graph.initializer}
    for node in graph.node:
        for name in (*node.input, *captures(node)):
            if name and name not in defined:
                yield name
        defined.update(node.output)
    yield from (value.name for value in graph.output if value.name not in defined)


def make_node(proto: onnx.NodeProto) -> Node:
    """Wrap a node: what it reads, captures included, and what it writes."""
    reads = dict.fromkeys(name for name in (*proto.input, *captures(proto)) if name)
    return Node(
        proto=proto, reads=tuple(reads), writes=tuple(name for name in proto.output if name)
    )


def with_sizes(
    nodes: Iterable[Node], weights: Mapping[str, Array], specs: Mapping[str, TensorSpec]
) -> tuple[Node, ...]:
    """The nodes with their weight and output bytes filled in."""
    return tuple(
        Node(
            proto=node.proto,
            reads=node.reads,
            writes=node.writes,
            weight_bytes=sum(weights[name].nbytes for name in node.reads if name in weights),
            output_bytes=sum(specs[name].nbytes for name in node.writes if name in specs),
        )
        for node in nodes
    )


def element_type(dtype: str) -> int:
    """ONNX's number of an element type of a ``TensorSpec``."""
    if dtype == "bfloat16":
        return onnx.TensorProto.BFLOAT16
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def value_info(spec: TensorSpec, *, symbolic: str | None = None) -> onnx.ValueInfoProto:
    """A graph input or output; ``symbolic`` names its first side instead of fixing it."""
    shape: list[int | str] = list(spec.shape)
    if symbolic is not None:
        shape[0] = symbolic
    return helper.make_tensor_value_info(spec.name, element_type(spec.dtype), shape)


def weight_info(name: str, array: Array) -> onnx.ValueInfoProto:
    """A graph input that takes a weight."""
    number = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, int(number), array.shape)


def rebuilt(
    model: Model,
    nodes: Iterable[Node],
    weights: Mapping[str, Array],
    specs: Mapping[str, TensorSpec],
) -> Model:
    """The model with other nodes, weights and specs between the same inputs and outputs."""
    return replace(
        model, nodes=with_sizes(nodes, weights, specs), weights=weights, specs=specs, origin=None
    )
