"""Step groups of a model: the consecutive nodes that a server runs at once, and how many frames.

A run of a group takes ``frames`` requests through it, with its weights decrypted once for all of
them or kept from before. Nobody else runs on that core meanwhile. So:

- a group computes for at most about ``run_s_max`` seconds with all of its frames. Where one frame
  takes longer, the group has one frame, and each second beyond counts as much as a second of work;
- what a boundary costs is weighed against that: leaving and entering the engine's layout, a run's
  command, and what requests carry over it, which takes memory while they wait;
- frames that come together share the decryption and, in matrix products, the reading of weights.
  Where that is most of the work (the fully connected end of a convolutional network), a group of
  its own takes many frames.

Boundaries and frames are chosen together, exactly over the candidates of ``cuts``, for the fewest
seconds per frame if runs are half full and every other one finds its weights kept. By default nodes
are priced from the model alone, so that preparing a model twice divides it in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from math import prod

from vaultline.core.errors import InputError
from vaultline.core.limits import STAGES_MAX
from vaultline.core.memory import StreamRates
from vaultline.graph.cuts import Cut, candidates, cuts
from vaultline.graph.structure import Model, Node

#: About what one AVX-512 core did with ten networks: multiplications of convolutions, bytes that
#: other nodes read and write, and weights of a matrix product.
_MACS_PER_S = 1e11
_MOVED_BYTES_PER_S = 4e10
_MULTIPLIED_BYTES_PER_S = 3e10
#: Frames that a group may have.
_FRAMES = (1, 2, 4, 8, 16)
#: So many groups at most are planned for; runs are longer where that does not suffice.
_GROUPS_MAX = STAGES_MAX // 2
#: Nodes that move nothing, or are fused into the one before.
_FREE = frozenset(
    {
        "BatchNormalization", "Clip", "Dropout", "Flatten", "Identity", "Relu", "Reshape",
        "Squeeze", "Unsqueeze",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCost:
    """What a node costs.

    Attributes:
        frame_s: for each frame.
        once_s: for a run, however many frames it has: reading the weights of a matrix product.
        weight_bytes: to be decrypted.
    """

    frame_s: float
    once_s: float = 0.0
    weight_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRule:
    """How a model is divided.

    Attributes:
        run_s_max: about how long a run computes at most.
        frames_max: the most frames of a run.
        near: of the numbers of frames whose seconds per frame are within this factor of the least,
            the smallest is taken.
        cut_s, tensor_s: what a boundary costs each request, and each tensor beyond its first.
        carried_bytes_per_s: at which what crosses it is counted: copied twice, and held meanwhile.
    """

    run_s_max: float = 0.06
    frames_max: int = 16
    near: float = 1.03
    cut_s: float = 5e-4
    tensor_s: float = 1e-4
    carried_bytes_per_s: float = 1e9
    rates: StreamRates = field(default_factory=StreamRates)

    def __post_init__(self) -> None:
        if not (self.run_s_max > 0 and self.frames_max >= 1 and self.near >= 1):
            raise InputError("a model can't be divided by this rule", got=str(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepGroup:
    """Nodes ``[first, last)``, the most frames of a run, and what one costs by estimate.

    Attributes:
        frame_s: for each frame; once_s: for the run; load_s: for decrypting the weights.
    """

    first: int
    last: int
    frames: int
    frame_s: float
    once_s: float
    load_s: float

    def run_s(self, frames: int) -> float:
        """Seconds of a run whose weights are there."""
        return self.once_s + frames * self.frame_s


def estimated(model: Model) -> tuple[NodeCost, ...]:
    """Every node's cost from the model alone."""
    return tuple(_estimated(node, model) for node in model.nodes)


def from_times(model: Model, seconds: Sequence[float]) -> tuple[NodeCost, ...]:
    """Every node's cost where one frame's seconds were measured (``node_times``)."""
    found = []
    for node, spent_s in zip(model.nodes, seconds, strict=True):
        guess = _estimated(node, model)
        once_s = min(guess.once_s, spent_s)
        found.append(
            NodeCost(frame_s=spent_s - once_s, once_s=once_s, weight_bytes=guess.weight_bytes)
        )
    return tuple(found)


def step_groups(
    model: Model, rule: GroupRule | None = None, costs: Sequence[NodeCost] | None = None
) -> tuple[StepGroup, ...]:
    """Divide a model: groups in order that cover it, every boundary a usable cut.

    Args:
        costs: of every node; by default ``estimated``.

    Raises:
        InputError: the model has nothing to run.
    """
    if not model.node_count:
        raise InputError(
            "the model computes nothing, so there is nothing to serve",
            expected="a model with at least one node",
        )
    division = _Division(model, rule or GroupRule(), costs or estimated(model))
    return tuple(division.group(a, b) for a, b in pairwise(division.boundaries()))


def whole(model: Model) -> StepGroup:
    """The model as one group of one frame."""
    costs = estimated(model)
    return StepGroup(
        first=0,
        last=model.node_count,
        frames=1,
        frame_s=sum(cost.frame_s for cost in costs),
        once_s=sum(cost.once_s for cost in costs),
        load_s=sum(cost.weight_bytes for cost in costs) / StreamRates().decrypt_bytes_per_s,
    )


class _Division:
    """Every group that a model may have, and the cheapest row of them."""

    def __init__(self, model: Model, rule: GroupRule, costs: Sequence[NodeCost]) -> None:
        self._rule = rule
        every = cuts(model)
        self._cuts = [every[position] for position in candidates(model)]
        self._frame_s = list(accumulate((cost.frame_s for cost in costs), initial=0.0))
        self._once_s = list(accumulate((cost.once_s for cost in costs), initial=0.0))
        self._weights = list(accumulate((cost.weight_bytes for cost in costs), initial=0))
        self._run_s_max = max(rule.run_s_max, self._frame_s[-1] / _GROUPS_MAX)
        self._counts = tuple(count for count in _FRAMES if count <= rule.frames_max)

    def boundaries(self) -> list[int]:
        """Positions from 0 to the end, of least seconds per frame."""
        best = [0.0] + [float("inf")] * (len(self._cuts) - 1)
        before = [0] * len(self._cuts)
        for there in range(1, len(self._cuts)):
            for here in range(there):
                spent_s = best[here] + self._seconds(here, there)
                if spent_s < best[there]:
                    best[there], before[there] = spent_s, here
        chosen = [len(self._cuts) - 1]
        while chosen[-1]:
            chosen.append(before[chosen[-1]])
        return [self._cuts[index].position for index in reversed(chosen)]

    def group(self, first: int, last: int) -> StepGroup:
        """A group with the frames that the rule gives it."""
        frame_s, once_s, load_s = self._costs(first, last)
        each = {count: frame_s + (once_s + load_s) / count for count in self._allowed(frame_s)}
        enough = self._rule.near * min(each.values())
        return StepGroup(
            first=first,
            last=last,
            frames=min(count for count, seconds in each.items() if seconds <= enough),
            frame_s=frame_s,
            once_s=once_s,
            load_s=load_s,
        )

    def _seconds(self, here: int, there: int) -> float:
        """Per frame, of the group between two candidates, and of the boundary before it."""
        frame_s, once_s, load_s = self._costs(self._cuts[here].position, self._cuts[there].position)
        excess_s = max(0.0, frame_s - self._run_s_max)
        # Not every run is full, and not every run has to decrypt.
        frames = (1 + max(self._allowed(frame_s))) / 2
        return frame_s + (once_s + load_s / 2) / frames + excess_s + self._boundary_s(here)

    def _costs(self, first: int, last: int) -> tuple[float, float, float]:
        weights = self._weights[last] - self._weights[first]
        return (
            self._frame_s[last] - self._frame_s[first],
            self._once_s[last] - self._once_s[first],
            weights / self._rule.rates.decrypt_bytes_per_s,
        )

    def _allowed(self, frame_s: float) -> list[int]:
        """Numbers of frames with which a run is not too long; one in any case."""
        return [count for count in self._counts if count == 1 or count * frame_s <= self._run_s_max]

    def _boundary_s(self, index: int) -> float:
        if not index:
            return 0.0
        cut: Cut = self._cuts[index]
        more = self._rule.tensor_s * (len(cut.tensors) - 1)
        return self._rule.cut_s + more + cut.nbytes / self._rule.carried_bytes_per_s


def _estimated(node: Node, model: Model) -> NodeCost:
    macs = _macs(node, model)
    if macs is None:
        moved = 0 if node.op in _FREE else node.output_bytes + _read_bytes(node, model)
        return NodeCost(frame_s=moved / _MOVED_BYTES_PER_S, weight_bytes=node.weight_bytes)
    product = node.op in ("Gemm", "MatMul")
    return NodeCost(
        frame_s=macs / _MACS_PER_S,
        once_s=node.weight_bytes / _MULTIPLIED_BYTES_PER_S if product else 0.0,
        weight_bytes=node.weight_bytes,
    )


def _macs(node: Node, model: Model) -> float | None:
    """Multiplications of a convolution or matrix product; None of any other node."""
    shapes = [_shape(name, model) for name in node.proto.input[:2]]
    result = _shape(node.writes[0], model) if node.writes else None
    if len(shapes) < 2 or None in (*shapes, result):
        return None
    left, right = (shape or () for shape in shapes)
    if node.op == "Conv":
        return float(prod(result or ()) * prod(right[1:]))
    if node.op == "ConvTranspose":
        return float(prod(left) * prod(right[1:]))
    if node.op == "MatMul" and left:
        return float(prod(result or ()) * left[-1])
    if node.op == "Gemm":
        return float(prod(left) * prod(right) / max(_inner(node, left), 1))
    return None


def _inner(node: Node, left: tuple[int, ...]) -> int:
    """The side over which a Gemm adds up."""
    turned = any(item.name == "transA" and item.i for item in node.proto.attribute)
    return left[0 if turned else -1] if left else 1


def _shape(name: str, model: Model) -> tuple[int, ...] | None:
    if name in model.weights:
        return tuple(model.weights[name].shape)
    return model.specs[name].shape if name in model.specs else None


def _read_bytes(node: Node, model: Model) -> int:
    return sum(
        model.specs[name].nbytes
        for name in node.reads
        if name in model.specs and name not in model.weights
    )
