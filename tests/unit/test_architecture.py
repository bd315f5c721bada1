"""The import contracts of pyproject.toml hold, and each of them notices what it is for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import vaultline
from vaultline.cli.tcb import WORKERS, trusted_base

ROOT = Path(__file__).parents[2]
SOURCE = Path(vaultline.__file__).parents[1]

#: Case -> (module that breaks a rule, what it imports, words of the contract that must notice).
VIOLATIONS = {
    "core reaches up": ("core", "vaultline.planner", "Imports point down"),
    "owner imports host": ("owner", "vaultline.host", "Imports point down"),
    "the package uses its tests' fakes": ("video", "vaultline.testing", "Imports point down"),
    "the enclave parses models": ("enclave", "vaultline.graph", "The enclave imports core"),
    "the enclave plans": ("enclave", "vaultline.planner", "The enclave imports core"),
    "the host opens records": ("host", "vaultline.channel", "The host cannot open"),
    "the host releases keys": ("host", "vaultline.attest", "The host cannot open"),
    "the host decrypts by itself": ("host", "cryptography", "The host cannot open"),
    "attest reads the clock": ("attest", "time", "Pure layers"),
    "channel opens a socket": ("channel", "socket", "Pure layers"),
    "the planner rolls dice": ("planner", "random", "Pure layers"),
    "cost runs the engine": ("cost", "onnxruntime", "Pure layers"),
    "the owner parses models": ("owner", "onnx", "Only graph reads ONNX"),
    "the owner runs the engine": ("owner", "onnxruntime", "Only graph's compiler"),
    "the host reads YAML by itself": ("host", "yaml", "Only core.yaml"),
    "something unpickles": ("bench", "pickle", "Only core.yaml"),
    "something imports torch": ("bench", "torch", "The package does without PyTorch"),
}


def lint(source: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on a copy of the package."""
    script = "import sys; from importlinter.cli import lint_imports_command; sys.argv[0] = 'x'; "
    return subprocess.run(
        [
            sys.executable,
            "-c",
            script + "lint_imports_command()",
            "--no-cache",
            "--config",
            str(ROOT / "pyproject.toml"),
        ],
        cwd=source,
        env={**os.environ, "PYTHONPATH": str(source), "COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
    )


def module_name(case: str) -> str:
    return "planted_" + case.replace("'", "").replace(" ", "_")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the linter says of a copy of the package in which every rule is broken once."""
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(SOURCE / "vaultline", source / "vaultline")
    for case, (folder, imported, _) in VIOLATIONS.items():
        planted = source / "vaultline" / folder / f"{module_name(case)}.py"
        planted.write_text(f"import {imported}\n")
    (source / "vaultline" / "unplaced").mkdir()
    (source / "vaultline" / "unplaced" / "__init__.py").touch()
    done = lint(source)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def section(report: str, contract: str) -> str:
    """The part of the report that explains how a contract was broken."""
    body = report.partition("Broken contracts")[2]
    start = body.index("\n" + contract)
    rest = body[start:].splitlines()[3:]
    end = next(
        (index for index, line in enumerate(rest[1:], 1) if line and set(line) == {"-"}), len(rest)
    )
    return "\n".join(rest[:end])


@pytest.mark.parametrize("case", VIOLATIONS)
def test_a_forbidden_import_is_noticed(case: str, report: str) -> None:
    folder, imported, contract = VIOLATIONS[case]
    line = f"vaultline.{folder}.{module_name(case)} -> {imported} "
    assert line in section(report, contract)


@pytest.mark.full
@pytest.mark.parametrize("case", VIOLATIONS)
def test_a_forbidden_import_is_noticed_alone(case: str, tmp_path: Path) -> None:
    folder, imported, contract = VIOLATIONS[case]
    shutil.copytree(SOURCE / "vaultline", tmp_path / "vaultline")
    planted = tmp_path / "vaultline" / folder / f"{module_name(case)}.py"
    planted.write_text(f"import {imported}\n")
    done = lint(tmp_path)
    assert done.returncode == 1
    broken = [line for line in done.stdout.splitlines() if " BROKEN" in line]
    assert any(line.startswith(contract) for line in broken)


def test_a_folder_without_a_place_is_noticed(report: str) -> None:
    assert "vaultline.unplaced" in section(report, "Imports point down")


def test_the_package_keeps_its_contracts() -> None:
    done = lint(SOURCE)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("worker", WORKERS)
def test_the_trusted_base_lies_within_its_folders(worker: str) -> None:
    allowed = {"core", "channel", "attest", "sched", "transport", "enclave"}
    folders = {module.name.split(".")[1] for module in trusted_base(SOURCE, worker).modules[1:]}
    assert folders <= allowed


@pytest.mark.parametrize("worker", WORKERS)
def test_the_trusted_base_is_small_enough_to_read(worker: str) -> None:
    base = trusted_base(SOURCE, worker)
    assert base.dynamic == ()
    assert base.code_lines <= base.lines_max == 2500
    # Prose is welcome, but it has to be read as well.
    assert base.lines <= 1.65 * base.lines_max


#: Case -> (file under the package, a line of code).
BANNED_CALLS = {
    "the host decodes a message": ("host/x.py", "import msgspec\n\nmsgspec.json.decode(b'1')\n"),
    "the enclave converts dicts": ("enclave/x.py", "import msgspec\n\nmsgspec.convert(1, int)\n"),
    "the owner reads the wall clock": ("owner/x.py", "import time\n\ntime.time()\n"),
    "a file is unpickled": ("bench/x.py", "import pickle\n\npickle.loads(b'')\n"),
    "arrays are loaded": ("video/x.py", "import numpy as np\n\nnp.load('a.npy')\n"),
}


@pytest.mark.parametrize("case", BANNED_CALLS)
def test_a_banned_call_is_noticed(case: str) -> None:
    file, code = BANNED_CALLS[case]
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "TID251"]
    name = str(ROOT / "src/vaultline" / file)
    done = subprocess.run(
        [*command, "--stdin-filename", name, "-"],
        cwd=ROOT,
        input=code,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "TID251" in done.stdout


def test_every_folder_says_what_it_is_for() -> None:
    for init in (SOURCE / "vaultline").rglob("__init__.py"):
        assert init.read_text(encoding="utf-8").startswith('"""'), init
