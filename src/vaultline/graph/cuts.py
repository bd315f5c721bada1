"""Cuts of a model's topological order, and which of them a search needs to look at."""

from __future__ import annotations

from dataclasses import dataclass

from vaultline.core.tensors import TensorSpec
from vaultline.graph.structure import Model

#: Nodes that the engine fuses into their producer or that only rename or reshape: a cut is as cheap
#: before as after them.
FREE_OPS = frozenset(
    {
        "Add", "BatchNormalization", "Clip", "Dropout", "Flatten", "HardSigmoid", "Identity",
        "LeakyRelu", "Mul", "Relu", "Reshape", "Sigmoid", "Squeeze", "Sum", "Tanh", "Unsqueeze",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """The place between node ``position - 1`` and node ``position``.

    Attributes:
        tensors: every tensor made before and needed after, graph inputs included, in the order
            in which they are made; at the first cut the model's inputs, at the last its outputs.
        nbytes: size of the tensors together.
        unusable: why the model cannot be cut here, or None.
    """

    position: int
    tensors: tuple[TensorSpec, ...]
    nbytes: int
    unusable: str | None = None


def cuts(model: Model) -> tuple[Cut, ...]:
    """Every cut of the topological order, from 0 to ``model.node_count``."""
    end = model.node_count
    last_use = _last_use(model)
    live: dict[str, None] = {
        spec.name: None for spec in model.inputs if last_use.get(spec.name, -1) >= 0
    }
    found = [_cut(model, 0, [spec.name for spec in model.inputs])]
    for position, node in enumerate(model.nodes[:-1], start=1):
        for name in node.reads:
            if last_use.get(name) == position - 1:
                live.pop(name, None)
        live.update((name, None) for name in node.writes if last_use.get(name, -1) >= position)
        found.append(_cut(model, position, list(live)))
    if end:
        found.append(_cut(model, end, [spec.name for spec in model.outputs]))
    return tuple(found)


def _last_use(model: Model) -> dict[str, int]:
    """Per tensor, the index of the last node that reads it; outputs are read at the end."""
    last_use: dict[str, int] = {}
    for index, node in enumerate(model.nodes):
        last_use.update(dict.fromkeys(node.reads, index))
    last_use.update({spec.name: model.node_count for spec in model.outputs})
    return last_use


def _cut(model: Model, position: int, names: list[str]) -> Cut:
    unknown = [name for name in names if name not in model.specs]
    reason = None
    if unknown:
        why = model.unknown.get(unknown[0], "its shape is not known")
        reason = f"tensor {unknown[0]!r} would cross: {why}"
    tensors = tuple(model.specs[name] for name in names if name in model.specs)
    return Cut(
        position=position,
        tensors=tensors,
        nbytes=sum(spec.nbytes for spec in tensors),
        unusable=reason,
    )


def candidates(model: Model) -> tuple[int, ...]:
    """Positions that no neighbour dominates, 0 and ``node_count`` always among them.

    Positions with nothing but free nodes between them form a group; the one with the fewest
    crossing bytes, the latest of several, stands for all.
    """
    groups: list[list[Cut]] = []
    for cut in cuts(model):
        free = cut.position > 0 and model.nodes[cut.position - 1].op in FREE_OPS
        if free:
            groups[-1].append(cut)
        else:
            groups.append([cut])
    chosen = {0, model.node_count}
    for group in groups:
        usable = [cut for cut in group if cut.unusable is None]
        if usable:
            chosen.add(min(usable, key=lambda cut: (cut.nbytes, -cut.position)).position)
    return tuple(sorted(chosen))
