"""The steps of a compiled segment: those that take the least time within the memory.

A pass runs step by step over all of its frames, so a step's weights are decrypted once a pass. What
lies between two steps is kept for every frame; what lies within one step, for a single frame: its
frames go through one after another. So early layers, whose tensors are large and whose weights are
small, become one long step, and late ones many short ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from vaultline.core.errors import InfeasibleError
from vaultline.core.units import format_bytes
from vaultline.cost.grouping import Table, cheapest, least_peak, widest
from vaultline.graph.lifetimes import Tensors, each_once, engine_made
from vaultline.graph.placing import Layout, Limits, Placing
from vaultline.graph.steps import Part
from vaultline.graph.structure import Model

#: Sizes of the workspace that are tried: more of them gain less than a hundredth of the time.
_BOUNDS_TRIED = 24
#: Prices of a byte that a step needs beyond that size, seconds: none, and what steps are worth.
_EXCESS_PRICES = (0.0, 1e-12, 1e-11, 1e-10, 1e-9)
#: Layouts that are worked out to the byte.
_FINISHED = 3
#: Tensors that an error names.
_NAMED = 6
#: A step of a paged stage touches at most this part of the page cache, unless one node needs more:
#: many more steps cost time for calls, much larger ones leave reclaim no choice.
_PAGED_SHARE = 8


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
    life, node = Tensors(model), model.nodes[index]
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
        self._life = Tensors(model, engine_made(model, regions, limits.frames))
        self._placing = Placing(model, self._life, limits)
        self._sizes = self._placing.sizes
        self._need, self._price = self._tables(alone)
        self._weights = self._step_weights()
        self._total = sum(self._sizes[name] for name in self._placing.read(0, len(self._nodes)))

    def all_resident(self) -> Layout:
        """Every weight stays: as few steps as possible."""
        bound: float = self._memory - self._total
        while (cut := cheapest(self._need, self._price, bound)) is not None:
            layout = self._placing.finished(self._parts(cut[1]), set(self._sizes))
            if layout.resident_bytes + layout.workspace_bytes <= self._memory:
                return layout
            # What is lost between buffers did not fit: a little less, or other steps.
            bound = widest(self._need, cut[1]) - 1
        raise self._infeasible(least_peak(self._need) + self._total)

    def paged(self) -> Layout:
        """Every weight has a place in memory that is not all protected. Steps touch little of it
        at once, so that pages come and go about as they would under one long step."""
        need = self._need + self._weights
        least = least_peak(need)
        if least > self._memory:
            raise self._infeasible(least)
        cut = cheapest(need, self._price, max(least, self._memory / _PAGED_SHARE))
        return self._placing.finished(self._parts(cut[1] if cut else ()), set(self._sizes))

    def best(self) -> Layout:
        """The layout of least time."""
        if not self._nodes:  # everything is passed through
            return self._placing.finished((), set())
        least = least_peak(self._need + self._weights)
        if least > self._memory:
            raise self._infeasible(least)
        if not self._limits.keep:
            return self._all_streamed(least)
        found = self._candidates()
        ranked = sorted(found, key=lambda places: found[places])
        layouts: list[Layout] = []
        for places in ranked:
            layout = self._placing.filled(self._parts(places), self._memory)
            layouts += [layout] if layout else []
            if len(layouts) == _FINISHED:
                break
        if not layouts:
            raise self._infeasible(least)
        return min(layouts, key=lambda layout: layout.overhead_s)

    def _all_streamed(self, least: float) -> Layout:
        """No weight stays: as few steps as the workspace allows."""
        need, bound = self.needs(), float(self._memory)
        while (cut := cheapest(need, self.price(), bound)) is not None:
            layout = self._placing.finished(self._parts(cut[1]), set())
            if layout.workspace_bytes <= self._memory:
                return layout
            # What is lost between buffers did not fit: a little less, or other steps.
            bound = widest(need, cut[1]) - 1
        raise self._infeasible(least)

    def _candidates(self) -> dict[tuple[int, ...], float]:
        """Cuts into steps, and about how long a pass takes with each.

        With a workspace of ``bound`` bytes, all but that may be filled with weights that stay; a
        step that needs more than ``bound`` is possible if as many bytes of its own weights stay.
        """
        found: dict[tuple[int, ...], float] = {}
        # As many steps as there may be: the last resort.
        finest = cheapest(self._need, np.where(np.isfinite(self._need), -1.0, np.inf), np.inf)
        if finest is not None:
            found[finest[1]] = np.inf
        for ahead in self._ahead():
            need = self._need + self._weights + ahead
            for bound in self._bounds(need, ahead):
                room = self._memory - bound
                excess = np.maximum(need - bound, 0.0)
                if ahead:
                    excess = np.maximum(excess, self._weights - ahead)
                excess[excess > self._weights] = np.inf
                for places in self._cuts(excess, room):
                    kept = max(room, self._memory - widest(need, places))
                    calls_s = sum(self._price[a, b] for a, b in pairwise(places))
                    streamed = max(0.0, self._total - kept)
                    time_s = calls_s + streamed / self._limits.rates.decrypt_bytes_per_s
                    found[places] = min(time_s, found.get(places, np.inf))
        return found

    def _cuts(self, excess: Table, room: float) -> Iterator[tuple[int, ...]]:
        """The fewest steps whose excess fits, and the fewest without any."""
        for price in _EXCESS_PRICES:
            allowed = np.isfinite(excess)
            paid = self._price + price * np.where(allowed, excess, 0.0)
            cut = cheapest(excess, paid, room)
            if cut is None:
                return
            if sum(excess[a, b] for a, b in pairwise(cut[1])) <= room:
                yield cut[1]
                break
        cut = cheapest(excess, self._price, 0.0)
        if cut is not None:
            yield cut[1]

    def _ahead(self) -> list[float]:
        """With prefetch, room for the weights of the next step: several sizes are tried, and none,
        which is right where neighbours don't both have weights."""
        if not self._limits.prefetch:
            return [0.0]
        largest = float(np.diagonal(self._weights, offset=1).max(initial=0.0))
        tile = float(min(self._limits.ahead_bytes, self._total))
        return list(dict.fromkeys((max(largest, tile), largest, 2 * largest, largest / 2, 0.0)))

    def _bounds(self, need: Table, ahead: float) -> list[float]:
        """Sizes of the workspace to try."""
        least, most = least_peak(self._need + ahead), float(self._memory)
        values = np.unique(need[np.isfinite(need)])
        values = values[(values >= least) & (values <= most)]
        chosen = np.unique(np.linspace(0, len(values) - 1, _BOUNDS_TRIED).astype(int))
        special = {least, least_peak(need), most - self._total}
        bounds = {float(value) for value in values[chosen]} if len(values) else set()
        return sorted(bound for bound in bounds | special if least <= bound <= most)

    def _tables(self, alone: frozenset[str]) -> tuple[Table, Table]:
        """Need without weights, and price in seconds, of every step that may be."""
        frames, count = self._limits.frames, len(self._nodes)
        need = self._life.need(self._regions, frames)
        price = np.full_like(need, frames * self._limits.rates.step_s)
        for index, node in enumerate(self._nodes):
            if node.writes[0] in alone:
                need[:index, index + 1 :] = np.inf
                need[index, index + 2 :] = np.inf
        for region in self._regions:
            if region.stackable:
                price[region.first : region.last, : count + 1] /= frames
        price[~np.isfinite(need)] = np.inf
        return need, price

    def _step_weights(self) -> Table:
        """Weights of every step."""
        uses: dict[str, list[int]] = {}
        for index, node in enumerate(self._nodes):
            for name in node.reads:
                if name in self._sizes:
                    uses.setdefault(name, []).append(index)
        return each_once(
            len(self._nodes), [(nodes, self._sizes[name]) for name, nodes in uses.items()]
        )

    def needs(self) -> Table:
        """Bytes of every step with the weights that it holds; all of them if they stay."""
        if self._limits.mode == "resident":
            return self._need + self._total
        need = self._need + self._weights
        if self._limits.mode == "streamed" and self._limits.prefetch:
            ahead = self._ahead()[0]
            # Right for steps whose neighbours have no more weights than the largest node or tile.
            need = np.where(self._weights <= ahead, need + ahead, np.inf)
        return need

    def price(self) -> Table:
        """Seconds of every step besides computing, if every weight is streamed.

        One that several steps read is decrypted for each of them.
        """
        if self._limits.mode != "streamed":
            return self._price
        return self._price + self._weights / self._limits.rates.decrypt_bytes_per_s

    def _parts(self, places: tuple[int, ...]) -> tuple[Part, ...]:
        def stackable(first: int) -> bool:
            return any(each.stackable and each.first <= first < each.last for each in self._regions)

        return tuple(Part(first=a, last=b, stackable=stackable(a)) for a, b in pairwise(places))

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
