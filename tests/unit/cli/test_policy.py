"""``vaultline policy``: files for development, and keys of accelerators."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vaultline.attest.policy import Policy
from vaultline.cli.main import main
from vaultline.core.yaml import from_yaml
from vaultline.owner.accelerator import check_accelerator_key


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["policy", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_an_accelerators_key_is_written_and_its_entry_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(capsys, "accelerator", "--out", str(tmp_path), "--json")
    made = json.loads(out)
    assert code == 0
    key = check_accelerator_key(Path(made["key"]))
    assert made["public_key"] == key.public_key.hex()
    text = "version: 1\naccept:\n" + made["entry"]
    (entry,) = from_yaml(text, Policy, what="the policy", path="p").accept
    assert entry.pinned_keys == {key.public_key.hex()}
    assert key.private_key.hex() not in out


def test_the_entry_can_be_copied_from_the_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(capsys, "accelerator", "--out", str(tmp_path / "new"))
    assert code == 0
    entry = out[out.index("  - kind") :]
    policy = from_yaml(f"version: 1\naccept:\n{entry}", Policy, what="the policy", path="p")
    assert policy.accept[0].kind == "accelerator"


def test_a_development_root_names_each_file_that_it_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(capsys, "dev", "--out", str(tmp_path / "trust"))
    assert code == 0
    assert [path.name for path in (tmp_path / "trust").iterdir() if path.name not in out] == []


def test_a_key_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(capsys, "accelerator", "--out", str(tmp_path))
    code, out, err = call(capsys, "accelerator", "--out", str(tmp_path))
    assert (code, out) == (2, "")
    assert "choose another folder" in err


def test_the_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    for flags in ((), ("--json",)):
        code, out, _ = call(capsys, "schema", *flags)
        assert code == 0
        assert json.loads(out)["title"] == "privacy policy"
