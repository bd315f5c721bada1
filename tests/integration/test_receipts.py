"""Receipts of real workers, from ``run --receipts`` to ``receipt verify``."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vaultline.bench.cutting import cut_plan
from vaultline.bench.rig import make_rig
from vaultline.graph.model import load_model
from vaultline.owner.devroot import make_devroot
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
            [*command, *more],
            capture_output=True,
            text=True,
            env={**os.environ, "TMPDIR": temporary},
        )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    # Six links of stage 0; of stage 1's replicas three each: 12 and 11 frames, and their ends.
    assert (summary["links"], summary["links_refused"]) == (6 + 4 + 3, 0)
    return folder


def verify(files: Files, *more: str, receipt: str | Path = "receipt") -> tuple[int, dict[str, Any]]:
    folder = files.plan.parent
    command = [sys.executable, "-m", "vaultline", "receipt", "verify", str(folder / receipt)]
    command += ["--policy", str(files.policy), "--allow-simulated", "--json", *more]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, json.loads(done.stdout)


def test_a_receipt_of_a_run_holds(files: Files, ran: Path) -> None:
    code, found = verify(files, "--plan", str(files.plan))
    assert (code, found.get("reasons"), found.get("frames")) == (0, [], FRAMES)
    assert found["accepted"] and found["gaps"] == []


def test_frames_and_results_are_those_of_the_receipt(files: Files, ran: Path) -> None:
    given = ("--results", str(ran / "lines"), "--raw", str(ran / "raw"))
    source = ("--frames", SOURCE, "--preprocess", str(HOW))
    code, found = verify(files, *given, *source, "--limit", str(FRAMES))
    assert (code, found.get("reasons")) == (0, [])
    named = {check["name"] for check in found["checks"]}
    assert {"frames", "results", "lines of the results"} <= named
    code, found = verify(files, *source)  # the whole video: more than went in
    assert (code, [each["code"] for each in found["reasons"]]) == (1, ["FramesDiffer"])


def test_altered_results_are_refused(files: Files, ran: Path, tmp_path: Path) -> None:
    raw = sorted((ran / "raw").iterdir())
    (tmp_path / "raw").mkdir()
    for file in raw:
        shutil.copy(file, tmp_path / "raw")
    given = ("--results", str(ran / "lines"), "--raw", str(tmp_path / "raw"))
    assert verify(files, *given)[0] == 0
    scores = np.load(raw[5])
    np.save(tmp_path / "raw" / raw[5].name, scores + np.float32(1))
    code, found = verify(files, *given)
    # The array is not what was signed, nor are its values those of the line.
    assert (code, [each["code"] for each in found["reasons"]]) == (1, ["ResultsDiffer"] * 2)
    lines = (ran / "lines").read_text().splitlines()
    line = json.loads(lines[7])
    next(iter(line["outputs"].values()))["top"][0]["index"] ^= 1
    lines[7] = json.dumps(line)
    (tmp_path / "lines").write_text("\n".join(lines) + "\n")
    code, found = verify(files, "--results", str(tmp_path / "lines"), "--raw", str(ran / "raw"))
    assert (code, [each["code"] for each in found["reasons"]]) == (1, ["ResultsDiffer"])
    (reason,) = found["reasons"]
    assert set(reason) == {"check", "code", "what", "got", "expected", "why", "fix"}
    assert reason["check"] == "lines of the results"
    assert "line 8" in reason["what"]


def edited(ran: Path, to: Path, **outputs: Any) -> Path:
    """The run's lines; in the first one, something of its outputs is other."""
    lines = (ran / "lines").read_text().splitlines()
    line = json.loads(lines[0])
    line["outputs"] = line["outputs"] | outputs
    to.write_text("\n".join([json.dumps(line), *lines[1:]]) + "\n")
    return to


def test_outputs_that_the_model_has_not_are_refused(
    files: Files, ran: Path, tmp_path: Path
) -> None:
    lines = edited(ran, tmp_path / "lines", verdict={"top": [{"index": 0, "value": 1.0}]})
    code, found = verify(files, "--results", str(lines), "--raw", str(ran / "raw"))
    assert (code, [each["code"] for each in found["reasons"]]) == (1, ["ResultsDiffer"])


@pytest.mark.parametrize("top", [5, True, "cat", ["cat"], {"index": 1}])
def test_values_of_another_form_are_bad_input(
    files: Files, ran: Path, tmp_path: Path, top: object
) -> None:
    first = json.loads((ran / "lines").read_text().splitlines()[0])["outputs"]
    changed = {name: part | {"top": top} for name, part in first.items()}
    lines = edited(ran, tmp_path / "lines", **changed)
    code, found = verify(files, "--results", str(lines), "--raw", str(ran / "raw"))
    assert (code, found["error"]["code"]) == (2, "InputError")


def test_the_collateral_may_be_one_s_own(files: Files, ran: Path, tmp_path: Path) -> None:
    assert verify(files, "--collateral", str(files.policy.with_name("collateral.json")))[0] == 0
    other = make_devroot(datetime.datetime.now(datetime.UTC))
    (tmp_path / "other.json").write_bytes(other.collateral)
    code, found = verify(files, "--collateral", str(tmp_path / "other.json"))
    assert (code, {each["code"] for each in found["reasons"]}) == (1, {"RootRefused"})


def test_what_was_not_checked_is_said(files: Files, ran: Path) -> None:
    assert verify(files)[1]["not_checked"] == ["frames", "results"]
    given = ("--results", str(ran / "lines"), "--raw", str(ran / "raw"))
    assert verify(files, *given)[1]["not_checked"] == ["frames"]
    command = [sys.executable, "-m", "vaultline", "receipt", "verify", str(ran / "receipt")]
    command += ["--policy", str(files.policy), "--allow-simulated"]
    said = subprocess.run(command, capture_output=True, text=True).stdout
    assert "not checked: which plan it is" in said
    assert "as its owner says" in said


def test_a_refusal_names_its_worker_to_a_person(files: Files, ran: Path) -> None:
    command = [sys.executable, "-m", "vaultline", "receipt", "verify", str(ran / "receipt")]
    done = subprocess.run([*command, "--policy", str(files.policy)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "failed: evidence of stage 1, replica 1: SimulatedNotAllowed" in done.stdout


def test_bad_input_is_no_refusal(files: Files, ran: Path, tmp_path: Path) -> None:
    shutil.copytree(ran / "receipt", tmp_path / "receipt")
    assert verify(files, "--results", str(ran / "lines"))[0] == 2
    (tmp_path / "receipt" / "secret.json").unlink()
    code, found = verify(files, receipt=tmp_path / "receipt")
    assert (code, found.get("reasons")) == (0, [])
    given = ("--results", str(ran / "lines"), "--raw", str(ran / "raw"))
    assert verify(files, *given, receipt=tmp_path / "receipt")[0] == 2
    (tmp_path / "receipt" / "receipt.json").write_text("{}")
    assert verify(files, receipt=tmp_path / "receipt")[0] == 2
    assert verify(files, receipt=tmp_path / "nowhere")[0] == 2
