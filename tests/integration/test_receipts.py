"""Receipts of real workers, from ``run --receipts`` to ``receipt verify``."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vaultline.bench.cutting import cut_plan
from vaultline.bench.rig import make_rig
from vaultline.graph.model import load_model
from vaultline.testing.deployment import Files, run_command, write_files

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
SOURCE, HOW = str(DIGITS / "digits.mp4"), DIGITS / "digits.preprocess.yaml"
FRAMES = 23


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("sealed")
    model = load_model(DIGITS / "digits.onnx")
    rig = make_rig(model, cut_plan(model, [23], replicas=(1, 2), frames_per_pass=2), folder)
    return write_files(rig, folder)


@pytest.fixture(scope="module")
def ran(files: Files) -> Path:
    """A folder with the run's lines, raw outputs and receipt."""
    folder = files.plan.parent
    with tempfile.TemporaryDirectory(prefix="vlt") as temporary:
        command = run_command(files, source=SOURCE, sink=folder / "lines", preprocess=HOW)
        more = ["--receipts", str(folder / "receipt"), "--frames-per-link", "4", "--json"]
        more += ["--raw", str(folder / "raw"), "--limit", str(FRAMES)]
        done = subprocess.run(
            [*command, *more], capture_output=True, text=True, env={"TMPDIR": temporary, **ENV}
        )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    # Six links of stage 0; of stage 1's replicas three each: 12 and 11 frames, and their ends.
    assert (summary["links"], summary["links_refused"]) == (6 + 4 + 3, 0)
    return folder


ENV = {"NO_COLOR": "1", "COLUMNS": "200"}


def verify(
    files: Files, *more: str, receipt: str | Path = "receipt"
) -> tuple[int, dict[str, Any]]:
    folder = files.plan.parent
    command = [sys.executable, "-m", "vaultline", "receipt", "verify", str(folder / receipt)]
    command += ["--policy", str(files.policy), "--allow-simulated", "--json", *more]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, json.loads(done.stdout)


def test_a_receipt_of_a_run_holds(files: Files, ran: Path) -> None:
    code, found = verify(files, "--plan", str(files.plan))
    assert (code, found.get("refusals"), found.get("frames")) == (0, [], FRAMES)
    assert found["accepted"] and found["gaps"] == []


def test_frames_and_results_are_those_of_the_receipt(files: Files, ran: Path) -> None:
    given = ("--results", str(ran / "lines"), "--raw", str(ran / "raw"))
    with_frames = ("--frames", str(first_frames(ran)), "--preprocess", str(HOW))
    code, found = verify(files, *given)
    assert (code, found.get("refusals")) == (0, [])
    code, found = verify(files, *with_frames)
    assert (code, [each["code"] for each in found["refusals"]]) == (1, ["FramesDiffer"])


def first_frames(ran: Path) -> Path:
    return ran
