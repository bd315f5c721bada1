"""Stages with replicas as real worker processes: the whole model's outputs, in frame order."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from _pytest.mark.structures import ParameterSet

from vaultline.bench.cutting import cut_plan
from vaultline.bench.rig import Rig, make_rig, make_trust
from vaultline.graph.engine import run_plain
from vaultline.graph.model import load_model
from vaultline.graph.structure import Model
from vaultline.owner.frames import OwnerFrame
from vaultline.owner.session import SessionSettings
from vaultline.testing.deployment import Files, RunningOwner, read_sink, run_command, write_files
from vaultline.testing.rtsp import RtspServer

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
NOTICED_S_MAX = 2.0
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(DIGITS / "digits.onnx")


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_trust(tmp_path_factory.mktemp("trust"))


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the run's sockets lie; short, since the path of a Unix socket may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="vlt") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)
        assert sorted(Path(folder).rglob("*")) == []


#: Case -> (replicas of each stage, transport, frames a pass, frames).
PLANS: Mapping[str, tuple[tuple[int, ...], str, int, int]] = {
    "one to two": ((1, 2), "unix", 2, 11),
    "two to one": ((2, 1), "tcp", 1, 11),
    "two to three": ((2, 3), "unix", 2, 13),
    "two to three over tcp": ((2, 3), "tcp", 1, 13),
    "the whole model twice": ((2,), "unix", 2, 11),
    "the whole model twice over tcp": ((2,), "tcp", 2, 11),
    "two to two, which are two pipelines": ((2, 2), "unix", 1, 11),
    "fewer frames than replicas": ((3, 2), "unix", 2, 1),
    "no frames": ((1, 2), "tcp", 2, 0),
}
CUTS = {1: [], 2: [23], 3: [20, 34]}


def sealed(
    model: Model, counts: tuple[int, ...], frames: int, folder: Path, trust: dict[str, Path]
) -> Rig:
    plan = cut_plan(model, CUTS[len(counts)], replicas=counts, frames_per_pass=frames)
    return make_rig(model, plan, folder, trust)


def sampled(cases: Iterable[str], *sample: str) -> list[ParameterSet]:
    """All cases, those outside the sample only in the full run."""
    return [pytest.param(case, marks=() if case in sample else pytest.mark.full) for case in cases]


@pytest.mark.parametrize(
    "case", sampled(PLANS, "two to three", "two to one", "the whole model twice over tcp")
)
def test_a_plan_with_replicas_equals_the_whole_model(
    case: str, model: Model, trust: dict[str, Path], tmp_path: Path
) -> None:
    counts, transport, together, frames = PLANS[case]
    rig = sealed(model, counts, together, tmp_path, trust)
    rng = np.random.default_rng(11)
    images = [rng.standard_normal(model.inputs[0].shape, np.float32) for _ in range(frames)]
    settings = SessionSettings(transport=transport)  # type: ignore[arg-type]
    with rig.session(settings) as session:
        sent = [OwnerFrame(n, n / 25, [image]) for n, image in enumerate(images)]
        results = list(session.stream(sent))
        assert session.endpoints is not None
        assert len(session.releases) == len(set(session.endpoints.pids)) == sum(counts)
    assert [result.index for result in results] == list(range(frames))
    for image, result in zip(images, results, strict=True):
        for name, reference in run_plain(model, {model.inputs[0].name: image}).items():
            error = np.abs(result.outputs[name] - reference).max() / np.abs(reference).max()
            assert error <= TOLERANCE, (name, result.index, error)


# --- One of them is killed -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(model: Model, trust: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("sealed")
    return write_files(sealed(model, (1, 2, 2), 2, folder, trust), folder)


@pytest.fixture(scope="module")
def camera() -> Iterator[RtspServer]:
    noise = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    with RtspServer(list(noise), frames_per_second=100) as server:
        yield server


#: Worker, signal -> what the owner must say.
LOST = {
    "a replica of the middle stage is killed": (
        2,
        signal.SIGKILL,
        "replica 1 of stage 1 was lost: worker stage1-1 was killed by signal 9",
    ),
    "a replica of the last stage is killed": (
        3,
        signal.SIGKILL,
        "replica 0 of stage 2 was lost: worker stage2-0 was killed by signal 9",
    ),
    "a replica is stopped": (
        1,
        signal.SIGSTOP,
        "replica 0 of stage 1 was lost: worker stage1-0 has been silent for",
    ),
}


@pytest.mark.parametrize("case", sampled(LOST, "a replica of the middle stage is killed"))
def test_a_lost_replica_ends_the_run_by_its_name(
    case: str, files: Files, camera: RtspServer, temporary: Path, tmp_path: Path
) -> None:
    member, number, words = LOST[case]
    sink = tmp_path / "results.jsonl"
    command = run_command(
        files, source=camera.url, sink=sink, preprocess=DIGITS / "digits.preprocess.yaml"
    )
    owner = RunningOwner(command, sink, temporary=temporary)
    try:
        owner.wait_results(10)
        workers = owner.members("enclave")
        assert len(workers) == 5
        seen = sink.read_bytes().count(b"\n")
        struck_s = time.monotonic()
        os.kill(workers[member].pid, number)
        assert owner.wait() == 4, owner.errors
        told_s = owner.said_at(words)
        assert told_s is not None, owner.errors
        assert "Traceback" not in owner.errors
        owner.wait_gone()
    finally:
        owner.end()
    lines = read_sink(sink)
    assert [line["frame"] for line in lines] == list(range(len(lines)))
    assert len(lines) >= seen
    # The decision after 1.5 s of silence; the rest is how long this machine takes.
    assert told_s - struck_s < NOTICED_S_MAX * (1 if number == signal.SIGKILL else 2)
