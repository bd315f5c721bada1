"""Which rows of its operands a node reads for a range of rows of its result.

Only of operators that work row by row: pointwise over height (and anything across channels), or
through a window that moves down the picture. Height is the last side but one, in the engine's
blocked layout (channels in blocks, then height, width, and the channels of a block) as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vaultline.graph.steps import attributes
from vaultline.graph.structure import Model, Node

NCHWC = "com.microsoft.nchwc."
#: Each result pixel depends on the pixels at the same place of every operand; weights are scalars,
#: one value a channel, or one a column.
_POINTWISE = frozenset(
    {
        "Abs", "Add", "BatchNormalization", "Ceil", "Clip", "Div", "Dropout", "Elu", "Erf", "Exp",
        "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LRN", "LeakyRelu", "Log", "Max",
        "Min", "Mish", "Mul", "Neg", "PRelu", "Pow", "Reciprocal", "Relu", "Selu", "Sigmoid",
        "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Tanh", "ThresholdedRelu",
        "com.microsoft.Gelu", "com.microsoft.QuickGelu",
    }
)  # fmt: skip
_CONV = frozenset({"Conv", "com.microsoft.FusedConv", f"{NCHWC}Conv"})
_POOL = frozenset({"MaxPool", "AveragePool", f"{NCHWC}MaxPool", f"{NCHWC}AveragePool"})
_REORDER = frozenset({f"{NCHWC}ReorderInput", f"{NCHWC}ReorderOutput"})

#: Rows ``[first, last)``.
Rows = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """How a node's result rows depend on rows of its first operand (others: row by row).

    Attributes:
        reach: rows that one result row reads, from ``stride`` times its number less ``before`` on.
        before, after: rows of padding.
        sides: the other axis's padding, left and right.
        macs: multiplications for one result row.
    """

    reach: int = 1
    stride: int = 1
    before: int = 0
    after: int = 0
    sides: tuple[int, int] = (0, 0)
    macs: int = field(default=0, compare=False)

    @property
    def pointwise(self) -> bool:
        """Whether a result row reads the row of the same number only."""
        return (self.reach, self.stride, self.before, self.after) == (1, 1, 0, 0)

    def needs(self, rows: Rows, of: int, height: int) -> tuple[Rows, tuple[int, int]]:
        """Operand rows for result rows ``rows`` out of ``of``, and the padding above and below.

        The last band keeps what the whole has below: rounding up and unread rows included.
        """
        start = rows[0] * self.stride - self.before
        stop = (rows[1] - 1) * self.stride - self.before + self.reach
        below = max(0, stop - height)
        if rows[1] == of:
            stop, below = height, self.after
        return (max(0, start), min(height, stop)), (max(0, -start), below)


def windows(model: Model) -> list[Window | str]:
    """Of every node: its window, or the reason why it can't be split into bands of rows."""
    shuffled = blocked_tensors(model)
    return [_window(node, model, shuffled) for node in model.nodes]


def blocked_tensors(model: Model) -> frozenset[str]:
    """Tensors in the engine's blocked layout, whose shapes are stated as if they weren't."""
    found: set[str] = set()
    for node in model.nodes:
        own = node.op.startswith(NCHWC) and node.op != f"{NCHWC}ReorderOutput"
        if own or not (node.op.startswith(NCHWC) or found.isdisjoint(node.reads)):
            found.update(node.writes)
    return frozenset(found)


def height_of(model: Model, tensor: str) -> int:
    """The rows of a tensor."""
    return model.specs[tensor].shape[-2]


def frames_of(node: Node, model: Model) -> list[str]:
    """The operands that are not weights."""
    return [name for name in node.reads if name not in model.weights]


def _window(node: Node, model: Model, blocked: frozenset[str]) -> Window | str:
    frames = frames_of(node, model)
    if len(node.writes) != 1 or not frames:
        return "it has several results or no operand"
    for name in (*frames, *node.writes):
        spec = model.specs.get(name)
        if spec is None or len(spec.shape) < 4 or spec.shape[0] != 1:
            return "it is not on pictures of known size"
    if node.op in _CONV or node.op in _POOL:
        return _sliding(node, model)
    if node.op in ("Reshape", "Transpose"):
        fine = blocked.isdisjoint((*frames, *node.writes)) and _keeps_pictures(node, model)
        return Window() if fine else "it moves rows"
    if node.op == "Concat":
        rank = len(model.specs[node.writes[0]].shape)
        axis = int(attributes(node)["axis"])
        fine = (axis + rank if axis < 0 else axis) == 1 and len(frames) == len(node.reads)
        return Window() if fine else "it does not join channels"
    if node.op in _REORDER:
        return "its layout is another" if attributes(node).get("channels_last", 0) else Window()
    if node.op not in _POINTWISE:
        return "it does not work row by row"
    result = model.specs[node.writes[0]].shape
    fine = all(
        model.specs[name].shape[-2:] == result[-2:] and len(model.specs[name].shape) == len(result)
        for name in frames
    ) and all(
        array.ndim <= len(result) and (array.ndim < 2 or array.shape[-2] == 1)
        for array in (model.weights[name] for name in node.reads if name in model.weights)
    )
    return Window() if fine else "its operands are spread over rows"


def _keeps_pictures(node: Node, model: Model) -> bool:
    """Whether a Reshape or Transpose only moves channels."""
    source, result = node.proto.input[0], node.proto.output[0]
    if source in model.weights or not all(name in model.weights for name in node.proto.input[1:]):
        return False
    before, after = model.specs[source].shape, model.specs[result].shape
    if node.op == "Reshape":
        return before[-2:] == after[-2:]
    perm = list(attributes(node).get("perm", []))
    return perm[:1] == [0] and perm[-2:] == [len(perm) - 2, len(perm) - 1]


def _sliding(node: Node, model: Model) -> Window | str:
    """A convolution's or pooling's window."""
    given = attributes(node)
    source, result = (model.specs[name].shape for name in (node.proto.input[0], node.writes[0]))
    operands = [name for name in node.proto.input[1:3] if name]
    if node.proto.input[0] in model.weights or any(name not in model.weights for name in operands):
        return "its kernel is not a weight"
    kernel = given.get("kernel_shape")
    macs = 0
    if node.op in _CONV:
        shape = model.weights[node.proto.input[1]].shape
        kernel = kernel or shape[2:]
        macs = result[1] * result[3] * shape[1] * kernel[0] * kernel[-1]
    if len(source) != 4 or len(result) != 4 or kernel is None or len(kernel) != 2:
        return "it is not on pictures of known size"
    dilations = given.get("dilations") or [1, 1]
    strides = given.get("strides") or [1, 1]
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = _pads(given, source[2:], reach, strides)
    if pads is None or any(pad >= r or pad < 0 for pad, r in zip(pads, reach * 2, strict=True)):
        return "its padding is wider than its window"
    return Window(
        reach=reach[0],
        stride=strides[0],
        before=pads[0],
        after=pads[2],
        sides=(pads[1], pads[3]),
        macs=macs,
    )


def _pads(
    given: dict[str, object], sizes: tuple[int, ...], reach: list[int], strides: list[int]
) -> list[int] | None:
    """Top, left, bottom, right; the automatic kinds as the ONNX operators define them."""
    kind = given.get("auto_pad", b"NOTSET")
    if kind in (b"", b"NOTSET"):
        return [int(pad) for pad in given.get("pads") or [0] * 4]  # type: ignore[attr-defined]
    if kind == b"VALID":
        return [0] * 4
    if kind not in (b"SAME_UPPER", b"SAME_LOWER"):
        return None
    less, more = [], []
    for size, window, stride in zip(sizes, reach, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + window - size, 0)
        less.append(total // 2)
        more.append(total - total // 2)
    return less + more if kind == b"SAME_UPPER" else more + less
