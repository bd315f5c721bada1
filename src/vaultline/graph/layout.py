"""The memory plan of a compiled segment: its steps, the weights that stay, and one workspace.

A pass runs step by step over all of its frames, so a step's weights are decrypted once a pass. What
lies between two steps is kept for every frame; what lies within one step, for a single frame: its
frames go through one after another. So early layers, whose tensors are large and whose weights are
small, become one long step, and late ones many short ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from vaultline.core.errors import InfeasibleError
from vaultline.core.memory import StreamRates
from vaultline.core.program import Mode, Place
from vaultline.core.tensors import align
from vaultline.core.units import format_bytes
from vaultline.cost.grouping import cheapest, least_peak, widest
from vaultline.cost.packing import Lifetime, pack, peak_bytes
from vaultline.graph.steps import Part
from vaultline.graph.structure import Model, Node

Table = NDArray[np.float64]
#: Bounds on a step's memory that are tried: more of them gain less than a hundredth of the time.
_BOUNDS_TRIED = 64
#: Of the best cuts into steps, so many are laid out.
_LAYOUTS_TRIED = 3
#: A step of a paged stage touches at most this part of the page cache, unless one node needs more:
#: many more steps cost time for calls, much larger ones leave reclaim no choice.
_PAGED_SHARE = 8
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

#: Tensors that an error names.
_NAMED = 6
#: Their results are the same bytes under another shape. The engine copies nothing where both are
#: at one place.
_VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a layout has to keep to.

    Attributes:
        memory_bytes: for weights and workspace together; None if it doesn't matter.
        frames: of one pass.
        prefetch: a step's weights are decrypted while the step before runs.
        ahead_bytes: of weights that may be decrypted ahead, if no node has more.
    """

    mode: Mode
    memory_bytes: int | None
    frames: int
    prefetch: bool
    rates: StreamRates
    ahead_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where everything is.

    Attributes:
        parts: the steps, as ranges of nodes.
        resident: offsets of the weights that stay, in their own buffer.
        streamed: per step, offsets of the others that it reads, in the workspace.
        places: of every tensor that is kept in the workspace.
        activation_bytes: per step, the most that its tensors take.
        overhead_s: predicted seconds of a pass besides computing.
    """

    parts: tuple[Part, ...]
    resident: Mapping[str, int]
    streamed: tuple[Mapping[str, int], ...]
    places: Mapping[str, Place]
    activation_bytes: tuple[int, ...]
    resident_bytes: int
    workspace_bytes: int
    overhead_s: float


def lay_out(model: Model, regions: Sequence[Part], alone: frozenset[str], limits: Limits) -> Layout:
    """Find the steps, resident weights and offsets that take the least time within the memory.

    Args:
        regions: ranges of nodes that no step may cross, and whether their steps may stack frames.
        alone: first outputs of nodes that must be steps of their own.

    Raises:
        InfeasibleError: no way of running the segment fits; says which step needs most.
    """
    found = _Search(model, regions, alone, limits)
    ways = {"resident": found.all_resident, "streamed": found.best, "paged": found.paged}
    return ways[limits.mode]()


def needs(
    model: Model, regions: Sequence[Part], alone: frozenset[str], limits: Limits
) -> tuple[Table, Table]:
    """Bytes and seconds of every step that may be; bytes include the weights that it holds.

    The bytes of any layout are at least those of its neediest step.
    """
    found = _Search(model, regions, alone, limits)
    return found.needs(), found.price()


def held_by(model: Model, index: int, *, weights: bool) -> list[str]:
    """What must be there while a node runs on one frame, largest first, with sizes."""
    life, node = _Tensors(model), model.nodes[index]
    sizes = {
        name: model.specs[name].nbytes
        for name, born in life.born.items()
        if born <= index <= life.last[name] and name not in life.view_of
    }
    if weights:
        own = (name for name in node.reads if name in model.weights)
        sizes.update({name: model.weights[name].nbytes for name in own})
    ranked = sorted(sizes, key=lambda name: -sizes[name])
    more = len(ranked) - _NAMED
    named = [f"{name} {format_bytes(sizes[name])}" for name in ranked[:_NAMED]]
    return [*named, f"{more} smaller ones"] if more > 0 else named


class _Search:
    """All layouts of one segment."""

    def __init__(
        self, model: Model, regions: Sequence[Part], alone: frozenset[str], limits: Limits
    ) -> None:
        self._model, self._regions, self._limits = model, regions, limits
        self._memory = limits.memory_bytes if limits.memory_bytes is not None else 1 << 62
        self._nodes = model.nodes
        self._life = _Tensors(model)
        self._need, self._price = self._tables(alone)
        self._sizes = {
            name: align(array.nbytes)
            for name, array in model.weights.items()
            if name not in model.constants
        }
        self._total = sum(self._sizes[name] for name in self._read(0, len(self._nodes)))

    def all_resident(self) -> Layout:
        """Every weight stays: as few steps as possible."""
        need = self.needs()
        cut = cheapest(need, self._price, self._memory)
        if cut is None:
            raise self._infeasible(least_peak(need))
        return self._finished(self._parts(cut[1]), set(self._sizes))

    def paged(self) -> Layout:
        """Every weight has a place in memory that is not all protected. Steps touch little of it
        at once, so that pages come and go about as they would under one long step."""
        need = self.needs()
        least = least_peak(need)
        if least > self._memory:
            raise self._infeasible(least)
        cut = cheapest(need, self._price, max(least, self._memory / _PAGED_SHARE))
        return self._finished(self._parts(cut[1] if cut else ()), set(self._sizes))

    def best(self) -> Layout:
        """The layout of least time, over bounds on what a step may need."""
        weights, need, price = self._step_weights(), self.needs(), self.price()
        least = least_peak(need)
        if least > self._memory:
            raise self._infeasible(least)
        if not self._nodes:  # everything is passed through
            return self._finished((), set())
        bounds = np.unique(need[np.isfinite(need)])
        bounds = bounds[(bounds >= least) & (bounds <= self._memory)]
        chosen = np.unique(np.linspace(0, len(bounds) - 1, _BOUNDS_TRIED).astype(int))
        found: dict[tuple[int, ...], float] = {}
        second_bytes = self._limits.rates.decrypt_bytes_per_s
        for bound in bounds[chosen]:
            cut = cheapest(need, price, float(bound))
            if cut is not None:
                total_s, places = cut
                kept = self._memory - widest(need, places)
                read = sum(weights[a, b] for a, b in pairwise(places))
                found[places] = total_s - min(kept, read) / second_bytes
        return self._quickest(sorted(found, key=lambda places: found[places]))

    def _quickest(self, ranked: Sequence[tuple[int, ...]]) -> Layout:
        """The quickest of the first few whose buffers leave no gaps too large for the memory."""
        layouts: list[Layout] = []
        refused: InfeasibleError | None = None
        for places in ranked:
            try:
                layouts.append(self._filled(self._parts(places)))
            except InfeasibleError as error:
                refused = error
            if len(layouts) == _LAYOUTS_TRIED:
                break
        if not layouts and refused is not None:
            raise refused
        return min(layouts, key=lambda layout: layout.overhead_s)

    def needs(self) -> Table:
        """Bytes of every step with the weights that it holds; all of them if they stay."""
        if self._limits.mode == "resident":
            return self._need + self._total
        weights = self._step_weights()
        if self._limits.mode == "paged" or not self._limits.prefetch:
            return self._need + weights
        # No step has more weights than what is kept free for those that are decrypted ahead.
        ahead = self._largest(weights)
        need: Table = np.where(weights <= ahead, self._need + weights + ahead, np.inf)
        return need

    def price(self) -> Table:
        """Seconds of every step besides computing, if every weight is streamed.

        One that several steps read is decrypted for each of them.
        """
        if self._limits.mode != "streamed":
            return self._price
        return self._price + self._step_weights() / self._limits.rates.decrypt_bytes_per_s

    def _tables(self, alone: frozenset[str]) -> tuple[Table, Table]:
        """Need without weights, and price in seconds, of every step that may be."""
        count, frames = len(self._nodes), self._limits.frames
        life = self._life
        need = np.full((count + 1, count + 1), np.inf)
        price = np.full((count + 1, count + 1), np.inf)
        single = np.array([node.writes[0] in alone for node in self._nodes], dtype=bool)
        for region in self._regions:
            stacked = region.stackable and frames > 1
            for first in range(region.first, region.last):
                # Up to the next node that must be alone, or that one itself.
                stops = np.flatnonzero(single[first : region.last]) + first
                last = region.last
                if len(stops):
                    last = int(stops[0]) + (1 if stops[0] == first else 0)
                ends = np.arange(first + 1, last + 1)
                ends = ends[life.known[ends]]
                if not life.known[first] or not len(ends):
                    continue
                inner = np.maximum.accumulate(life.inner(first)[first:last])[ends - first - 1]
                kept = frames * life.crossing[first]
                if stacked:
                    messages = life.messages[ends] - life.messages[first]
                    need[first, ends] = kept + frames * (inner + messages)
                else:
                    need[first, ends] = kept + (frames - 1) * life.made(first, ends) + inner
                price[first, ends] = (1 if stacked else frames) * self._limits.rates.step_s
        return need, price

    def _step_weights(self) -> Table:
        """Weights of every step, each once."""
        count = len(self._nodes)
        # A reader counts in every step that has it and not the reader before it.
        change = np.zeros((count + 2, count + 2))
        before: dict[str, int] = {}
        for index, node in enumerate(self._nodes):
            for name in node.reads:
                if name in self._sizes:
                    change[before.get(name, -1) + 1, index + 1] += self._sizes[name]
                    change[index + 1, index + 1] -= self._sizes[name]
                    before[name] = index
        table: Table = change.cumsum(axis=0).cumsum(axis=1)[: count + 1, : count + 1]
        return table

    def _largest(self, weights: Table) -> float:
        """What is decrypted ahead of a step: what the largest node reads, or a tile."""
        largest = float(np.diagonal(weights, offset=1).max(initial=0.0))
        return max(largest, min(self._limits.ahead_bytes, self._total))

    def _parts(self, places: tuple[int, ...]) -> tuple[Part, ...]:
        def stackable(first: int) -> bool:
            return any(each.stackable and each.first <= first < each.last for each in self._regions)

        return tuple(Part(first=a, last=b, stackable=stackable(a)) for a, b in pairwise(places))

    def _read(self, first: int, last: int) -> list[str]:
        names = dict.fromkeys(name for node in self._nodes[first:last] for name in node.reads)
        return [name for name in names if name in self._sizes]

    def _filled(self, parts: tuple[Part, ...]) -> Layout:
        """As many weights as possible stay, those of the neediest steps first."""
        reads = [self._read(part.first, part.last) for part in parts]
        tensors = self._tensor_lifetimes(parts)[0]
        alone = [peak_bytes(_within(tensors, part.first, part.last)) for part in parts]
        resident: set[str] = set()
        uses = Counter(name for names in reads for name in names)

        def loads() -> list[int]:
            streamed = [sum(self._sizes[n] for n in names if n not in resident) for names in reads]
            ahead = [*streamed[1:], 0] if self._limits.prefetch else [0] * len(parts)
            return [a + b + c for a, b, c in zip(alone, streamed, ahead, strict=True)]

        while True:
            needs = loads()
            spare = self._memory - sum(self._sizes[name] for name in resident) - max(needs)
            # A weight of the neediest step frees in the workspace what it takes outside of it.
            neediest = int(np.argmax(needs))
            mine = [name for name in reads[neediest] if name not in resident]
            second = max((need for k, need in enumerate(needs) if k != neediest), default=0)
            room = spare + needs[neediest] - second if not self._limits.prefetch else spare
            fitting = [name for name in mine if self._sizes[name] <= room]
            if not fitting:
                rest = {name for names in reads for name in names if name not in resident}
                fitting = [name for name in rest if self._sizes[name] <= spare]
            if not fitting:
                break
            resident.add(max(fitting, key=lambda name: (uses[name], self._sizes[name], name)))
        return self._repaired(parts, resident)

    def _repaired(self, parts: tuple[Part, ...], resident: set[str]) -> Layout:
        """Give weights up until what the layout wastes between buffers fits too."""
        while True:
            layout = self._finished(parts, resident)
            over = layout.resident_bytes + layout.workspace_bytes - self._memory
            if over <= 0:
                return layout
            if not resident:
                raise self._infeasible(layout.workspace_bytes)
            larger = [name for name in resident if self._sizes[name] >= over]
            if larger:
                resident.remove(min(larger, key=lambda name: (self._sizes[name], name)))
                continue
            for name in sorted(resident, key=lambda name: (-self._sizes[name], name)):
                if over > 0:
                    over -= self._sizes[name]
                    resident.remove(name)

    def _tensor_lifetimes(
        self, parts: Sequence[Part]
    ) -> tuple[list[Lifetime], list[list[str]], dict[str, int]]:
        """Buffers for tensors, the names that share each, and how many frames each name keeps."""
        frames, life = self._limits.frames, self._life
        step_of = [
            number for number, part in enumerate(parts) for _ in range(part.first, part.last)
        ]
        kept: dict[str, int] = {}
        spans: dict[str, tuple[int, int]] = {}
        for name, born in life.born.items():
            if name in life.view_of:
                continue
            first, last = step_of[born], step_of[life.last[name]]
            if first != last and frames > 1:
                kept[name] = frames
                spans[name] = (parts[first].first, parts[last].last - 1)
            elif not (parts[first].stackable and frames > 1):
                kept[name], spans[name] = 1, (born, life.last[name])
        for name, touched in life.in_messages.items() if frames > 1 else ():
            steps = [step_of[index] for index in touched if parts[step_of[index]].stackable]
            if steps:
                kept[name] = frames
                spans[name] = (parts[min(steps)].first, parts[max(steps)].last - 1)
        shared = self._shared(kept, step_of)
        groups: dict[str, list[str]] = {}
        for name, origin in life.view_of.items():
            if origin in kept:
                kept[name], spans[name] = kept[origin], spans[origin]
                shared[name] = shared.get(origin, origin)
        for name in kept:
            groups.setdefault(shared.get(name, name), []).append(name)
        specs = self._model.specs
        lifetimes = [
            Lifetime(
                size_bytes=align(max(specs[name].nbytes for name in names) * kept[root]),
                first=min(spans[name][0] for name in names),
                last=max(spans[name][1] for name in names),
            )
            for root, names in groups.items()
        ]
        return lifetimes, list(groups.values()), kept

    def _shared(self, kept: Mapping[str, int], step_of: Sequence[int]) -> dict[str, str]:
        """Tensors that are written over an operand, and the first tensor of that buffer."""
        life, specs = self._life, self._model.specs
        root: dict[str, str] = {}
        ends = dict(life.last)
        for index, node in enumerate(self._nodes):
            name = node.writes[0]
            if name not in kept or name in life.in_messages:
                continue
            for position in _IN_PLACE.get(node.op, ()):
                operand = _operand(node, position)
                source = life.view_of.get(operand, operand)
                first = root.get(source, source)
                if (
                    source in life.born
                    and ends.get(first) == index
                    and kept.get(source) == kept[name]
                    and specs[source].nbytes == specs[name].nbytes
                    and _used_once(node, operand)
                ):
                    root[name] = first
                    ends[first] = life.last[name]
                    break
        return root

    def _finished(self, parts: tuple[Part, ...], resident: set[str]) -> Layout:
        """Offsets of everything."""
        reads = [self._read(part.first, part.last) for part in parts]
        tensors, groups, kept = self._tensor_lifetimes(parts)
        loads = [[name for name in names if name not in resident] for names in reads]
        used = dict.fromkeys(name for names in reads for name in names if name in resident)
        buffers = list(tensors)
        for number, (part, names) in enumerate(zip(parts, loads, strict=True)):
            ahead = self._limits.prefetch and number > 0
            first = parts[number - 1].first if ahead else part.first
            size = sum(self._sizes[name] for name in names)
            buffers.append(Lifetime(size_bytes=size, first=first, last=part.last - 1))
        offsets, workspace = pack(buffers)
        if self._limits.prefetch:
            offsets, workspace = _in_two_halves(buffers, len(tensors), (offsets, workspace))
        streamed = []
        for start, names in zip(offsets[len(tensors) :], loads, strict=True):
            places = accumulate((self._sizes[name] for name in names), initial=start)
            streamed.append(dict(zip(names, places, strict=False)))
        starts = accumulate((self._sizes[name] for name in used), initial=0)
        at = dict(zip(used, starts, strict=False))
        calls = sum(
            1 if part.stackable and self._limits.frames > 1 else self._limits.frames
            for part in parts
        )
        decrypted = sum(self._sizes[name] for names in loads for name in names)
        rates = self._limits.rates
        return Layout(
            parts=parts,
            resident=at,
            streamed=tuple(streamed),
            places={
                name: Place(offset=offset, frames=kept[name])
                for offset, names in zip(offsets, groups, strict=False)
                for name in names
            },
            activation_bytes=tuple(
                peak_bytes(_within(tensors, part.first, part.last)) for part in parts
            ),
            resident_bytes=sum(self._sizes[name] for name in used),
            workspace_bytes=workspace,
            overhead_s=calls * rates.step_s + decrypted / rates.decrypt_bytes_per_s,
        )

    def _infeasible(self, least: float) -> InfeasibleError:
        """Which step can't be made smaller, and what it holds."""
        need = self.needs()
        own = np.diagonal(need, offset=1)
        worst = int(np.where(np.isfinite(own), own, 0.0).argmax())
        cut = cheapest(need, need, least_peak(need))
        if cut is not None:
            a, b = max(pairwise(cut[1]), key=lambda step: need[step], default=(0, 0))
            worst = max(range(a, b), key=lambda index: own[index], default=worst)
        node = self._nodes[worst]
        step = "all weights, and the " if self._limits.mode == "resident" else "the "
        return InfeasibleError(
            "the segment can't run in so little protected memory",
            got=f"{format_bytes(max(self._memory, 0))} for weights and tensors",
            expected=f"at least {format_bytes(int(least))} for passes of {self._limits.frames} "
            f"frames: {step}tensors of node {worst} ({node.op} {node.name!r}): "
            + ", ".join(held_by(self._model, worst, weights=self._limits.mode != "resident")),
            remedy="give the device more memory, take fewer frames a pass, or cut the model",
        )


class _Tensors:
    """When the tensors that nodes make are alive, and how many bytes they are.

    Attributes:
        born, last: by name, the node that makes a tensor and the last one that reads it, or a view.
        view_of: tensors that are another one's bytes, and which one's.
        in_messages: stage inputs and outputs, and the nodes that touch each.
        crossing: per position, bytes of a frame's tensors that are alive there.
        known: per position, whether a step may end there: the sizes of all of those are known.
        messages: bytes of messages that the nodes before each position read or write.
    """

    def __init__(self, model: Model) -> None:
        nodes = model.nodes
        count = len(nodes)
        edge = {spec.name for spec in (*model.inputs, *model.outputs)}
        self.born: dict[str, int] = {}
        self.last: dict[str, int] = {}
        self.view_of = _views(model, edge)
        self.in_messages: dict[str, list[int]] = {}
        self.known = np.ones(count + 1, dtype=bool)
        unknown: dict[str, int] = {}
        own = np.zeros(count + 1)
        for index, node in enumerate(nodes):
            for name in (*node.reads, *node.writes):
                if name in edge:
                    self.in_messages.setdefault(name, []).append(index)
                    own[index + 1] += align(model.specs[name].nbytes)
            for name in node.reads:
                if name in self.born:
                    self.last[name] = self.last[self.view_of.get(name, name)] = index
                elif name in unknown:
                    self.known[unknown[name] + 1 : index + 1] = False
            for name in node.writes:
                if name not in edge and name in model.specs:
                    self.born[name] = self.last[name] = index
                elif name not in edge:
                    unknown[name] = index
        self.messages = np.cumsum(own)
        alive = np.zeros((count, count + 1))
        kept = np.zeros((count, count + 2))
        for name, born in self.born.items():
            size = 0 if name in self.view_of else align(model.specs[name].nbytes)
            alive[born, born : self.last[name] + 1] += size
            # Alive at every position after the node that makes it, up to its last reader.
            kept[born, born + 1 : self.last[name] + 1] += size
        # [k, i]: alive while node i runs, of those made by node k or later.
        self._inner = np.cumsum(alive[::-1], axis=0)[::-1]
        self._made = np.cumsum(kept[::-1], axis=0)[::-1]
        self.crossing = np.array([kept[:position, position].sum() for position in range(count + 1)])

    def inner(self, first: int) -> Table:
        """Per node, bytes of those alive while it runs that were made from ``first`` on."""
        alive: Table = self._inner[first]
        return alive

    def made(self, first: int, ends: NDArray[np.int64]) -> Table:
        """Per end, bytes alive there that were made from ``first`` on."""
        alive: Table = self._made[first, ends]
        return alive


def _views(model: Model, edge: set[str]) -> dict[str, str]:
    """Tensors that are the bytes of another that some node makes; none of them is in a message."""
    made: set[str] = set()
    found: dict[str, str] = {}
    for node in model.nodes:
        source, result = _operand(node, 0), node.writes[0]
        known = source in made and result in model.specs and result not in edge
        if node.op in _VIEWS and known and model.specs[source].nbytes == model.specs[result].nbytes:
            found[result] = found.get(source, source)
        made.update(name for name in node.writes if name in model.specs and name not in edge)
    return found


def _within(buffers: Sequence[Lifetime], first: int, last: int) -> list[Lifetime]:
    """The part of each buffer's life that falls between two positions."""
    return [
        Lifetime(
            size_bytes=each.size_bytes,
            first=max(each.first, first) - first,
            last=min(each.last, last - 1) - first,
        )
        for each in buffers
        if each.first < last and each.last >= first
    ]


def _in_two_halves(
    buffers: Sequence[Lifetime], tensors: int, packed: tuple[tuple[int, ...], int]
) -> tuple[tuple[int, ...], int]:
    """Steps' weights in two places in turn, behind the tensors, if that takes less than ``packed``:
    it never takes more than the tensors and twice the largest step."""
    offsets, end = pack(buffers[:tensors])
    steps = buffers[tensors:]
    halves = [max((each.size_bytes for each in steps[k::2]), default=0) for k in (0, 1)]
    if end + sum(halves) >= packed[1]:
        return packed
    places = tuple(end + (halves[0] if number % 2 else 0) for number in range(len(steps)))
    return (*offsets, *places), end + sum(halves)


def _operand(node: Node, position: int) -> str:
    return node.proto.input[position] if position < len(node.proto.input) else ""


def _used_once(node: Node, name: str) -> bool:
    """A kernel may read an operand again after it has written the other's place."""
    return sum(each == name for each in node.proto.input) == 1 or node.op in ("Add", "Mul")
