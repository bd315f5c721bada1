"""``vaultline profile``: interrupted and gone on with, merged, scaled."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from vaultline.bench.measuring import Step
from vaultline.bench.profile_process import profile_in_worker
from vaultline.cli import profile as verb
from vaultline.cli.main import main
from vaultline.core.profile import ModelProfile, RecordedOn, read_profile, write_profile
from vaultline.testing import planning

DIGITS = Path(__file__).parents[3] / "examples" / "digits" / "digits.onnx"
BASE = planning.profile([0.1, 0.2], crossing_bytes=[64, 128, 8], weight_bytes=4096)


def stopped_after(rounds: int) -> Callable[..., ModelProfile]:
    """Measuring that is interrupted from the keyboard once a round is done."""

    def measure(*arguments: Any, **options: Any) -> ModelProfile:
        def tell(line: object) -> None:
            if isinstance(line, Step) and line.what == "measuring rounds" and line.done == rounds:
                raise KeyboardInterrupt

        return profile_in_worker(*arguments, **{**options, "tell": tell})

    return measure


def test_an_interrupted_profile_goes_on_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, partial = tmp_path / "p.json", tmp_path / "p.json.partial"
    # Options may come first: the verb is added in front of whatever there is.
    command = ["profile", "-o", str(out), str(DIGITS), "--repeats", "3", "--class", "box"]
    with monkeypatch.context() as patch:
        patch.setattr(verb, "profile_in_worker", stopped_after(2))
        assert main(command) == 130
    assert f"2 rounds are kept in {partial}" in " ".join(capsys.readouterr().err.split())
    assert not out.exists()
    assert main([*command, "--json"]) == 0
    said = capsys.readouterr()
    assert "2 of 3 rounds are done" in " ".join(said.err.split())
    summary = json.loads(said.out)
    assert summary["rounds_resumed"] == 2
    assert summary["recorded_on"]["device_class"] == "box"
    assert read_profile(out.read_bytes()).recorded_on.command
    assert not partial.exists()


def write(path: Path, device_class: str) -> str:
    on = RecordedOn(
        host=f"{device_class}-host", cpu="c", date="", command="", device_class=device_class
    )
    path.write_bytes(write_profile(replace(BASE, recorded_on=on)))
    return str(path)


def test_profiles_are_merged_and_scaled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edge, cloud = write(tmp_path / "edge.json", "edge"), write(tmp_path / "cloud.json", "cloud")
    merged = str(tmp_path / "model.json")
    assert main(["profile", "merge", edge, cloud, "-o", merged]) == 0
    assert "measured on cloud-host" in capsys.readouterr().out
    scale = ["profile", "scale", merged, "--class", "gpu", "--factor", "0.2", "--note", "a table"]
    assert main(scale) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "estimated: 0.2 x edge a table" in out
    profile = read_profile(Path(merged).read_bytes())
    assert [each.name for each in profile.classes] == ["cloud"]
    assert profile.class_scale == {"gpu": 0.2}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cloud.json",
        "edge.json",
        "model.json",
    ]


def test_a_scaled_profile_may_be_written_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edge, other = write(tmp_path / "edge.json", "edge"), tmp_path / "other.json"
    before = Path(edge).read_bytes()
    scale = ["profile", "scale", edge, "--class", "gpu", "--factor", "2", "-o", str(other)]
    assert main([*scale, "--json"]) == 0
    classes = json.loads(capsys.readouterr().out)["classes"]
    assert [(each["name"], each["estimated"]) for each in classes] == [
        ("edge", False),
        ("gpu", True),
    ]
    assert classes[1]["compute_s"] == pytest.approx(2 * classes[0]["compute_s"])
    assert Path(edge).read_bytes() == before
    assert read_profile(other.read_bytes()).class_scale == {"gpu": 2.0}


BAD = {
    "one class twice": (["merge", "edge", "edge", "-o", "out"], 2, "measured twice"),
    "a class that was measured": (
        ["scale", "edge", "--class", "edge", "--factor", "2"],
        2,
        "was measured",
    ),
    "no such profile": (["merge", "edge", "none", "-o", "out"], 2, "cannot read the profile"),
    "a factor of nothing": (["scale", "edge", "--class", "x", "--factor", "0"], 2, "factor"),
    "a factor that is no number": (["scale", "edge", "--class", "x", "--factor", "nan"], 2, ""),
    "a class with a space": (["scale", "edge", "--class", "a b", "--factor", "2"], 2, "not a name"),
    "nowhere to write": (["merge", "edge", "cloud", "-o", "missing/out"], 2, "cannot write"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_call_is_refused_and_changes_nothing(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("edge", "cloud"):
        write(tmp_path / name, name)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    arguments, code, words = BAD[case]
    assert main(["profile", *arguments]) == code
    assert words in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
