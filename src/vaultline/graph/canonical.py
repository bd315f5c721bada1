"""Step graphs under canonical names, so that equal steps are equal bytes and share a session."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from vaultline.core.tensors import TensorSpec
from vaultline.graph import engine
from vaultline.graph.steps import reads_of
from vaultline.graph.structure import (
    Array,
    Model,
    Node,
    make_node,
    subgraphs,
    value_info,
    weight_info,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepGraph:
    """A step's graph, and what its inputs and outputs stand for: (graph's name, model's name)."""

    graph: bytes
    feeds: tuple[tuple[str, str], ...]
    weights: tuple[tuple[str, str], ...]
    fetches: tuple[tuple[str, str], ...]


def step_graph(model: Model, nodes: Iterable[Node], kept: set[str], stackable: bool) -> StepGraph:
    """Serialise nodes as a graph whose weights are inputs.

    Args:
        kept: tensors that are to be outputs of the graph.
        stackable: leave the first side of every frame tensor open.
    """
    nodes = list(nodes)
    constants: dict[str, Array] = {}
    if stackable:
        nodes = [_open_rows(node, model, constants) for node in nodes]
    known = {**model.weights, **constants}
    names: dict[str, str] = {}
    feeds: list[tuple[str, str]] = []
    weights: list[tuple[str, str]] = []
    small: list[tuple[str, str]] = []
    for name in reads_of(nodes):
        if name not in known:
            names[name] = f"x{len(feeds)}"
            feeds.append((names[name], name))
        elif name in constants or name in model.constants:
            names[name] = f"c{len(small)}"
            small.append((names[name], name))
        else:
            names[name] = f"w{len(weights)}"
            weights.append((names[name], name))
    results = [name for node in nodes for name in node.writes if name in kept]
    names.update({name: f"y{index}" for index, name in enumerate(results)})
    fetches = tuple((names[name], name) for name in results)
    renamer = _Renamer()
    protos = [renamer.node(node.proto, names) for node in nodes]
    symbol = "frames" if stackable else None
    inputs = [value_info(_as(model, name, alias), symbolic=symbol) for alias, name in feeds]
    inputs += [weight_info(alias, known[name]) for alias, name in weights]
    graph = engine.proto(
        "step",
        model.opsets,
        [make_node(proto) for proto in protos],
        inputs,
        [value_info(_as(model, name, alias), symbolic=symbol) for alias, name in fetches],
        [numpy_helper.from_array(known[name], alias) for alias, name in small],
    )
    return StepGraph(
        graph=graph.SerializeToString(deterministic=True),
        feeds=tuple(feeds),
        weights=tuple(weights),
        fetches=fetches,
    )


def _as(model: Model, name: str, alias: str) -> TensorSpec:
    spec = model.specs[name]
    return TensorSpec(name=alias, dtype=spec.dtype, shape=spec.shape)


def _open_rows(node: Node, model: Model, constants: dict[str, Array]) -> Node:
    """A Reshape to [1, ...] becomes one to [-1, ...] with every other side stated."""
    if node.op != "Reshape":
        return node
    shape = np.array([-1, *model.specs[node.writes[0]].shape[1:]], np.int64)
    proto = onnx.NodeProto()
    proto.CopyFrom(node.proto)
    proto.input[1] = f"{node.writes[0]}/rows"
    constants[proto.input[1]] = shape
    return make_node(proto)


class _Renamer:
    """Gives every tensor made inside a step a short name, subgraphs included."""

    def __init__(self) -> None:
        self._count = 0

    def _fresh(self) -> str:
        self._count += 1
        return f"t{self._count - 1}"

    def node(self, source: onnx.NodeProto, names: dict[str, str]) -> onnx.NodeProto:
        """A renamed copy; ``names`` gains what the node makes."""
        proto = onnx.NodeProto()
        proto.CopyFrom(source)
        proto.name = proto.doc_string = ""
        proto.input[:] = [names[name] if name else "" for name in source.input]
        for graph in subgraphs(proto):
            self._graph(graph, names)
        for name in source.output:
            if name and name not in names:
                names[name] = self._fresh()
        proto.output[:] = [names[name] if name else "" for name in source.output]
        return proto

    def _graph(self, graph: onnx.GraphProto, outer: dict[str, str]) -> None:
        """Rename in place. A subgraph's own names hide those of the same name outside."""
        own = [value.name for value in graph.input] + [item.name for item in graph.initializer]
        names = {**outer, **{name: self._fresh() for name in own}}
        for value in (*graph.input, *graph.initializer):
            value.name = names[value.name]
        made = {name for node in graph.node for name in node.output if name}
        names = {old: new for old, new in names.items() if old not in made or old in own}
        graph.ClearField("value_info")
        renamed = [self.node(node, names) for node in graph.node]
        del graph.node[:]
        graph.node.extend(renamed)
        for value in graph.output:
            value.name = names[value.name]
