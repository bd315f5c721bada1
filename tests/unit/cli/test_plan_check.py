"""``vaultline plan --check``: the plan that was found is run in real workers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vaultline.cli.main import main

DIGITS = Path(__file__).parents[3] / "examples" / "digits" / "digits.onnx"
CLUSTER = """\
owner: box
hosts:
  - {{name: box, cores: 2, memory: 8GiB}}
devices:
  - {{name: enclave, host: box, kind: {kind}, trust: attested, memory: 93MiB, count: 2}}
"""


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("check") / "p.json"
    assert main(["profile", str(DIGITS), "-o", str(path), "--repeats", "3"]) == 0
    return path


def plan(profile: Path, kind: str, model: Path, *more: str) -> list[str]:
    cluster = profile.with_name(f"{kind}.yaml")
    cluster.write_text(CLUSTER.format(kind=kind))
    out = str(profile.with_name("plan.json"))
    files = [str(profile), "--cluster", str(cluster), "-o", out]
    return ["plan", *files, "--check", str(model), "--check-rounds", "1", *more]


def test_predicted_and_measured_times_are_in_the_document(
    profile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(plan(profile, "simulated", DIGITS, "--json")) == 0
    check = json.loads(capsys.readouterr().out)["check"]
    assert check["frames"] == 100
    assert len(check["chunks_s"]) == 1
    for time in (check["chunk"], check["latency"], *check["stages"]):
        assert time["predicted_s"] > 0
        assert time["measured_s"] > 0


def test_a_person_reads_a_table(profile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(plan(profile, "simulated", DIGITS, "--replicas-max", "1")) == 0
    said = capsys.readouterr().out
    assert "predicted and measured, on this machine" in said
    assert "chunk of 100 frames" in said


def test_hardware_that_is_not_here_cannot_be_checked(
    profile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(plan(profile, "sgx", DIGITS)) == 2
    assert "only simulated enclaves and plain workers" in capsys.readouterr().err


def test_another_model_cannot_be_checked(
    profile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vaultline.graph.probe import save_hop_probe

    save_hop_probe(tmp_path / "other.onnx", 100)
    assert main(plan(profile, "simulated", tmp_path / "other.onnx")) == 2
    assert "another model" in capsys.readouterr().err
