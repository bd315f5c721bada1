"""What real workers say of their memory reaches a monitor, the summary and a late reader."""

from __future__ import annotations

import socket
import subprocess
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from vaultline.bench.cutting import cut_plan
from vaultline.bench.rig import Rig, make_rig
from vaultline.cli.run_metrics import StageCollector, serving
from vaultline.core.serde import from_json
from vaultline.graph.model import load_model
from vaultline.graph.structure import Model
from vaultline.owner.frames import OwnerFrame
from vaultline.testing.deployment import Files, run_command, wait_until, write_files

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
FRAMES = 12
#: Enough for all that the first stage has, and too little for all of the second one's weights.
BUDGETS = (2_600_000, 1_800_000)
KINDS = {"resident", "tile", "activation", "io", "engine", "idle"}


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(DIGITS / "digits.onnx")


@pytest.fixture(scope="module")
def rig(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """Of the second stage's weights few stay."""
    folder = tmp_path_factory.mktemp("sealed")
    plan = cut_plan(model, [40], modes=["resident", "streamed"])
    stages = tuple(
        replace(stage, devices=(replace(stage.device, memory_bytes=memory_bytes),))
        for stage, memory_bytes in zip(plan.stages, BUDGETS, strict=True)
    )
    return make_rig(model, replace(plan, stages=stages), folder)


@pytest.fixture(scope="module")
def files(rig: Rig) -> Files:
    return write_files(rig, rig.vault.parent)


def frames(model: Model) -> list[OwnerFrame]:
    random = np.random.default_rng(3)
    shape = model.inputs[0].shape
    return [
        OwnerFrame(number, 0.0, [random.standard_normal(shape, np.float32)])
        for number in range(FRAMES)
    ]


def command(files: Files, sink: Path, *more: str) -> list[str]:
    made = run_command(
        files,
        source=str(DIGITS / "digits.mp4"),
        sink=sink,
        preprocess=DIGITS / "digits.preprocess.yaml",
    )
    return [*made, "--limit", str(FRAMES), *more]


def test_a_run_says_what_it_held_of_its_budget(files: Files, rig: Rig, tmp_path: Path) -> None:
    done = subprocess.run(
        command(files, tmp_path / "sink.jsonl", "--json"),
        capture_output=True,
        timeout=60,
        check=True,
    )
    rows = from_json(done.stdout, dict[str, object], what="the summary")["memory"]
    assert isinstance(rows, list)
    for row, stage in zip(rows, rig.plan.stages, strict=True):
        assert row["device"] == stage.device.name
        assert row["budget_bytes"] == stage.device.memory_bytes
        assert set(row["peak_bytes"]) == KINDS
        assert 0 < row["held_bytes"] <= row["budget_bytes"]
        assert FRAMES / 2 <= row["passes"] <= FRAMES
        used = {kind: size for kind, size in row["peak_bytes"].items() if kind != "idle"}
        assert max(used.values()) <= row["held_bytes"]
    resident, streamed = rows
    assert resident["streamed_bytes"] == resident["peak_bytes"]["tile"] == 0
    assert streamed["peak_bytes"]["tile"] > 0
    assert streamed["streamed_bytes"] % streamed["passes"] == 0


def test_a_run_shows_it_in_a_table(files: Files, tmp_path: Path) -> None:
    done = subprocess.run(
        command(files, tmp_path / "sink.jsonl"),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    table = done.stdout.partition("protected memory, MiB")[2].splitlines()
    assert [line.split()[-1] for line in table if "enclave-" in line] == ["2.5", "1.7"]


def test_an_address_that_is_taken_ends_the_run_before_it_starts(
    files: Files, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run(
            command(files, tmp_path / "sink.jsonl", "--metrics", address),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 2
    assert address in done.stderr
    assert not (tmp_path / "sink.jsonl").exists()


def test_a_monitor_sees_a_run_under_way_and_its_end(model: Model, rig: Rig) -> None:
    collector = StageCollector(rig.plan)
    with serving("127.0.0.1:0", collector) as address, rig.session() as session:
        collector.watch(session)
        assert len(list(session.stream(frames(model)))) == FRAMES
        assert session.wait_last_metrics()
        with urllib.request.urlopen(address, timeout=10) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
    found = {family.name: family.samples for family in families}
    assert [sample.value for sample in found["vaultline_frames"]] == [FRAMES] * 2
    for stage in rig.plan.stages:
        held = [
            sample
            for sample in found["vaultline_memory_bytes"]
            if sample.labels["device"] == stage.device.name
        ]
        assert {sample.labels["kind"] for sample in held} == KINDS
        assert 0 < sum(sample.value for sample in held) <= stage.device.memory_bytes
        assert {s.value for s in held if s.labels["kind"] in ("tile", "activation")} == {0}


def test_results_are_still_there_when_everybody_else_has_gone(model: Model, rig: Rig) -> None:
    """An owner that is slow to read them, while the workers and then the host have ended."""
    with rig.session() as session:
        results = session.stream(frames(model))
        first = next(results)
        host = Path(f"/proc/{session.host_pid}/stat")

        def gone() -> bool:
            return host.read_text().rpartition(")")[2].split()[0] == "Z"

        wait_until(gone, timeout_s=30, what="the host's end")
        assert session.wait_last_metrics()
        rest = list(results)
    assert [result.index for result in (first, *rest)] == list(range(FRAMES))
