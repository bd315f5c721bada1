"""The memory plan of a segment whose steps are given: weights that stay, and one workspace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from vaultline.core.memory import StreamRates
from vaultline.core.program import Mode, Place
from vaultline.core.tensors import align
from vaultline.cost.packing import Lifetime, pack, peak_bytes
from vaultline.cost.residents import Residents
from vaultline.graph.lifetimes import Tensors
from vaultline.graph.steps import Part
from vaultline.graph.structure import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a layout has to keep to.

    Attributes:
        memory_bytes: for weights and workspace together; None if it doesn't matter.
        frames: of one pass.
        prefetch: a step's weights are decrypted while the step before runs.
        ahead_bytes: of weights that may be decrypted ahead, if no node has more.
        threads: of the engine.
        keep: weights may stay, as many as there is room for, when they are streamed.
    """

    mode: Mode
    memory_bytes: int | None
    frames: int
    prefetch: bool
    rates: StreamRates
    ahead_bytes: int = 0
    threads: int = 1
    keep: bool = True


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


class Placing:
    """Finds offsets.

    Attributes:
        sizes: of the segment's weights, in bytes, aligned.
    """

    def __init__(self, model: Model, life: Tensors, limits: Limits) -> None:
        """``life``: of the tensors, for passes of the limits' frames."""
        self._model, self._life, self._limits = model, life, limits
        self.sizes = {
            name: align(array.nbytes)
            for name, array in model.weights.items()
            if name not in model.constants
        }

    def read(self, first: int, last: int) -> list[str]:
        """Weights that nodes of a step read, each once."""
        names = dict.fromkeys(name for node in self._model.nodes[first:last] for name in node.reads)
        return [name for name in names if name in self.sizes]

    def filled(self, parts: tuple[Part, ...], memory_bytes: int) -> Layout | None:
        """As many weights as possible stay; None if even without any it does not fit."""
        tensors = self._lifetimes(parts)[0]
        residents = Residents(
            reads=[self.read(part.first, part.last) for part in parts],
            alone=[peak_bytes(_within(tensors, part.first, part.last)) for part in parts],
            sizes=self.sizes,
            rates=self._limits.rates,
            prefetch=self._limits.prefetch,
        )
        memory = memory_bytes
        chosen = residents.best(memory)
        while chosen is not None:
            layout = self.finished(parts, chosen)
            over = layout.resident_bytes + layout.workspace_bytes - memory_bytes
            if over <= 0:
                return layout
            # What is lost between buffers did not fit.
            memory -= over
            chosen = residents.best(memory)
        return None

    def _lifetimes(
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
            else:  # inside of a step: one frame after another, or all of them side by side
                kept[name] = frames if parts[first].stackable else 1
                spans[name] = (born, life.last[name])
        for name, touched in life.in_messages.items() if frames > 1 else ():
            steps = [step_of[index] for index in touched if parts[step_of[index]].stackable]
            if steps:
                kept[name] = frames
                spans[name] = (parts[min(steps)].first, parts[max(steps)].last - 1)
        shared = life.shared(kept)
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

    def finished(self, parts: tuple[Part, ...], resident: set[str]) -> Layout:
        """Offsets of everything."""
        reads = [self.read(part.first, part.last) for part in parts]
        tensors, groups, kept = self._lifetimes(parts)
        loads = [[name for name in names if name not in resident] for names in reads]
        used = dict.fromkeys(name for names in reads for name in names if name in resident)
        buffers = list(tensors)
        for number, (part, names) in enumerate(zip(parts, loads, strict=True)):
            ahead = self._limits.prefetch and number > 0
            first = parts[number - 1].first if ahead else part.first
            size = sum(self.sizes[name] for name in names)
            buffers.append(Lifetime(size_bytes=size, first=first, last=part.last - 1))
        offsets, workspace = pack(buffers)
        if self._limits.prefetch:
            offsets, workspace = _in_two_halves(buffers, len(tensors), (offsets, workspace))
        streamed = []
        for start, names in zip(offsets[len(tensors) :], loads, strict=True):
            places = accumulate((self.sizes[name] for name in names), initial=start)
            streamed.append(dict(zip(names, places, strict=False)))
        starts = accumulate((self.sizes[name] for name in used), initial=0)
        at = dict(zip(used, starts, strict=False))
        calls = sum(
            1 if part.stackable and self._limits.frames > 1 else self._limits.frames
            for part in parts
        )
        decrypted = sum(self.sizes[name] for names in loads for name in names)
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
            resident_bytes=sum(self.sizes[name] for name in used),
            workspace_bytes=workspace,
            overhead_s=calls * rates.step_s
            + decrypted / rates.decrypt_bytes_per_s
            + sum(map(len, loads)) * rates.read_s,
        )


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
