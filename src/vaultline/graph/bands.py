"""Bands of output rows: a run of nodes split along the height of its pictures.

Between two points where few bytes cross, the nodes are run once for every band of rows of the last
result, on the rows that the band needs: those around it too, which are computed twice. There is
padding only at the true borders, so results are those of the unsplit run. Only one band's tensors
exist at a time, besides what the run reads and makes (layer fusion over tiles: M. Alwani et al.,
"Fused-Layer CNN Accelerators", 2016).

It works on what the engine has optimised: weights are the same arrays for every band, and in the
blocked layout a band is a slice of a reshaped view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx
from onnx import helper

from vaultline.core.tensors import TensorSpec, align
from vaultline.graph.rows import Rows, Window, blocked_tensors, frames_of, height_of
from vaultline.graph.structure import Array, Model, Node, make_node
from vaultline.graph.tiles import slice_node

#: What a core does in a second, roughly: it decides between ways of splitting, nothing else.
_MACS_PER_S = 8e10
COPIED_BYTES_PER_S = 5e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Nodes ``[first, last)`` that read one tensor of others and make one for others."""

    first: int
    last: int
    source: str
    result: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What a run split into bands will take, besides what else is alive at the time.

    Attributes:
        peak_bytes: source, result, one band's tensors, and the weights of one node.
        extra_s: rows that are computed twice, and copies.
    """

    peak_bytes: int
    extra_s: float


def last_reads(model: Model) -> dict[str, int]:
    """By tensor, the last node that reads it; those that leave the segment, one past the end."""
    last = {name: index for index, node in enumerate(model.nodes) for name in node.reads}
    last.update({spec.name: len(model.nodes) for spec in model.outputs})
    return last


def runs(model: Model, ways: Sequence[Window | str]) -> list[Run]:
    """Every run that can be split."""
    last_read = last_reads(model)
    found: list[Run] = []
    for first in range(len(ways)):
        outside: set[str] = set()
        alive: set[str] = set()
        made: set[str] = set()
        for index in range(first, len(ways)):
            node = model.nodes[index]
            outside.update(name for name in frames_of(node, model) if name not in made)
            if isinstance(ways[index], str) or len(outside) > 1:
                break
            made.update(node.writes)
            alive = {name for name in (*alive, *node.writes) if last_read.get(name, -1) > index}
            if len(alive) == 1:
                run = Run(first=first, last=index + 1, source=min(outside), result=min(alive))
                found.append(run)
    return found


def outlook(
    model: Model,
    ways: Sequence[Window | str],
    last_read: Mapping[str, int],
    run: Run,
    bands: int,
) -> Outlook:
    """Estimate from a band in the middle, the largest.

    Args:
        last_read: ``last_reads(model)``.
    """
    specs = model.specs
    height = height_of(model, run.result)
    rows = {run.result: -(-height // bands)}
    for node, way in reversed(_ways(model, ways, run)):
        wanted = rows[node.writes[0]]
        for position, name in enumerate(node.proto.input):
            if name and name not in model.weights:
                count = wanted if position else (wanted - 1) * way.stride + way.reach
                most = height_of(model, name)
                rows[name] = max(rows.get(name, 0), min(most, count))
    size = {name: align(specs[name].nbytes) for name in rows}
    part = {name: size[name] * count // height_of(model, name) for name, count in rows.items()}
    fed = any(spec.name == run.source for spec in model.inputs)
    around = (0 if fed else size[run.source]) + size[run.result]
    alive = {run.source: part[run.source]}
    peak, extra_s = 2 * size[run.result], 0.0
    for index, (node, way) in enumerate(_ways(model, ways, run), start=run.first):
        name = node.writes[0]
        alive[name] = part[name]
        peak = max(peak, around + sum(alive.values()) + node.weight_bytes)
        again = max(0, bands * rows[name] - height_of(model, name))
        extra_s += again * way.macs / _MACS_PER_S
        extra_s += again * size[name] / height_of(model, name) / COPIED_BYTES_PER_S
        for read in frames_of(node, model):
            if last_read[read] <= index:
                alive.pop(read, None)
    copied = bands * part[run.source] + size[run.result]
    return Outlook(peak_bytes=peak, extra_s=extra_s + copied / COPIED_BYTES_PER_S)


def _ways(model: Model, ways: Sequence[Window | str], run: Run) -> list[tuple[Node, Window]]:
    """The run's nodes with their windows."""
    pairs = zip(model.nodes[run.first : run.last], ways[run.first : run.last], strict=True)
    return [(node, way) for node, way in pairs if isinstance(way, Window)]


def bounds(height: int, bands: int) -> list[Rows]:
    """The rows of each band: as equal as can be."""
    count = min(bands, height)
    edges = [height * k // count for k in range(count + 1)]
    return list(pairwise(edges))


class Banding:
    """Writes a run out in bands: new nodes, and the tensors and constants that they add."""

    def __init__(self, model: Model, ways: Sequence[Window | str], block: int) -> None:
        """Prepare.

        Args:
            ways: ``rows.windows(model)``.
            block: channels of a block of the engine's layout.
        """
        self._model, self._all, self._block = model, ways, block
        self._blocked = blocked_tensors(model)
        self.specs: dict[str, TensorSpec] = {}
        self.weights: dict[str, Array] = {}

    def write(self, run: Run, bands: int) -> list[Node]:
        """The nodes of every band, and the Concat that joins them."""
        protos: list[onnx.NodeProto] = []
        views: dict[str, str] = {}
        height = height_of(self._model, run.source)
        source = self.view(run.source, run.source, height, protos, views)
        height = height_of(self._model, run.result)
        made = []
        for rows in bounds(height, bands):
            band = _Band(self, run, rows, source)
            made.append(band.write(protos))
        joined = run.result
        if run.result in self._blocked:
            joined = f"{run.result}/joined"
            self.specs[joined] = self._viewed(run.result, joined, height)
        protos.append(helper.make_node("Concat", made, [joined], axis=2))
        if joined != run.result:
            self.reshape(joined, run.result, self._model.specs[run.result].shape, protos)
        return [make_node(proto) for proto in protos]

    def ways_of(self, run: Run) -> list[tuple[Node, Window]]:
        """The run's nodes with their windows."""
        return _ways(self._model, self._all, run)

    def wanted(self, node: Node, way: Window, rows: Rows) -> list[tuple[int, str, Rows]]:
        """Position, name and rows of every operand that is no weight, for rows of the result."""
        found = []
        for position, name in enumerate(node.proto.input):
            if name and name not in self._model.weights:
                of = height_of(self._model, node.writes[0])
                own = way.needs(rows, of, height_of(self._model, name))[0]
                found.append((position, name, rows if position else own))
        return found

    def pads_of(self, node: Node, way: Window, rows: Rows) -> list[int]:
        """Padding of a window on a band: top, left, bottom, right."""
        of, height = (height_of(self._model, n) for n in (node.writes[0], node.proto.input[0]))
        above, below = way.needs(rows, of, height)[1]
        return [above, way.sides[0], below, way.sides[1]]

    def is_blocked(self, name: str) -> bool:
        return name in self._blocked

    def height(self, name: str) -> int:
        return height_of(self._model, name)

    def band_spec(self, name: str, band: str, count: int) -> TensorSpec:
        """The spec of some rows of a tensor."""
        spec = self._model.specs[name]
        shape = (*spec.shape[:-2], count, spec.shape[-1])
        self.specs[band] = TensorSpec(name=band, dtype=spec.dtype, shape=shape)
        return self.specs[band]

    def _viewed(self, name: str, view: str, count: int) -> TensorSpec:
        """Some rows of a blocked tensor with the blocks' channels beside the columns."""
        spec = self._model.specs[name]
        _, channels, _, width = spec.shape
        shape = (1, channels // self._block, count, width * self._block)
        return TensorSpec(name=view, dtype=spec.dtype, shape=shape)

    def view(
        self,
        name: str,
        original: str,
        count: int,
        protos: list[onnx.NodeProto],
        views: dict[str, str],
    ) -> str:
        """A tensor of ``count`` rows of ``original`` in a form whose rows can be cut out."""
        if original not in self._blocked:
            return name
        if name not in views:
            views[name] = f"{name}/view"
            spec = self._viewed(original, views[name], count)
            self.specs[spec.name] = spec
            self.reshape(name, spec.name, spec.shape, protos)
        return views[name]

    def reshape(
        self, name: str, target: str, shape: Sequence[int], protos: list[onnx.NodeProto]
    ) -> None:
        """Another shape for the same bytes."""
        wanted = self.constant(f"{target}/shape", shape)
        protos.append(helper.make_node("Reshape", [name, wanted], [target]))

    def constant(self, name: str, values: Sequence[int]) -> str:
        """Integers as an operand."""
        self.weights[name] = np.asarray(values, np.int64)
        return name

    def slice(
        self, view: str, original: str, rows: Rows, target: str, protos: list[onnx.NodeProto]
    ) -> None:
        """Rows ``rows``, counted within the view, as a tensor of ``original``'s kind."""
        axis = len(self._model.specs[original].shape) - 2
        cut = target
        if self.is_blocked(original):
            cut = f"{target}/cut"
            self.specs[cut] = self._viewed(original, cut, rows[1] - rows[0])
        opset = self._model.opsets.get("", 1)
        protos.append(slice_node(view, cut, axis, rows, self.weights, opset))
        spec = self.band_spec(original, target, rows[1] - rows[0])
        if cut != target:
            self.reshape(cut, target, spec.shape, protos)


class _Band:
    """One band of a run."""

    def __init__(self, banding: Banding, run: Run, rows: Rows, source: str) -> None:
        self._banding, self._run, self._rows, self._source = banding, run, rows, source
        self._suffix = f"rows{rows[0]}-{rows[1]}"
        self._ways = banding.ways_of(run)
        self._have = self._ranges()
        self._cuts: dict[tuple[str, Rows], str] = {}
        self._views: dict[str, str] = {}

    def _ranges(self) -> Mapping[str, Rows]:
        """The rows of each tensor that the band needs: of all its readers together."""
        found: dict[str, Rows] = {self._run.result: self._rows}
        for node, way in reversed(self._ways):
            rows = found[node.writes[0]]
            for _, name, (first, last) in self._banding.wanted(node, way, rows):
                known = found.get(name, (first, last))
                found[name] = (min(first, known[0]), max(last, known[1]))
        return found

    def write(self, protos: list[onnx.NodeProto]) -> str:
        """Append the band's nodes; the name of its part of the result, ready to be joined."""
        for node, way in self._ways:
            name = node.writes[0]
            rows = self._have[name]
            proto = onnx.NodeProto()
            proto.CopyFrom(node.proto)
            proto.name = f"{node.name}/{self._suffix}"
            for position, operand, wanted in self._banding.wanted(node, way, rows):
                proto.input[position] = self._operand(operand, wanted, protos)
            proto.output[:] = [self._named(name)]
            spec = self._banding.band_spec(name, proto.output[0], rows[1] - rows[0])
            if not way.pointwise:
                _set_pads(proto, self._banding.pads_of(node, way, rows))
            if proto.op_type == "Reshape":
                shape = f"{proto.output[0]}/shape"
                proto.input[1] = self._banding.constant(shape, spec.shape)
            protos.append(proto)
        result = self._run.result
        count = self._rows[1] - self._rows[0]
        return self._banding.view(self._named(result), result, count, protos, self._views)

    def _named(self, name: str) -> str:
        return f"{name}/{self._suffix}"

    def _operand(self, name: str, wanted: Rows, protos: list[onnx.NodeProto]) -> str:
        """The rows that a node wants, cut out where there are more."""
        banding, whole = self._banding, name == self._run.source
        have = (0, banding.height(name)) if whole else self._have[name]
        if have == wanted:
            return name if whole else self._named(name)
        key = (name, wanted)
        if key not in self._cuts:
            made = self._named(name)
            count = have[1] - have[0]
            view = self._source
            if not whole:
                view = banding.view(made, name, count, protos, self._views)
            self._cuts[key] = f"{made}/{wanted[0]}-{wanted[1]}"
            within = (wanted[0] - have[0], wanted[1] - have[0])
            banding.slice(view, name, within, self._cuts[key], protos)
        return self._cuts[key]


def _set_pads(proto: onnx.NodeProto, pads: list[int]) -> None:
    for index in reversed(range(len(proto.attribute))):
        if proto.attribute[index].name in ("pads", "auto_pad"):
            del proto.attribute[index]
    proto.attribute.append(helper.make_attribute("pads", pads))
