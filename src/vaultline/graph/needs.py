"""What the blocks of a model take on a device, however a stage is cut from them: for profiles.

The whole model is compiled, and each node of the result counted for the block that it came from.
So tensors between blocks are what they are inside of a stage, in the engine's own layout; a block
compiled alone would change the layout at both ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from msgspec.structs import replace as msgspec_replace

from vaultline.core.memory import StreamRates
from vaultline.core.profile import TILE_BYTES, BlockProfile, Held
from vaultline.core.tensors import align
from vaultline.cost.memory import NODE_BYTES
from vaultline.graph.compile import optimised
from vaultline.graph.extract import extract
from vaultline.graph.isa import local_isa
from vaultline.graph.layout import lay_out
from vaultline.graph.node_times import owners_of
from vaultline.graph.placing import Layout, Limits
from vaultline.graph.rewrite import rewrite
from vaultline.graph.steps import Part, boundary_bytes, is_rowwise
from vaultline.graph.structure import Model, Node
from vaultline.graph.takings import fixed_bytes, kernel_bytes
from vaultline.graph.tiles import tiled

_PRODUCTS = frozenset({"Gemm", "com.microsoft.FusedGemm", "MatMul"})


@dataclass(frozen=True, slots=True)
class _Placed:
    """A node of the compiled model.

    Attributes:
        owner: the block that it comes from.
        block: the one that runs it, where that is in the same stage: the same or a later one.
        stacks: it lies in a run of row-wise nodes that read weights.
    """

    node: Node
    owner: int
    block: int
    stacks: bool


def block_needs(
    model: Model, positions: Sequence[int]
) -> tuple[tuple[BlockProfile, ...], tuple[Held, ...]]:
    """The blocks between these positions, their times still zero, and the tensors between them."""
    made = optimised(
        rewrite(extract(model, 0, model.node_count)), blocked=local_isa() != "portable"
    )
    cut, tiles = tiled(made, TILE_BYTES)
    placed = _placed(model, cut, positions)
    blocks = []
    for number in range(len(positions) - 1):
        mine = [each for each in placed if number in (each.block, each.owner)]
        block = _block(cut, mine, tiles)
        owned = [each.node for each in mine if each.owner == number]
        ops = Counter(node.op for node in model.nodes[positions[number] : positions[number + 1]])
        blocks.append(msgspec_replace(block, weight_bytes=_weights(cut, owned), ops=dict(ops)))
    known = {spec.name for spec in (*model.specs.values(), *model.inputs, *model.outputs)}
    return tuple(blocks), _held(cut, placed, known)


def _placed(model: Model, made: Model, positions: Sequence[int]) -> list[_Placed]:
    """The compiled nodes in the order of blocks."""
    places = np.array(owners_of(model, made.nodes), dtype=np.int64)
    owners = np.searchsorted(np.array(positions), places, side="right") - 1
    flags, blocks = _stacks(made), owners
    order = [int(index) for index in np.argsort(owners, kind="stable")]
    if not _in_order(made, order):
        # The engine has moved work across a cut.
        order, blocks = list(range(len(owners))), np.maximum.accumulate(owners)
    return [
        _Placed(made.nodes[index], int(owners[index]), int(blocks[index]), flags[index])
        for index in order
    ]


def _in_order(made: Model, order: Sequence[int]) -> bool:
    place = {name: at for at, index in enumerate(order) for name in made.nodes[index].writes}
    return all(
        place.get(name, -1) < at
        for at, index in enumerate(order)
        for name in made.nodes[index].reads
    )


def _stacks(model: Model) -> list[bool]:
    """Per node, whether some stage may stack frames there: shorter runs lie in the model's own."""
    flags = [is_rowwise(node, model) for node in model.nodes]
    found = [False] * len(flags)
    for rowwise, run in groupby(range(len(flags)), key=lambda index: flags[index]):
        members = list(run)
        if rowwise and any(_weights(model, [model.nodes[index]]) for index in members):
            for index in members:
                found[index] = True
    return found


def _block(model: Model, placed: Sequence[_Placed], tiles: frozenset[str]) -> BlockProfile:
    """A block by itself, its ends in messages."""
    nodes = [each.node for each in placed]
    inner = _alone(model, nodes)
    parts = [
        Part(first=members[0], last=members[-1] + 1, stackable=stacks)
        for stacks, run in groupby(range(len(placed)), key=lambda index: placed[index].stacks)
        for members in [list(run)]
    ]
    once, twice = (_laid_out(inner, parts, frames, cut=True) for frames in (1, 2))
    weights = [_weights(inner, inner.nodes[part.first : part.last]) for part in once.parts]
    steps = list(zip(weights, once.activation_bytes, twice.activation_bytes, strict=True))
    kernels = max((kernel_bytes(node, inner) for node in nodes), default=0)
    # A product that is turned round is three nodes.
    turned = 2 * sum(node.op in _PRODUCTS for node in nodes)
    whole = [Part(first=0, last=len(nodes), stackable=False)] if nodes else []
    return BlockProfile(
        compute_s=((1, 0.0),),
        weight_bytes=0,
        step_weight_bytes=_weights(inner, nodes),
        activation_bytes=_laid_out(inner, whole, 1, cut=False).workspace_bytes,
        cut_bytes=max((weight + one for weight, one, _ in steps), default=0),
        cut_frame_bytes=max((two - one for _, one, two in steps), default=0),
        cut_steps=len(steps),
        largest_weight_bytes=max(weights, default=0),
        engine_bytes=fixed_bytes(inner, parts, tiles, 1, 0) - kernels + turned * NODE_BYTES,
        kernel_bytes=kernels,
        values=sum(len(node.reads) + len(node.writes) for node in nodes) + 2 * turned,
        stacked_bytes=_stacked_bytes(model, [each.node for each in placed if each.stacks]),
        alone=any(each.stacks or each.node.writes[0] in tiles for each in placed),
    )


def _alone(model: Model, nodes: Sequence[Node]) -> Model:
    """Some nodes of a model, what they share with others as inputs and outputs."""
    made = {name for node in nodes for name in node.writes}
    mine = {id(node) for node in nodes}
    others = {name for node in model.nodes if id(node) not in mine for name in node.reads}
    others.update(spec.name for spec in model.outputs)
    read = dict.fromkeys(name for node in nodes for name in node.reads)
    return replace(
        model,
        nodes=tuple(nodes),
        inputs=tuple(
            model.specs[name] for name in read if name not in made and name in model.specs
        ),
        outputs=tuple(
            model.specs[name]
            for node in nodes
            for name in node.writes
            if name in others and name in model.specs
        ),
        weights={name: model.weights[name] for name in read if name in model.weights},
    )


def _laid_out(model: Model, parts: Sequence[Part], frames: int, *, cut: bool) -> Layout:
    """Every node a step of its own, or as few steps as the parts allow."""
    limits = Limits(
        mode="resident", memory_bytes=None, frames=frames, prefetch=False, rates=StreamRates()
    )
    known = [size is not None for size in boundary_bytes(model)]
    single = frozenset(
        node.writes[0]
        for index, node in enumerate(model.nodes)
        if cut and known[index] and known[index + 1]
    )
    return lay_out(model, parts, single, limits)


def _stacked_bytes(model: Model, nodes: Sequence[Node]) -> int:
    """What the engine allocates for stacked products: the turned frame, and the product before it
    is turned back."""
    products = [node for node in nodes if node.op in _PRODUCTS]
    frames = {
        name
        for node in products
        for name in node.reads
        if name in model.specs and name not in model.weights
    }
    made = sum(node.output_bytes for node in products)
    return made + sum(model.specs[name].nbytes for name in frames)


def _weights(model: Model, nodes: Sequence[Node]) -> int:
    names = {name for node in nodes for name in node.reads}
    return sum(
        align(model.weights[name].nbytes)
        for name in names
        if name in model.weights and name not in model.constants
    )


def _held(model: Model, placed: Sequence[_Placed], known: set[str]) -> tuple[Held, ...]:
    """Tensors that are read in a later block than the one that makes them.

    Args:
        known: names of the model as it was before it was compiled.
    """
    born = {name: each.block for each in placed for name in each.node.writes}
    last = dict(born)
    for each in placed:
        for name in each.node.reads:
            if name in born:
                last[name] = max(last[name], each.block)
    return tuple(
        Held(
            nbytes=align(model.specs[name].nbytes),
            first=first,
            last=last[name],
            relaid=name not in known,
        )
        for name, first in born.items()
        if last[name] > first and name in model.specs
    )
