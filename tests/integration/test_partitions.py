"""Random partitions through real worker processes give the whole model's outputs.

By default small models and one host; with ``-m full`` twenty partitions of real networks. The same
runs, as root, with owner and workers in network namespaces of their own, over TCP.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vaultline.bench.cutting import cut_plan
from vaultline.bench.namespaces import Network, why_no_namespaces
from vaultline.bench.rig import Rig, make_rig, make_trust
from vaultline.graph import zoo
from vaultline.graph.cuts import cuts
from vaultline.graph.engine import run_plain
from vaultline.graph.model import Model, load_model
from vaultline.owner.frames import OwnerFrame, ResultFrame
from vaultline.owner.session import SessionSettings
from vaultline.owner.starting import Place
from vaultline.testing.deployment import read_sink, run_command, write_files
from vaultline.testing.network import Tap

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
TOLERANCE = 1e-4
FRAMES = 5
Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_trust(tmp_path_factory.mktemp("trust"))


@pytest.fixture(scope="module")
def needs_namespaces() -> None:
    reason = why_no_namespaces()
    if reason is not None:
        pytest.skip(reason)


def random_dag(seed: int) -> onnx.ModelProto:
    """Up to three inputs of [1, c, 8, 8], convolutions and sums of anything made before, and up
    to three outputs: most cuts are crossed by several tensors that the next stage only passes on.
    """
    rng = np.random.default_rng(seed)
    channels = 4
    values = [f"x{number}" for number in range(rng.integers(1, 4))]
    inputs = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, channels, 8, 8]) for n in values
    ]
    weights, nodes = [], []
    for number in range(int(rng.integers(8, 16))):
        name, source = f"t{number}", str(rng.choice(values))
        kind = rng.choice(["conv", "add", "mul", "relu", "sigmoid", "pool", "concat"])
        if kind in ("conv", "concat"):
            reads = [source]
            if kind == "concat":
                reads = [f"{name}c"]
                pair = [source, str(rng.choice(values))]
                nodes.append(helper.make_node("Concat", pair, reads, axis=1))
            wide = channels * (2 if kind == "concat" else 1)
            array = rng.standard_normal((channels, wide, 3, 3)).astype(np.float32) * 0.2
            weights.append(numpy_helper.from_array(array, f"w{number}"))
            nodes.append(helper.make_node("Conv", [*reads, f"w{number}"], [name], pads=[1] * 4))
        elif kind in ("add", "mul"):
            nodes.append(
                helper.make_node(kind.capitalize(), [source, str(rng.choice(values))], [name])
            )
        elif kind == "pool":
            shape = {"kernel_shape": [3, 3], "pads": [1] * 4}
            nodes.append(helper.make_node("MaxPool", [source], [name], **shape))
        else:
            nodes.append(helper.make_node(str(kind).capitalize(), [source], [name]))
        values.append(name)
    made = [value for value in values if value.startswith("t")]
    ends = {made[-1], *map(str, rng.choice(made, size=2))}
    outputs = [onnx.ValueInfoProto(name=name) for name in sorted(ends)]
    graph = helper.make_graph(nodes, f"dag{seed}", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


@dataclass(frozen=True, slots=True)
class Partition:
    """A model, where it is cut, and how its stages run."""

    model: str
    seed: int
    stages: int
    modes: tuple[str, ...]
    frames_per_pass: int
    portable: bool

    def __str__(self) -> str:
        return f"{self.model}-{self.stages}-{self.seed}"


def partitions(models: list[str], count: int) -> list[Partition]:
    """Stages two and three in turn; modes, frames a pass and portability at random."""
    rng = np.random.default_rng(len(models))
    found = []
    for number in range(count):
        stages = 2 + number % 2
        found.append(
            Partition(
                model=models[number % len(models)],
                seed=number,
                stages=stages,
                modes=tuple(rng.choice(["resident", "streamed"], stages).tolist()),
                frames_per_pass=int(rng.integers(1, 4)),
                portable=bool(rng.integers(4) == 0),
            )
        )
    return found


SAMPLE = partitions(["digits", "dag0", "dag1", "dag2", "digits", "dag3"], 6)
FULL = partitions(
    ["squeezenet", "shufflenet", "googlenet", "mobilenetv2", "densenet121", "resnet50", "dag4"], 20
)


@pytest.fixture(scope="module")
def cache_folder(request: pytest.FixtureRequest) -> Path:
    assert request.config.cache is not None
    return Path(request.config.cache.mkdir("zoo"))


@cache
def the_model(name: str, folder: Path) -> Model:
    if name == "digits":
        return load_model(DIGITS / "digits.onnx")
    if name in zoo.ZOO:
        return load_model(zoo.build(name, folder))
    path = folder / f"{name}.onnx"
    onnx.save_model(random_dag(int(name.removeprefix("dag"))), path)
    return load_model(path)


def frames_of(model: Model, seed: int) -> list[Tensors]:
    rng = np.random.default_rng(seed)
    return [
        {spec.name: rng.standard_normal(spec.shape, np.float32) for spec in model.inputs}
        for _ in range(FRAMES)
    ]


def sealed(
    partition: Partition,
    model: Model,
    trust: dict[str, Path],
    folder: Path,
    hosts: tuple[str, ...] = (),
) -> Rig:
    """Cut at random places that need not be good ones, and sealed."""
    rng = np.random.default_rng(partition.seed)
    inner = cuts(model)[1:-1]
    usable = [cut.position for cut in inner if cut.unusable is None]
    positions = sorted(rng.choice(usable, partition.stages - 1, replace=False).tolist())
    plan = cut_plan(
        model,
        positions,
        hosts=hosts,
        modes=partition.modes,
        frames_per_pass=partition.frames_per_pass,
        portable=partition.portable,
        memory_bytes=1 << 30,
    )
    return make_rig(model, plan, folder, trust)


def run_all(
    rig: Rig,
    frames: list[Tensors],
    settings: SessionSettings | None = None,
    places: dict[str, Place] | None = None,
) -> list[ResultFrame]:
    order = [spec.name for spec in rig.plan.stages[0].inputs]
    with rig.session(settings, places) as session:
        sent = [
            OwnerFrame(number, number / 25, [frame[name] for name in order])
            for number, frame in enumerate(frames)
        ]
        return list(session.stream(sent))


def check(model: Model, frames: list[Tensors], results: list[ResultFrame]) -> None:
    """Every result is the whole model's, in order, to a maximal relative error of 1e-4."""
    assert [result.index for result in results] == list(range(len(frames)))
    for frame, result in zip(frames, results, strict=True):
        expected = run_plain(model, frame)
        assert set(result.outputs) == set(expected)
        for name, reference in expected.items():
            error = np.abs(result.outputs[name] - reference).max() / np.abs(reference).max()
            assert error <= TOLERANCE, (name, result.index, error)


@contextlib.contextmanager
def places_apart(stages: int) -> Iterator[tuple[Network, tuple[str, ...], dict[str, Place]]]:
    """A network with the owner and each worker in a namespace of its own."""
    hosts = tuple(f"box{number}" for number in range(stages))
    with Network(("owner", *hosts)) as network:
        yield (
            network,
            hosts,
            {host: Place(bind=network.address[host], netns=network.netns[host]) for host in hosts},
        )


def run_apart(
    partition: Partition, model: Model, trust: dict[str, Path], folder: Path
) -> tuple[list[Tensors], list[ResultFrame]]:
    frames = frames_of(model, partition.seed)
    with places_apart(partition.stages) as (network, hosts, places):
        rig = sealed(partition, model, trust, folder, hosts)
        settings = SessionSettings(transport="tcp", result_bind=network.address["owner"])
        return frames, network.call("owner", lambda: run_all(rig, frames, settings, places))


@pytest.mark.parametrize("partition", SAMPLE, ids=str)
def test_a_partition_equals_the_whole_model(
    partition: Partition, trust: dict[str, Path], cache_folder: Path, tmp_path: Path
) -> None:
    model = the_model(partition.model, cache_folder)
    frames = frames_of(model, partition.seed)
    rig = sealed(partition, model, trust, tmp_path)
    check(model, frames, run_all(rig, frames))


@pytest.mark.full
@pytest.mark.parametrize("partition", FULL, ids=str)
def test_twenty_partitions_equal_the_whole_model(
    partition: Partition, trust: dict[str, Path], cache_folder: Path, tmp_path: Path
) -> None:
    test_a_partition_equals_the_whole_model(partition, trust, cache_folder, tmp_path)


@pytest.mark.usefixtures("needs_namespaces")
@pytest.mark.parametrize("partition", SAMPLE[:2], ids=str)
def test_a_partition_over_machines_equals_the_whole_model(
    partition: Partition, trust: dict[str, Path], cache_folder: Path, tmp_path: Path
) -> None:
    model = the_model(partition.model, cache_folder)
    check(model, *run_apart(partition, model, trust, tmp_path))


@pytest.mark.full
@pytest.mark.usefixtures("needs_namespaces")
@pytest.mark.parametrize("partition", FULL, ids=str)
def test_twenty_partitions_over_machines_equal_the_whole_model(
    partition: Partition, trust: dict[str, Path], cache_folder: Path, tmp_path: Path
) -> None:
    test_a_partition_over_machines_equals_the_whole_model(partition, trust, cache_folder, tmp_path)


@pytest.mark.usefixtures("needs_namespaces")
def test_the_command_line_runs_a_video_over_machines(
    trust: dict[str, Path], cache_folder: Path, tmp_path: Path
) -> None:
    model = the_model("digits", cache_folder)
    partition = Partition("digits", 1, 2, ("resident", "streamed"), 2, False)
    sinks = {"apart": tmp_path / "apart.jsonl", "here": tmp_path / "here.jsonl"}
    options = {"preprocess": DIGITS / "digits.preprocess.yaml"}
    source = str(DIGITS / "digits.mp4")
    with places_apart(2) as (network, hosts, places):
        files = write_files(sealed(partition, model, trust, tmp_path, hosts), tmp_path)
        command = run_command(files, source=source, sink=sinks["apart"], **options)
        command += ["--limit", "30", "--json"]
        wires = ["--transport", "tcp", "--result-bind", network.address["owner"]]
        for host, place in places.items():
            wires += ["--place", f"{host}={place.bind}%{place.netns}"]
        inside = ["ip", "netns", "exec", network.netns["owner"], *command, *wires]
        with Tap(network) as tap:
            done = subprocess.run(inside, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["frames_out"] == 30
    command[command.index("--sink") + 1] = str(sinks["here"])
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    apart, here = (read_sink(path) for path in sinks.values())
    assert [line["outputs"] for line in apart] == [line["outputs"] for line in here]
    # All three hops went over the switch: each carried 30 messages one way.
    talk = {(source, target) for source, _, target, _ in tap.streams()}
    owner, first, second = network.address.values()
    assert {(owner, first), (first, second), (second, owner)} <= talk
