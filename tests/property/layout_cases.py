"""Random networks for the memory plan, and what a stage program does, played from it alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from vaultline.core.program import StageProgram
from vaultline.graph.compile import CompiledStage
from vaultline.graph.structure import captures

IMAGE, ROW = (1, 16, 3, 3), (1, 48)
#: A kernel of these may write its result over an operand of the same size.
IN_PLACE = {
    "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Relu", "LeakyRelu",
    "Sigmoid", "Tanh", "Clip", "Sqrt", "Exp", "Abs", "Neg", "Elu", "Add", "Sub", "Mul", "Div",
    "Conv",
}  # fmt: skip


#: Their results are their operands' bytes, which may still be read.
VIEWS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"}


class _Net:
    """A graph under construction."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.images: list[str] = []
        self.rows: list[str] = []
        rng = np.random.default_rng(draw(st.integers(0, 2**16)))
        shapes = {"k": (16, 16, 3, 3), "p": (16, 32, 1, 1), "m": (48, 48), "f": (48, 144)}
        for kind, shape in shapes.items():
            for index in range(2):
                scale = (2 / np.prod(shape[1:])) ** 0.5
                values = rng.standard_normal(shape).astype(np.float32) * scale
                self.weights[f"{kind}{index}"] = values.astype(np.float32)
        self.weights["bias"] = rng.standard_normal(16).astype(np.float32)
        self.weights["shift"] = rng.standard_normal((1, 48)).astype(np.float32)
        self.weights["flat"] = np.int64([1, 144])
        self.weights["square"] = np.int64(IMAGE)
        self.weights["most"] = np.int64([3])
        self.weights["trips"] = np.int64(2)

    def tied(self, kind: str) -> str:
        return f"{kind}{self.draw(st.integers(0, 1))}"

    def add(self, op: str, reads: Sequence[str], count: int = 1, **more: object) -> list[str]:
        made = [f"t{len(self.nodes)}_{index}" for index in range(count)]
        self.nodes.append(helper.make_node(op, list(reads), made, **more))
        return made

    def image(self) -> str:
        return self.draw(st.sampled_from(self.images[-4:] if len(self.images) > 4 else self.images))

    def row(self) -> str:
        return self.draw(st.sampled_from(self.rows[-3:]))


def _conv(net: _Net) -> None:
    reads = [net.image(), net.tied("k"), "bias"]
    made = net.add("Conv", reads, pads=[1, 1, 1, 1], kernel_shape=[3, 3])
    if net.draw(st.booleans()):  # the engine fuses these into one node
        made = net.add("Add", [made[0], net.image()])
        made = net.add("Relu", made)
    net.images += made


def _unary(net: _Net) -> None:
    op = net.draw(st.sampled_from(("Relu", "Sigmoid", "Tanh", "Neg", "Identity", "Abs", "Dropout")))
    net.images += net.add(op, [net.image()])


def _binary(net: _Net) -> None:
    op = net.draw(st.sampled_from(("Add", "Mul", "Sub")))
    net.images += net.add(op, [net.image(), net.image()])


def _self_product(net: _Net) -> None:
    source = net.image()
    net.images += net.add("Mul", net.add("Tanh", [source]) * 2)


def _concat(net: _Net) -> None:
    made = net.add("Concat", [net.image(), net.image()], axis=1)
    net.images += net.add("Conv", [*made, net.tied("p")], kernel_shape=[1, 1])


def _split(net: _Net) -> None:
    halves = net.add("Split", [net.image()], 2, axis=1, num_outputs=2)
    if net.draw(st.booleans()):
        net.images += net.add("Concat", halves[::-1], axis=1)
    else:  # one half is never read
        net.images += net.add("Concat", [halves[1], halves[1]], axis=1)


def _pool(net: _Net) -> None:
    pads = [1, 1, 1, 1]
    net.images += net.add("MaxPool", [net.image()], kernel_shape=[3, 3], pads=pads)


def _there_and_back(net: _Net) -> None:
    made = net.add("Reshape", [net.image(), "flat"])
    if net.draw(st.booleans()):
        made = net.add("Relu", made)
    net.images += net.add("Reshape", [*made, "square"])


def _to_row(net: _Net) -> None:
    made = net.add("Reshape", [net.image(), "flat"])
    net.rows += net.add("Gemm", [*made, net.tied("f"), "shift"], transB=1)


def _dense(net: _Net) -> None:
    if not net.rows:
        return _to_row(net)
    kind = net.draw(st.sampled_from(("MatMul", "Gemm", "Relu", "Add", "Softmax")))
    if kind == "MatMul":
        net.rows += net.add("MatMul", [net.row(), net.tied("m")])
    elif kind == "Gemm":
        net.rows += net.add("Gemm", [net.row(), net.tied("m"), "shift"])
    elif kind == "Add":
        net.rows += net.add("Add", [net.row(), net.row()])
    else:
        net.rows += net.add(kind, [net.row()])
    return None


def _top(net: _Net) -> None:
    """Two results of two types; the first one is often not read."""
    if net.rows:
        values, places = net.add("TopK", [net.row(), "most"], 2)
        total = net.add("ReduceSum", net.add("Cast", [places], to=TensorProto.FLOAT), keepdims=0)
        net.rows += net.add("Add", [net.row(), *total])
        if net.draw(st.booleans()):
            net.rows += net.add("Add", [net.row(), *net.add("ReduceSum", [values], keepdims=0)])


def _counted(net: _Net) -> None:
    """A tensor whose size depends on the frame, and a Shape, which the engine runs early."""
    found = net.add("NonZero", net.add("Relu", [net.image()]))
    for _ in range(net.draw(st.integers(0, 3))):
        net.draw(st.sampled_from((_conv, _unary, _binary, _concat)))(net)
    sides = net.add("Shape", found)
    total = net.add("ReduceSum", net.add("Cast", sides, to=TensorProto.FLOAT), keepdims=0)
    tamed = net.add("Sigmoid", total)
    net.images += net.add("Add", [net.image(), *tamed])


def _branch(net: _Net) -> None:
    """If: captures two activations and a weight."""
    a, b, weight = net.image(), net.image(), net.tied("k")
    total = net.add("ReduceSum", [net.image()], keepdims=0)
    flag = net.add("Cast", net.add("Relu", total), to=TensorProto.BOOL)
    number = len(net.nodes)
    conv = helper.make_node(
        "Conv", [a, weight], [f"b{number}c"], pads=[1, 1, 1, 1], kernel_shape=[3, 3]
    )
    yes = helper.make_graph(
        [conv, helper.make_node("Add", [f"b{number}c", b], [f"b{number}y"])],
        "yes", [], [helper.make_tensor_value_info(f"b{number}y", TensorProto.FLOAT, IMAGE)],
    )  # fmt: skip
    no = helper.make_graph(
        [helper.make_node("Neg", [b], [f"b{number}n"])],
        "no", [], [helper.make_tensor_value_info(f"b{number}n", TensorProto.FLOAT, IMAGE)],
    )  # fmt: skip
    net.images += net.add("If", flag, then_branch=yes, else_branch=no)


def _loop(net: _Net) -> None:
    """Loop: carries one tensor, captures another one and a weight."""
    n, captured, weight = len(net.nodes), net.image(), net.tied("k")
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node(
                "Conv", [f"l{n}s", weight], [f"l{n}c"], pads=[1, 1, 1, 1], kernel_shape=[3, 3]
            ),
            helper.make_node("Add", [f"l{n}c", captured], [f"l{n}a"]),
            helper.make_node("Tanh", [f"l{n}a"], [f"l{n}o"]),
            helper.make_node("Identity", [f"l{n}g"], [f"l{n}h"]),
        ],
        "body",
        [info(f"l{n}i", TensorProto.INT64, []), info(f"l{n}g", TensorProto.BOOL, []),
         info(f"l{n}s", TensorProto.FLOAT, IMAGE)],
        [info(f"l{n}h", TensorProto.BOOL, []), info(f"l{n}o", TensorProto.FLOAT, IMAGE)],
    )  # fmt: skip
    net.images += net.add("Loop", ["trips", "", net.image()], body=body)


_KINDS = (
    _conv, _conv, _conv, _unary, _binary, _self_product, _concat, _split, _pool, _there_and_back,
    _to_row, _dense, _dense, _top, _counted, _branch, _loop,
)  # fmt: skip


@st.composite
def networks(draw: st.DrawFn, *, bounded: bool = False) -> onnx.ModelProto:
    """Networks of images and rows in which nearly any node may read anything made before it.

    Args:
        bounded: every tensor's size is known, so the engine allocates nothing itself.
    """
    net = _Net(draw)
    kinds = [kind for kind in _KINDS if not bounded or kind not in (_counted, _branch, _loop)]
    for index in range(draw(st.integers(1, 2))):
        net.inputs.append(helper.make_tensor_value_info(f"x{index}", TensorProto.FLOAT, IMAGE))
        net.images.append(f"x{index}")
    if draw(st.booleans()):
        net.inputs.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, ROW))
        net.rows.append("r")
    for kind in (_conv, *draw(st.lists(st.sampled_from(kinds), min_size=3, max_size=14))):
        kind(net)
    values = [*net.images, *net.rows]
    ends = [values[-1]]
    ends += draw(st.lists(st.sampled_from(values), max_size=2, unique=True))
    graph = helper.make_graph(
        net.nodes,
        "random",
        net.inputs,
        [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(ends)],
        [numpy_helper.from_array(array, name) for name, array in net.weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def engine_order(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The first node that can run, but Shape and Size before all others, as the engine does."""
    known = {value.name for value in (*graph.input, *graph.initializer)}
    waiting, ordered = list(graph.node), []
    while waiting:
        can = [
            node
            for node in waiting
            if known.issuperset(name for name in (*node.input, *captures(node)) if name)
        ]
        chosen = next((node for node in can if node.op_type in ("Shape", "Size")), can[0])
        ordered.append(chosen)
        known.update(chosen.output)
        waiting = [node for node in waiting if node is not chosen]
    return ordered


@dataclass(frozen=True, slots=True)
class Item:
    """Bytes of the workspace that mean something: a tensor of one frame, or a weight."""

    kind: str
    index: int
    frame: int
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class Action:
    """One node of one engine call: what it reads and writes in the workspace."""

    call: int
    op: str
    reads: tuple[Item, ...]
    writes: tuple[Item, ...]


class Play:
    """What a program does to its workspace in a pass, in the order in which it happens.

    Attributes:
        actions: of every node of every call of the engine.
        decrypted: per call, the weights that may be written from its start on, at any time.
        calls: how often the engine is called.
    """

    def __init__(self, program: StageProgram, frames: int) -> None:
        self._program = program
        self.actions: list[Action] = []
        self.decrypted: dict[int, list[Item]] = {}
        graphs = [onnx.load_model_from_string(graph).graph for graph in program.graphs]
        firsts: list[int] = []
        self.calls = 0
        for step in program.steps:
            firsts.append(self.calls)
            stacked = step.stackable and frames > 1
            passes = [tuple(range(frames))] if stacked else [(frame,) for frame in range(frames)]
            for frames_of in passes:
                self._call(graphs[step.graph], step, frames_of)
                self.calls += 1
        for number, step in enumerate(program.steps):
            start = firsts[max(number - 1, 0) if program.prefetch else number]
            items = [item for each in step.weights if (item := self._weight(each)) is not None]
            self.decrypted.setdefault(start, []).extend(items)

    def _call(self, graph: onnx.GraphProto, step, frames: tuple[int, ...]) -> None:
        items: dict[str, tuple[Item, ...]] = {}
        for alias, tensor in (*step.feeds, *step.fetches):
            items[alias] = tuple(self._tensor(tensor, frames))
        for each in step.weights:
            item = self._weight(each)
            items[each.input] = () if item is None else (item,)
        for node in engine_order(graph):
            read = [name for name in (*node.input, *captures(node)) if name]
            reads = [item for name in dict.fromkeys(read) for item in items.get(name, ())]
            writes = [item for name in node.output if name for item in items.get(name, ())]
            self.actions.append(Action(self.calls, node.op_type, tuple(reads), tuple(writes)))

    def _tensor(self, index: int, frames: tuple[int, ...]) -> Iterator[Item]:
        program = self._program
        size, place = program.tensors[index].nbytes, program.places[index]
        edge = {*program.inputs, *program.outputs}
        if (index in edge and len(frames) == 1) or not size:
            return
        if not place.frames:
            raise AssertionError(f"tensor {index} has no place")
        for frame in frames:
            slot = frame if place.frames > 1 else 0
            yield Item("tensor", index, frame, place.offset + slot * size, size)

    def _weight(self, each) -> Item | None:
        weight = self._program.weights[each.weight]
        if weight.resident_at is not None:
            return None
        return Item("weight", each.weight, 0, each.offset, weight.spec.nbytes)

    def check(self) -> None:
        """Every read finds all of what was written for it; results only replace operands where a
        kernel can do that."""
        edge = {*self._program.inputs, *self._program.outputs}
        owner = np.full(self._program.workspace_bytes, -1, np.int64)
        numbers: dict[Item, int] = {}

        def write(item: Item, same_as: Item | None = None) -> None:
            # A view is its origin's bytes: both may still be read.
            number = numbers.get(same_as or item, len(numbers))
            numbers[item] = number
            assert item.start + item.size <= len(owner)
            owner[item.start : item.start + item.size] = number

        last = -1
        for action in self.actions:
            while last < action.call:
                last += 1
                for item in self.decrypted.get(last, ()):
                    write(item)
            for item in action.reads:
                if item.kind == "tensor" and item.index in edge and item not in numbers:
                    write(item)  # copied from the message just before the call
                found = owner[item.start : item.start + item.size]
                assert (found == numbers.get(item)).all(), (action, item)
            for position, item in enumerate(action.writes):
                for other in (*action.reads, *action.writes[:position]):
                    if (
                        item.start < other.start + other.size
                        and other.start < item.start + item.size
                    ):
                        same = (item.start, item.size) == (other.start, other.size)
                        assert same and other in action.reads, (action, item, other)
                        assert action.op in IN_PLACE, action
                places = {(other.start, other.size): other for other in action.reads}
                origin = places.get((item.start, item.size)) if action.op in VIEWS else None
                write(item, origin)

    def needed(self) -> list[list[Item]]:
        """Per call, what is there before it and still read at it or later."""
        found: list[list[Item]] = []
        alive: dict[Item, None] = {}
        by_call: dict[int, list[Action]] = {}
        for action in self.actions:
            by_call.setdefault(action.call, []).append(action)
        edge = {*self._program.inputs, *self._program.outputs}
        for call in reversed(range(self.calls)):
            actions = by_call.get(call, [])
            for action in reversed(actions):
                for item in action.writes:
                    alive.pop(item, None)
                alive.update(dict.fromkeys(action.reads))
            found.append(list(alive))
            for item in self.decrypted.get(call, ()):
                alive.pop(item, None)
            for item in [item for item in alive if item.kind == "tensor" and item.index in edge]:
                alive.pop(item)  # copied from the message before every call
        return found[::-1]


@dataclass(slots=True)
class Weights:
    """Where the executor gets weights from."""

    stage: CompiledStage

    def read_weight_into(self, index: int, buffer: memoryview) -> None:
        buffer[:] = self.stage.weights[index]
