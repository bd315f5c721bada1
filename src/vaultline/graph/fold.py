"""Folding: what depends on constants and static shapes alone is computed once, at loading."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx

from vaultline.core.tensors import TensorSpec
from vaultline.graph import engine, shapes
from vaultline.graph.structure import Array, Model, Node, subgraphs

#: Never folded: random ones differ at every run; a dequantised weight would grow fourfold.
_KEPT = frozenset(
    {
        "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
        "RandomUniformLike", "DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear",
    }
)  # fmt: skip
#: A folded value may be this much larger than what it is computed from (Expand, Tile).
_GROWTH_BYTES_MAX = 1 << 16


def folded(model: Model) -> Model:
    """Fold until nothing changes: each round can make shapes static that were not before."""
    while True:
        specs = shapes.inferred(model)
        current = replace(model, specs=specs)
        values = {**_static_shapes(current), **_computed(current)}
        if not values:
            return current
        nodes = [node for node in model.nodes if not set(node.writes) <= set(values)]
        read = {name for node in nodes for name in node.reads}
        weights = {**model.weights, **values}
        kept = {name: array for name, array in weights.items() if name in read}
        model = replace(model, nodes=tuple(nodes), weights=kept)


def _static_shapes(model: Model) -> dict[str, Array]:
    """Values of Shape and Size nodes whose operand has a static shape."""
    outputs = {spec.name for spec in model.outputs}
    found: dict[str, Array] = {}
    for node in model.nodes:
        if node.op not in ("Shape", "Size") or node.writes[0] in outputs:
            continue
        spec = model.specs.get(node.reads[0])
        if spec is None:
            continue
        bounds = {attribute.name: attribute.i for attribute in node.proto.attribute}
        sides = spec.shape[bounds.get("start", 0) : bounds.get("end", len(spec.shape))]
        value = int(np.prod(spec.shape)) if node.op == "Size" else sides
        found[node.writes[0]] = np.asarray(value, np.int64)
    return found


def _computed(model: Model) -> dict[str, Array]:
    """Run the nodes that depend on weights alone."""
    outputs = {spec.name for spec in model.outputs}
    constant = set(model.weights)
    chosen: list[Node] = []
    for node in model.nodes:
        if constant.issuperset(node.reads) and _foldable(node, model, outputs):
            chosen.append(node)
            constant.update(node.writes)
    if not chosen:
        return {}
    made = [name for node in chosen for name in node.writes]
    inner = Model(
        name="constants",
        opsets=model.opsets,
        inputs=(),
        outputs=(),
        nodes=tuple(chosen),
        weights=model.weights,
        specs={},
    )
    infos = [onnx.ValueInfoProto(name=name) for name in made]
    running = engine.session(engine.weightless(inner, outputs=infos).SerializeToString())
    results = running.run(made, engine.large_weights(inner))
    return dict(zip(made, results, strict=True))


def _foldable(node: Node, model: Model, outputs: set[str]) -> bool:
    if node.op in _KEPT or outputs.intersection(node.writes) or list(subgraphs(node.proto)):
        return False
    if not node.reads and node.op != "Constant":
        return False
    specs = [model.specs.get(name) for name in node.writes]
    if "Sequence" in node.op or not all(isinstance(spec, TensorSpec) for spec in specs):
        return False
    source = sum(model.weights[name].nbytes for name in node.reads if name in model.weights)
    made = sum(spec.nbytes for spec in specs if spec is not None)
    return made <= source + _GROWTH_BYTES_MAX
