"""The verbs in the order in which a user calls them, and the demo, on the example."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from vaultline.cli.main import main

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
CLUSTER = """
owner: local
hosts:
  - {name: local, cores: 2, memory: 8GiB}
devices:
  - name: enclave
    host: local
    kind: simulated
    trust: attested
    memory: 93MiB
    count: 2
"""


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    """Run a verb with --json; it must succeed and print one document."""
    code = main([*arguments, "--json"])
    out = capsys.readouterr().out
    assert code == 0, out
    return json.loads(out)


def test_from_a_model_to_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    model = str(DIGITS / "digits.onnx")
    call(capsys, "policy", "dev", "--out", "trust")
    profile = call(capsys, "profile", model, "-o", "profile.json", "--repeats", "3")
    assert profile["blocks"] > 10
    plan = call(
        capsys,
        *("plan", "profile.json", "--cluster", "cluster.yaml", "-o", "plan.json"),
        *("--stages", "2", "--plot", "plan.png"),
    )
    assert (tmp_path / "plan.png").stat().st_size > 1000
    sealed = call(capsys, "seal", model, "--plan", "plan.json", "-o", "model.vault")
    assert sealed["plan_digest"] == plan["plan_digest"]
    assert stat.S_IMODE((tmp_path / "owner.key").stat().st_mode) == 0o600
    summary = call(
        capsys,
        *("run", "--plan", "plan.json", "--vault", "model.vault", "--key", "owner.key"),
        *("--policy", "trust/policy.yaml", "--allow-simulated"),
        *("--source", str(DIGITS / "digits.mp4"), "--limit", "40", "--sink", "results.jsonl"),
        *("--preprocess", str(DIGITS / "digits.preprocess.yaml"), "--raw", "raw"),
    )
    assert (summary["frames_in"], summary["frames_out"]) == (40, 40)
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(40))
    assert {line["plan_digest"] for line in lines} == {plan["plan_digest"]}
    assert {line["enclave"] for line in lines} == {"simulated"}
    assert len(list((tmp_path / "raw").iterdir())) == 40


def test_the_demo_reads_digits_as_well_as_the_network_in_one_piece(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = call(capsys, "demo", "--out", str(tmp_path))
    assert figures["accuracy"] == figures["accuracy_unsplit"]
    assert figures["same_predictions"] is True
    assert figures["accuracy"] >= 0.97
    assert figures["frames_in"] == figures["frames_out"] == 900
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 900
    for name in ("plan.png", "timeline.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
