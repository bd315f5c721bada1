"""When tensors are alive, and the memory that every step that may be would take for them.

Tables have a row for each first node and a column for each end: entry ``[a, b]`` belongs to a step
of the nodes from ``a`` to ``b``, ``b`` excluded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from vaultline.core.tensors import align
from vaultline.cost.grouping import Table
from vaultline.graph.steps import Part
from vaultline.graph.structure import Model, Node

#: Results may be written over an operand that nobody else reads: by operator, which operands.
#: These are kernels that the engine itself runs in place (their ``MayInplace`` declarations).
_IN_PLACE: Mapping[str, tuple[int, ...]] = {
    "Dropout": (0,),
    **dict.fromkeys(
        ("Relu", "LeakyRelu", "Sigmoid", "Tanh", "Clip", "Sqrt", "Exp", "Abs", "Neg", "Elu"),
        (0,),
    ),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), (0, 1)),
    "com.microsoft.nchwc.Conv": (3,),
}

#: Their results are the same bytes under another shape. The engine copies nothing where both are
#: at one place.
_VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})


def engine_made(model: Model, parts: Iterable[Part], frames: int) -> frozenset[str]:
    """Tensors inside of steps that stack frames which can't be kept in the workspace: frames are
    not their first side."""
    return frozenset(
        name
        for part in parts
        if part.stackable and frames > 1
        for node in model.nodes[part.first : part.last]
        for name in node.writes
        if name in model.specs and model.specs[name].shape[:1] != (1,)
    )


class Tensors:
    """The tensors that nodes make and that are kept in the workspace, by the nodes' numbers.

    Attributes:
        born, last: by name, the node that makes a tensor and the last one that reads it, or a view.
        view_of: tensors that are another one's bytes, and which one's.
        in_messages: stage inputs and outputs, and the nodes that touch each.
        known: per position, whether a step may end there: every tensor that is alive there has a
            place or is in a message.
    """

    def __init__(self, model: Model, engine_made: frozenset[str] = frozenset()) -> None:
        self._model = model
        edge = {spec.name for spec in (*model.inputs, *model.outputs)}
        self.born: dict[str, int] = {}
        self.last: dict[str, int] = {}
        self.view_of = _views(model, edge | engine_made)
        self.in_messages: dict[str, list[int]] = {}
        self.known = np.ones(len(model.nodes) + 1, dtype=bool)
        placeless: dict[str, int] = {}
        for index, node in enumerate(model.nodes):
            for name in (*node.reads, *node.writes):
                if name in edge:
                    self.in_messages.setdefault(name, []).append(index)
            for name in node.reads:
                if name in self.born:
                    self.last[name] = self.last[self.view_of.get(name, name)] = index
                elif name in placeless:
                    self.known[placeless[name] + 1 : index + 1] = False
            for name in node.writes:
                if name not in edge and name in model.specs and name not in engine_made:
                    self.born[name] = self.last[name] = index
                elif name not in edge:
                    placeless[name] = index
        self._sizes = {
            name: 0 if name in self.view_of else align(model.specs[name].nbytes)
            for name in self.born
        }
        counts = dict.fromkeys(self.born, 1)
        roots = self.shared(counts)
        #: By tensor, the one over which it can be written.
        self._over = {name: self._before(name, roots) for name in roots}

    def _before(self, name: str, roots: Mapping[str, str]) -> str:
        """Of the tensors that share a buffer, the one that ends where this one begins."""
        root = roots[name]
        group = [root, *(other for other, first in roots.items() if first == root)]
        return next(
            other for other in group if self.last[other] == self.born[name] != self.born[other]
        )

    def shared(self, kept: Mapping[str, int]) -> dict[str, str]:
        """Tensors that are written over an operand, and the first tensor of that buffer.

        Args:
            kept: of each tensor, for how many frames; both must have room for as many.
        """
        specs = self._model.specs
        root: dict[str, str] = {}
        ends = dict(self.last)
        for index, node in enumerate(self._model.nodes):
            name = node.writes[0]
            if name not in kept or name in self.in_messages:
                continue
            for position in _IN_PLACE.get(node.op, ()):
                operand = _operand(node, position)
                source = self.view_of.get(operand, operand)
                first = root.get(source, source)
                if (
                    source in self.born
                    and ends.get(first) == index
                    and kept.get(source) == kept[name]
                    and specs[source].nbytes == specs[name].nbytes
                    and _used_once(node, operand)
                ):
                    root[name] = first
                    ends[first] = self.last[name]
                    break
        return root

    def need(self, regions: Sequence[Part], frames: int) -> Table:
        """Bytes that the tensors of every step take; ``inf`` where there may be no step.

        A tensor between steps takes room for every frame all the time; one inside of a step for
        one frame, or for all of them where they are stacked, while it is alive.
        """
        count = len(self._model.nodes)
        need = np.full((count + 1, count + 1), np.inf)
        between = self._between(frames) if frames > 1 else None
        inside = self._inside() if frames > 1 else None
        stacked = self._messages() + inside if inside is not None else None
        alive = self._alive()
        for region in regions:
            for first in range(region.first, region.last):
                ends = slice(first + 1, region.last + 1)
                if between is None or inside is None or stacked is None:
                    need[first, ends] = np.maximum.accumulate(alive[first : region.last])
                elif region.stackable:
                    need[first, ends] = between[first, ends] + frames * stacked[first, ends]
                else:
                    need[first, ends] = between[first, ends] + inside[first, ends]
        need[~self.known] = np.inf
        need[:, ~self.known] = np.inf
        return need

    def _alive(self) -> Table:
        """Per node, bytes alive while it runs, of one frame."""
        alive = np.zeros(len(self._model.nodes))
        for name, born in self.born.items():
            alive[born : self.last[name] + 1] += self._sizes[name]
            if name in self._over:
                alive[born] -= self._sizes[name]
        return alive

    def _between(self, frames: int) -> Table:
        """Bytes of what comes from before a step or outlives it, for all frames."""
        count = len(self._model.nodes)
        enters, leaves = np.zeros(count + 1), np.zeros((count + 1, count + 1))
        shared = np.zeros((count + 1, count + 1))
        for name, born in self.born.items():
            size, last = self._sizes[name], self.last[name]
            enters[born + 1 : last + 1] += size
            leaves[: born + 1, born + 1 : last + 1] += size
            if name in self._over:
                begun = self.born[self._over[name]]
                shared[begun + 1 : born + 1, born + 1 : last + 1] += size
        table: Table = frames * (enters[:, None] + leaves - shared)
        return table

    def _inside(self) -> Table:
        """The most bytes alive at once of what begins and ends within a step, for one frame."""
        count = len(self._model.nodes)
        ending: list[list[str]] = [[] for _ in range(count)]
        for name, last in self.last.items():
            ending[last].append(name)
        #: Row a: bytes alive while each node runs, of tensors made from node a on.
        alive = np.zeros((count + 1, count))
        most = np.zeros((count + 1, count + 1))
        for end in range(1, count + 1):
            most[:, end] = most[:, end - 1]
            for name in sorted(ending[end - 1], key=lambda name: self.born[name]):
                born, size = self.born[name], self._sizes[name]
                alive[: born + 1, born:end] += size
                if name in self._over:
                    alive[: self.born[self._over[name]] + 1, born] -= size
                peak = alive[: born + 1, born:end].max(axis=1)
                np.maximum(most[: born + 1, end], peak, out=most[: born + 1, end])
        return most

    def _messages(self) -> Table:
        specs = self._model.specs
        touched = ((at, align(specs[name].nbytes)) for name, at in self.in_messages.items())
        return each_once(len(self._model.nodes), touched)


def each_once(count: int, uses: Iterable[tuple[Sequence[int], int]]) -> Table:
    """Bytes that every step uses, if each thing counts once.

    Args:
        count: of nodes.
        uses: for each thing the nodes that use it, in order, and its bytes.
    """
    own = np.zeros(count + 1)
    twice = np.zeros((count + 1, count + 1))
    for nodes, size in uses:
        places = list(dict.fromkeys(nodes))
        own[[place + 1 for place in places]] += size
        for one, other in pairwise(places):
            twice[: one + 1, other + 1 :] += size
    total = np.cumsum(own)
    table: Table = total[None, :] - total[:, None] - twice
    return table


def _views(model: Model, placeless: frozenset[str] | set[str]) -> dict[str, str]:
    """Tensors that are the bytes of another that some node makes; none of them is in a message."""
    made: set[str] = set()
    found: dict[str, str] = {}
    for node in model.nodes:
        source, result = _operand(node, 0), node.writes[0]
        known = source in made and result in model.specs and result not in placeless
        if node.op in _VIEWS and known and model.specs[source].nbytes == model.specs[result].nbytes:
            found[result] = found.get(source, source)
        made.update(name for name in node.writes if name in model.specs and name not in placeless)
    return found


def _operand(node: Node, position: int) -> str:
    return node.proto.input[position] if position < len(node.proto.input) else ""


def _used_once(node: Node, name: str) -> bool:
    """A kernel may read an operand again after it has written the other's place."""
    return sum(each == name for each in node.proto.input) == 1 or node.op in ("Add", "Mul")
