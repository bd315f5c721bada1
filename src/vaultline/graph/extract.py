"""A segment of a model as a model of its own."""

from __future__ import annotations

from dataclasses import replace

from vaultline.core.errors import InputError
from vaultline.graph.cuts import Cut, cuts
from vaultline.graph.structure import Model


def extract(model: Model, first: int, last: int) -> Model:
    """Nodes ``[first, last)``: what crosses cut ``first`` goes in, what crosses ``last`` comes out.

    A tensor that crosses both and is not made between is an input and an output: passed through.
    Weights are shared with the model, not copied.

    Raises:
        InputError: no such segment, or a cut that is unusable.
    """
    return segment(model, cuts(model), first, last)


def segment(model: Model, places: tuple[Cut, ...], first: int, last: int) -> Model:
    """``extract`` with the model's cuts at hand, for those who extract many."""
    if not 0 <= first < last <= model.node_count:
        raise InputError(
            "no such segment",
            got=f"[{first}, {last})",
            expected=f"0 <= first < last <= {model.node_count}",
        )
    for place in (places[first], places[last]):
        if place.unusable:
            raise InputError(
                f"the model cannot be cut at position {place.position}",
                got=place.unusable,
                remedy="choose another position; `vaultline inspect` lists the usable ones",
            )
    nodes = model.nodes[first:last]
    read = {name for node in nodes for name in node.reads}
    written = {name for node in nodes for name in node.writes}
    inputs, outputs = places[first].tensors, places[last].tensors
    near = read | written | {spec.name for spec in (*inputs, *outputs)}
    return replace(
        model,
        name=f"{model.name}[{first}:{last}]",
        inputs=inputs,
        outputs=outputs,
        nodes=nodes,
        weights={name: array for name, array in model.weights.items() if name in read},
        specs={name: spec for name, spec in model.specs.items() if name in near},
        unknown={name: why for name, why in model.unknown.items() if name in near},
        origin=None,
    )
