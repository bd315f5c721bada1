"""``vaultline cluster``: what is printed of a good file and of a bad one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vaultline.cli.main import main

EXAMPLES = Path(__file__).parents[3] / "examples" / "clusters"


def test_a_file_is_shown_as_it_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", "check", str(EXAMPLES / "edge-and-cloud.yaml")]) == 0
    out = capsys.readouterr().out
    for words in ("edge-box", "owner", "cloud-vm", "93.0 MiB", "30Mbit/s", "100Mbit/s", "5.00 ms"):
        assert words in out
    assert "warning" not in out


def test_the_document_has_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", "check", str(EXAMPLES / "three-sites.yaml"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["owner"] == "gateway"
    assert found["sites"] == ["street", "depot", "region"]
    assert found["warnings"] == []
    assert {"source", "target", "bytes_per_s", "latency_s"} == set(found["links"][0])


def test_warnings_are_shown_and_are_no_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text((EXAMPLES / "one-box.yaml").read_text().replace("count: 2", "count: 3"))
    assert main(["cluster", "check", str(file)]) == 0
    assert "warning: devices on host box use 3 cores of 2" in capsys.readouterr().out


def test_a_bad_file_fails_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.yaml"
    text = (EXAMPLES / "one-box.yaml").read_text()
    file.write_text(text.replace("host: box,", "host: moon,"))
    line = next(k for k, words in enumerate(text.splitlines(), 1) if "host: box," in words)
    assert main(["cluster", "check", str(file)]) == 2
    assert f"c.yaml:{line}: device enclave is on an unknown host" in capsys.readouterr().err


def test_the_schema_is_printed_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", "schema"]) == 0
    text = capsys.readouterr().out
    assert main(["cluster", "schema", "--json"]) == 0
    assert json.loads(text) == json.loads(capsys.readouterr().out)
