from __future__ import annotations

import json
from pathlib import Path

import pytest

from vaultline.cli.main import main

BAD = {
    "a model that there isn't": (["--models", "vgg19,vgg20"], "vgg20"),
    "no model": (["--models", ""], "there is no such model"),
    "a folder that there isn't": (["--plot", "/nowhere/at/all"], "cannot write the picture"),
    "no rounds": (["--rounds", "0"], "--rounds"),
}


@pytest.mark.parametrize("sentence", BAD)
def test_bad_input_is_refused_before_anything_is_measured(
    sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, said = BAD[sentence]
    zoo = tmp_path / "zoo"
    assert main(["bench", "bounded", *arguments, "--models-dir", str(zoo), "--json"]) == 2
    out = capsys.readouterr().out
    assert said in out
    assert "error" in json.loads(out)
    assert not zoo.exists()
