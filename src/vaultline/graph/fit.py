"""Arranging a segment within little memory: what is split, so that its largest tensors fit.

A segment that fits as it stands is only split where that is quicker: memory that tensors don't take
keeps weights from being decrypted again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from vaultline.core.errors import InfeasibleError
from vaultline.core.tensors import align
from vaultline.core.units import format_bytes
from vaultline.cost.grouping import cheapest, least_peak
from vaultline.cost.memory import NODE_BYTES
from vaultline.graph.bands import (
    COPIED_BYTES_PER_S,
    Banding,
    Run,
    last_reads,
    outlook,
    runs,
)
from vaultline.graph.layout import held_by, lay_out, needs
from vaultline.graph.placing import Layout, Limits
from vaultline.graph.rows import windows
from vaultline.graph.steps import Part, regions
from vaultline.graph.structure import Model, Node, rebuilt
from vaultline.graph.takings import fixed_bytes, steps_bytes
from vaultline.graph.tiles import can_be_tiled, conv_tile_bytes, conv_tiles
from vaultline.graph.turn import turned

#: Numbers of bands that are tried.
_BANDS = (2, 3, 4, 6, 8, 12, 16, 24, 32)
#: How often a plan that turns out to need more than estimated is made again for less.
_TRIES = 5
#: Nodes that an error names.
_NAMED = 3
#: Shares of the workspace of the unsplit segment that bands may shrink it to, to be quicker.
_SHARES = (0.75, 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arranged:
    """A segment with its layout.

    Attributes:
        parts: ranges of nodes that no step crosses.
        engine_bytes: what the engine takes for itself.
        bands: runs that are split, and into how many bands.
    """

    model: Model
    layout: Layout
    engine_bytes: int
    bands: tuple[tuple[Run, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """One change: a run in bands, or a convolution in tiles of at most so many bytes."""

    extra_s: float
    run: Run | None = None
    bands: int = 0
    node: int = 0
    tile_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """Changes to a model: runs in bands, convolutions in tiles (by node, bytes of one)."""

    bands: dict[Run, int]
    tiles: dict[int, int]
    extra_s: float = 0.0


class Fitting:
    """One segment and all ways of splitting it, for any amount of memory."""

    def __init__(self, model: Model, alone: frozenset[str], limits: Limits, block: int) -> None:
        """Prepare.

        Args:
            alone: first outputs of nodes that must be steps of their own.
            limits: their memory doesn't count here.
            block: channels of a block of the engine's layout.
        """
        self._model, self._alone, self._limits, self._block = model, alone, limits, block
        self._memory = 1 << 62
        self._ways = windows(model)
        self._parts = regions(model)
        self._need, self._price = needs(model, self._parts, alone, limits)
        self._own = np.diagonal(self._need, offset=1)
        self._taken = self._fixed(model, self._parts) + steps_bytes(
            model, self._parts, limits.frames
        )
        self._last_read = last_reads(model)
        weights = {name for node in model.nodes for name in node.reads}
        self._total = sum(model.weights[name].nbytes for name in weights if name in model.weights)
        self._runs: list[tuple[Run, int]] | None = None
        self._costs: dict[Run, list[tuple[int, float]]] = {}

    def found(self, memory_bytes: int, *, quickest: bool = True) -> Arranged:
        """Lay the segment out, split as far as that is needed or quicker.

        Args:
            memory_bytes: for weights, tensors and the engine.
            quickest: split what fits unsplit, too, if that saves time.

        Raises:
            InfeasibleError: no way of running it fits.
        """
        self._memory = memory_bytes
        try:
            whole = self._applied(_Plan(bands={}, tiles={}))
        except InfeasibleError as error:
            if self._limits.mode == "paged":
                raise
            return self._shrunk(error)
        return self._quicker(whole) if quickest and self._limits.mode == "streamed" else whole

    def tiles_are_too_large(self, memory_bytes: int) -> bool:
        """Whether a matrix that could be cut smaller needs more than this."""
        room = memory_bytes - self._taken
        return any(
            own > room and can_be_tiled(node, self._model)
            for node, own in zip(self._model.nodes, self._own, strict=True)
        )

    def _shrunk(self, error: InfeasibleError) -> Arranged:
        """Split until it fits."""
        room = self._memory
        for tried in range(_TRIES):
            plan = self._plan(room)
            if plan is None:
                raise self._explained(error, room)
            try:
                return self._applied(plan)
            except InfeasibleError as closer:
                error = closer
                # By how much the estimate was too low is not known: less, and less again.
                room -= room * 2**tried // 64
        raise error

    def _explained(self, error: InfeasibleError, room: int) -> InfeasibleError:
        """Say what no way of splitting brings within the room, and why."""
        low, high = room, int(least_peak(self._need)) + self._taken
        while high - low > 1 << 12:
            middle = (low + high) // 2
            low, high = (low, middle) if self._plan(middle) is not None else (middle, high)
        stuck = self._stuck(low)
        if not stuck:
            return error
        frames = self._limits.frames
        return InfeasibleError(
            error.message,
            got=f"{format_bytes(max(self._memory, 0))} for weights, tensors and the engine",
            expected=f"about {format_bytes(high + (self._memory - room))} at least for passes of "
            f"{frames} frame{'s' * (frames > 1)}: " + "; ".join(stuck[:_NAMED]),
            remedy=error.remedy,
        )

    def _stuck(self, memory: int) -> list[str]:
        """The nodes that need more than there is in every way, neediest first."""
        room = memory - self._taken
        covered: set[int] = set()
        for place, _ in (*self._in_tiles(room), *self._in_bands(room)):
            covered.update(range(*place))
        own = np.where(np.isfinite(self._own), self._own, 0.0)
        return [
            self._described(int(index))
            for index in np.argsort(-own, kind="stable")
            if own[index] > room and int(index) not in covered
        ]

    def _described(self, index: int) -> str:
        """A node, its tensors, and what keeps it from being split, or from being split further."""
        node, way = self._model.nodes[index], self._ways[index]
        streamed = self._limits.mode == "streamed"
        held = ", ".join(held_by(self._model, index, weights=streamed))
        said = f"{node.op} {node.name!r} with {held}"
        if isinstance(way, str):
            return f"{said}, which can't be split into bands of rows: {way}"
        least = [
            (cost[0], run)
            for run, _ in self._all_runs()
            if run.first <= index < run.last
            for cost in self._costs.get(run, ())
        ]
        if not least:
            return f"{said}, which is in no run of nodes that can be split into bands of rows"
        most, run = min(least, key=lambda each: each[0])
        first, last = (self._model.nodes[k].name for k in (run.first, run.last - 1))
        return f"{said}; in the best bands, from {first!r} to {last!r}, {format_bytes(most)}"

    def _quicker(self, whole: Arranged) -> Arranged:
        """Take bands if the memory that they free saves more than they cost."""
        best, best_s = whole, whole.layout.overhead_s
        streamed = sum(
            self._model.weights[name].nbytes for names in whole.layout.streamed for name in names
        )
        workspace, rate = whole.layout.workspace_bytes, self._limits.rates.decrypt_bytes_per_s
        for share in _SHARES:
            freed = min(streamed, (1 - share) * workspace)
            plan = self._plan(int(share * workspace)) if freed else None
            if plan is None or plan.extra_s >= freed / rate:
                break
            try:
                split = self._applied(plan)
            except InfeasibleError:
                break
            if split.layout.overhead_s + plan.extra_s < best_s:
                best, best_s = split, split.layout.overhead_s + plan.extra_s
        return best

    def _applied(self, plan: _Plan) -> Arranged:
        """The segment changed and laid out."""
        model = self._changed(plan)
        parts = regions(model)
        if self._limits.mode == "resident":
            # A streamed tile is in cache when it is multiplied: packing it costs little.
            model, parts = turned(model, parts)
        layout, taken = self._laid_out(model, parts)
        return Arranged(
            model=model, layout=layout, engine_bytes=taken, bands=tuple(plan.bands.items())
        )

    def _fixed(self, model: Model, parts: Sequence[Part]) -> int:
        limits = self._limits
        return fixed_bytes(model, parts, self._alone, limits.frames, limits.threads)

    def _laid_out(self, model: Model, parts: Sequence[Part]) -> tuple[Layout, int]:
        """The layout, and what the engine takes: the more steps there are, the more."""
        fixed, frames = self._fixed(model, parts), self._limits.frames
        taken = fixed + steps_bytes(model, parts, frames)
        while True:
            left = replace(self._limits, memory_bytes=self._memory - taken)
            layout = lay_out(model, parts, self._alone, left)
            needed = fixed + steps_bytes(model, layout.parts, frames)
            if needed <= taken:
                return layout, needed
            taken = needed + needed // 64

    def _changed(self, plan: _Plan) -> Model:
        model = self._model
        if not plan.bands and not plan.tiles:
            return model
        weights, specs = dict(model.weights), dict(model.specs)
        banding = Banding(model, self._ways, self._block)
        starts = {run.first: run for run in plan.bands}
        nodes: list[Node] = []
        index = 0
        while index < len(model.nodes):
            if index in starts:
                run = starts[index]
                nodes += banding.write(run, plan.bands[run])
                index = run.last
                continue
            node = model.nodes[index]
            if index in plan.tiles:
                opset = model.opsets.get("", 1)
                nodes += conv_tiles(node, plan.tiles[index], weights, specs, opset)
            else:
                nodes.append(node)
            index += 1
        weights.update(banding.weights)
        specs.update(banding.specs)
        return rebuilt(model, nodes, weights, specs)

    def _plan(self, room: int) -> _Plan | None:
        """The changes of least time under which every step stays within ``room``, by estimate."""
        room -= self._taken
        offered = np.where(self._need <= room, self._need, np.inf)
        paid = np.where(self._need <= room, self._price, np.inf)
        choices: dict[tuple[int, int], _Choice] = {}
        for place, choice in (*self._in_tiles(room), *self._in_bands(room)):
            price_s = self._least_price_s(place) + choice.extra_s
            if price_s < paid[place]:
                offered[place], paid[place], choices[place] = room, price_s, choice
        cut = cheapest(offered, paid, room)
        if cut is None:
            return None
        chosen = [choices[place] for place in pairwise(cut[1]) if place in choices]
        return _Plan(
            bands={each.run: each.bands for each in chosen if each.run is not None},
            tiles={each.node: each.tile_bytes for each in chosen if each.run is None},
            extra_s=sum(each.extra_s for each in chosen),
        )

    def _least_price_s(self, place: tuple[int, int]) -> float:
        """Of a step: one call a frame, and its weights."""
        rates = self._limits.rates
        calls_s = self._limits.frames * rates.step_s
        if self._limits.mode != "streamed":
            return calls_s
        streamed = sum(node.weight_bytes for node in self._model.nodes[slice(*place)])
        return calls_s + streamed / rates.decrypt_bytes_per_s

    def _in_tiles(self, room: int) -> Iterator[tuple[tuple[int, int], _Choice]]:
        """Convolutions that can be computed a few output channels at a time."""
        if self._limits.mode != "streamed":
            return
        waiting, frames = (2 if self._limits.prefetch else 1), self._limits.frames
        for index, node in enumerate(self._model.nodes):
            least = conv_tile_bytes(node, self._model)
            own = self._own[index]
            if not least or not np.isfinite(own):
                continue
            kernel = self._model.weights[node.proto.input[1]].nbytes
            result = frames * node.output_bytes
            # Parts of the result wait until they are joined; so do those of what is added to it.
            others = own - waiting * kernel + result * (2 if len(node.proto.input) > 3 else 1)
            most = min(int((room - others) // waiting), kernel // 2)
            if most >= least:
                extra_s = result / COPIED_BYTES_PER_S
                yield (
                    (index, index + 1),
                    _Choice(node=index, tile_bytes=most, extra_s=extra_s),
                )

    def _in_bands(self, room: int) -> Iterator[tuple[tuple[int, int], _Choice]]:
        """Runs that stay within the room in bands and wouldn't without."""
        for run, around in self._all_runs():
            place = (run.first, run.last)
            fits = self._own[slice(*place)].max() <= room
            if self._need[place] <= room or (fits and self._limits.frames == 1):
                continue
            for number, bands in enumerate(_BANDS):
                need, extra_s = self._cost(run, around, number)
                if need <= room:
                    yield place, _Choice(run=run, bands=bands, extra_s=extra_s)
                    break

    def _cost(self, run: Run, around: int, number: int) -> tuple[int, float]:
        """Bytes and additional seconds of a run in so many bands."""
        costs = self._costs.setdefault(run, [])
        while len(costs) <= number:
            bands = _BANDS[len(costs)]
            seen = outlook(self._model, self._ways, self._last_read, run, bands)
            nodes = bands * (2 * (run.last - run.first) + 4)
            need = around + seen.peak_bytes + nodes * NODE_BYTES
            costs.append((need, self._limits.frames * seen.extra_s))
        return costs[number]

    def _all_runs(self) -> list[tuple[Run, int]]:
        """Every run, and the bytes that are held while it runs besides those of its outlook."""
        if self._runs is None:
            self._runs = [(run, self._around(run)) for run in runs(self._model, self._ways)]
        return self._runs

    def _around(self, run: Run) -> int:
        model, frames = self._model, self._limits.frames
        edge = {spec.name for spec in (*model.inputs, *model.outputs)}
        made = (name for node in model.nodes[: run.first] for name in node.writes)
        waiting = [
            name
            for name in made
            if self._last_read.get(name, -1) >= run.first
            and name not in edge
            and name != run.source
            and name in model.specs
        ]
        held = frames * sum(align(model.specs[name].nbytes) for name in waiting)
        held += (frames - 1) * sum(
            align(model.specs[name].nbytes) for name in (run.source, run.result) if name not in edge
        )
        weights = [node.weight_bytes for node in model.nodes[run.first : run.last]]
        if self._limits.mode != "streamed":
            held += self._total
        elif frames > 1:  # the run is one step, so that only its ends wait for every frame
            held += sum(weights) - max(weights)
        if self._limits.prefetch:
            held += max((node.weight_bytes for node in model.nodes), default=0)
        return held
