"""Train ``digits.onnx`` on videos of the training digits, and measure it on ``digits.mp4``.

Run in this folder: ``python train.py`` (needs vaultline, scikit-learn and torch; some minutes
on two cores). The exported file holds plain ONNX nodes; running it needs neither.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from render import draw, split, write_video
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from vaultline.core.tensors import TensorSpec
from vaultline.video import Preprocessor, load_preprocessing, open_source

HERE = Path(__file__).parent
TRAIN_SEED = 7
#: How often every training digit is drawn, each time with other paper, light, place and noise.
DRAWINGS = 5
WIDTHS = (16, 32, 64)


class Block(nn.Module):
    """A residual block (He et al., arXiv 1512.03385): x + f(x), twice convolved."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(x + self.norm2(self.conv2(inner)))


class Digits(nn.Module):
    """Three levels of (convolution, two residual blocks), then two fully connected layers.

    Each level has half the sides and twice the channels of the one before: about the same work,
    and half the bytes across a cut.
    """

    def __init__(self) -> None:
        super().__init__()
        self.downs = nn.ModuleList()
        self.norms = nn.ModuleList()
        self.blocks = nn.ModuleList()
        for before, after in zip((3, *WIDTHS), WIDTHS, strict=False):
            stride = 1 if before == 3 else 2
            self.downs.append(nn.Conv2d(before, after, 3, stride, padding=1, bias=False))
            self.norms.append(nn.BatchNorm2d(after))
            self.blocks.append(nn.Sequential(Block(after), Block(after)))
        self.hidden = nn.Linear(WIDTHS[-1] * 4 * 4, 96)
        self.scores = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        for down, norm, block in zip(self.downs, self.norms, self.blocks, strict=True):
            x = block(functional.relu(norm(down(x))))
        x = functional.max_pool2d(x, 4).flatten(1)
        x = functional.dropout(functional.relu(self.hidden(x)), 0.3, self.training)
        return self.scores(x)


def training_tensors() -> tuple[Tensor, Tensor]:
    """Preprocessed frames of an encoded video of training digits, and what they show."""
    digits = load_digits()
    training, _ = split()
    random = np.random.default_rng(TRAIN_SEED)
    order = np.concatenate([random.permutation(training) for _ in range(DRAWINGS)])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "training.mp4"
        # Two frames of each, as in the real video; the first is as good as the second.
        write_video(path, (f for i in order for f in draw(digits.images[i], 2, random)))
        tensors = read_video(path)[1::2]
    return torch.from_numpy(tensors), torch.from_numpy(digits.target[order])


def read_video(path: Path) -> NDArray[np.float32]:
    """A video's frames exactly as vaultline feeds them to the model."""
    spec = TensorSpec(name="image", dtype="float32", shape=(1, 3, 64, 64))
    preprocess = Preprocessor(load_preprocessing(HERE / "digits.preprocess.yaml"), spec)
    with open_source(str(path)) as source:
        return np.concatenate([preprocess(frame.image) for frame in source])


def train(model: Digits, images: Tensor, labels: Tensor, epochs: int) -> None:
    """AdamW with one cycle of the learning rate; frames are shifted by up to 3 pixels."""
    batch = 64
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=5e-2)
    steps = epochs * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=4e-3, total_steps=steps)
    model.train()
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(images))[: steps // epochs * batch].split(batch):
            shift = torch.randint(-3, 4, (2,)).tolist()
            shown = torch.roll(images[rows], shift, (2, 3))
            loss = functional.cross_entropy(model(shown), labels[rows], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}: loss {total * batch / len(images):.4f}", flush=True)
    model.eval()


class Graph:
    """Collects ONNX nodes and weights; every method returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def node(self, kind: str, inputs: list[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def weight(self, name: str, value: Tensor) -> str:
        self.weights.append(numpy_helper.from_array(value.detach().numpy(), name))
        return name

    def conv(self, module: nn.Conv2d, x: str, name: str) -> str:
        weight = self.weight(f"{name}.weight", module.weight)
        shape = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": list(module.stride)}
        return self.node("Conv", [x, weight], name, **shape)

    def norm(self, module: nn.BatchNorm2d, x: str, name: str) -> str:
        tensors = {
            "scale": module.weight,
            "bias": module.bias,
            "mean": module.running_mean,
            "var": module.running_var,
        }
        weights = [self.weight(f"{name}.{key}", value) for key, value in tensors.items()]
        return self.node("BatchNormalization", [x, *weights], name, epsilon=module.eps)

    def linear(self, module: nn.Linear, x: str, name: str) -> str:
        weight = self.weight(f"{name}.weight", module.weight)
        bias = self.weight(f"{name}.bias", module.bias)
        return self.node("Gemm", [x, weight, bias], name, transB=1)

    def block(self, module: Block, x: str, name: str) -> str:
        inner = self.norm(module.norm1, self.conv(module.conv1, x, f"{name}.conv1"), f"{name}.bn1")
        inner = self.node("Relu", [inner], f"{name}.relu1")
        inner = self.conv(module.conv2, inner, f"{name}.conv2")
        total = self.node("Add", [x, self.norm(module.norm2, inner, f"{name}.bn2")], f"{name}.add")
        return self.node("Relu", [total], f"{name}.relu2")


def export(model: Digits, path: Path) -> None:
    """Write the network as ONNX, opset 17, batch 1."""
    graph, x = Graph(), "image"
    levels = zip(model.downs, model.norms, model.blocks, strict=True)
    for number, (down, norm, block) in enumerate(levels, start=1):
        x = graph.norm(norm, graph.conv(down, x, f"down{number}"), f"down{number}.bn")
        x = graph.node("Relu", [x], f"down{number}.relu")
        for part, inner in zip("ab", block, strict=True):
            x = graph.block(inner, x, f"block{number}{part}")
    x = graph.node("MaxPool", [x], "pool", kernel_shape=[4, 4], strides=[4, 4])
    x = graph.node("Flatten", [x], "flat", axis=1)
    x = graph.node("Relu", [graph.linear(model.hidden, x, "hidden")], "hidden.relu")
    graph.linear(model.scores, x, "scores")
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 64, 64])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 10])
    body = helper.make_graph(graph.nodes, "digits", [image], [scores], graph.weights)
    opset = [helper.make_opsetid("", 17)]
    made = helper.make_model(body, opset_imports=opset, ir_version=8, producer_name="vaultline")
    onnx.checker.check_model(made, full_check=True)
    onnx.save(made, path)


def measure(model_path: Path) -> tuple[int, int]:
    """(right, all) of the video's frames, with ONNX Runtime on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model_path), options)
    frames = read_video(HERE / "digits.mp4")
    labels = json.loads((HERE / "labels.json").read_text(encoding="utf-8"))["labels"]
    found = [session.run(None, {"image": frame[np.newaxis]})[0].argmax() for frame in frames]
    right = sum(int(a == b) for a, b in zip(found, labels, strict=True))
    return right, len(labels)


def main() -> None:
    """Train, export, measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.manual_seed(TRAIN_SEED)
    torch.set_num_threads(arguments.threads)
    images, labels = training_tensors()
    print(f"{len(images)} training frames", flush=True)
    model = Digits()
    train(model, images, labels, arguments.epochs)
    export(model, HERE / "digits.onnx")
    right, total = measure(HERE / "digits.onnx")
    print(f"{right} of {total} frames of digits.mp4 right: {right / total:.2%}")


if __name__ == "__main__":
    main()
