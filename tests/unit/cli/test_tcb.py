"""Counting the trusted code, on a made-up package and on ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import vaultline
from vaultline.cli import main as cli
from vaultline.cli import tcb
from vaultline.cli.tcb import TrustedBase, TrustedModule, trusted_base

SOURCE = Path(vaultline.__file__).parents[1]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    files = {
        "own/__init__.py": '"""Root."""\n',
        "own/enclave/__init__.py": "",
        "own/enclave/worker.py": (
            "# a comment\n\nfrom typing import TYPE_CHECKING\nimport own.core.plan\n"
            "if TYPE_CHECKING:\n    from own.graph import cuts\n"
            "else:\n    from own.core import late\n"
            'def run():\n    """Two\n    lines."""\n'
            '    from . import inner\n    return """a\nb"""\n'
        ),
        "own/enclave/inner.py": "import hashlib\nimport msgspec\n",
        "own/core/__init__.py": "",
        "own/core/plan.py": "from own.core.units import MIB\n",
        "own/core/units.py": "MIB = 1\n",
        "own/core/late.py": "",
        "own/core/unused.py": "",
        "own/graph/__init__.py": "",
        "own/graph/cuts.py": "import onnx\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_closure_follows_every_import_that_runs(tree: Path) -> None:
    base = trusted_base(tree, "own.enclave")
    assert [module.name for module in base.modules] == [
        "own",
        "own.core",
        "own.core.late",
        "own.core.plan",
        "own.core.units",
        "own.enclave",
        "own.enclave.inner",
        "own.enclave.worker",
    ]
    assert [package.name for package in base.dependencies] == ["msgspec"]
    assert base.within_limit


def test_lines_are_counted_with_and_without_blanks_comments_and_docstrings(tree: Path) -> None:
    worker = {module.name: module for module in trusted_base(tree, "own.enclave").modules}[
        "own.enclave.worker"
    ]
    assert worker == TrustedModule(name="own.enclave.worker", lines=14, code_lines=10)


def test_an_import_by_a_computed_name_is_refused(tree: Path) -> None:
    (tree / "own/enclave/plugin.py").write_text(
        "import importlib\n\nimportlib.import_module('own.' + 'graph')\n"
    )
    base = trusted_base(tree, "own.enclave")
    assert base.dynamic == ("own.enclave.plugin:3",)
    assert not base.within_limit


def test_an_import_by_a_literal_name_is_followed(tree: Path) -> None:
    (tree / "own/enclave/plugin.py").write_text(
        "import importlib\n\nimportlib.import_module('own.graph.cuts')\n"
    )
    base = trusted_base(tree, "own.enclave")
    assert base.dynamic == ()
    assert "own.graph.cuts" in {module.name for module in base.modules}


def test_what_only_simulated_enclaves_load_is_counted_apart(tree: Path) -> None:
    (tree / "own/enclave/pretend.py").write_text("import own.core.unused\nimport own.core.plan\n")
    (tree / "own/enclave/inner.py").write_text(
        "def run():\n    from own.enclave.pretend import it\n    return it\n"
    )
    base = trusted_base(tree, "own.enclave", ("own.enclave.pretend",))
    assert [module.name for module in base.simulated] == ["own.core.unused", "own.enclave.pretend"]
    assert base.simulated_code_lines == 2
    assert not {module.name for module in base.modules} & {"own.core.unused", "own.enclave.pretend"}
    everything = trusted_base(tree, "own.enclave", ())
    assert everything.code_lines == base.code_lines + 2


def test_simulated_code_that_others_load_at_once_is_trusted(tree: Path) -> None:
    (tree / "own/enclave/pretend.py").write_text("x = 1\n")
    for text in ("from own.enclave.pretend import x\n", "import own.enclave.pretend\n"):
        (tree / "own/enclave/inner.py").write_text(text)
        base = trusted_base(tree, "own.enclave", ("own.enclave.pretend",))
        assert base.simulated == ()
        assert "own.enclave.pretend" in {module.name for module in base.modules}


#: Of each worker, what only simulated enclaves load.
SIMULATED = {
    "vaultline.enclave.__main__": (
        "vaultline.attest.pinned",
        "vaultline.attest.sgx_quote",
        "vaultline.core.paged",
        "vaultline.enclave.measurement",
        "vaultline.enclave.pinned_quotes",
        "vaultline.enclave.platform_file",
        "vaultline.enclave.simulated_epc",
        "vaultline.enclave.simulated_executor",
        "vaultline.enclave.simulated_quotes",
    ),
    "vaultline.enclave.server": (
        "vaultline.attest.pinned",
        "vaultline.attest.sgx_quote",
        "vaultline.core.paged",
        "vaultline.enclave.measurement",
        "vaultline.enclave.pinned_quotes",
        "vaultline.enclave.platform_file",
        "vaultline.enclave.simulated_epc",
        "vaultline.enclave.simulated_executor",
        "vaultline.enclave.simulated_groups",
        "vaultline.enclave.simulated_quotes",
    ),
}


@pytest.mark.parametrize("worker", tcb.WORKERS)
def test_what_is_simulated_is_not_trusted_and_is_counted(worker: str) -> None:
    base = trusted_base(SOURCE, worker)
    assert tuple(module.name for module in base.simulated) == SIMULATED[worker]
    trusted = {module.name for module in base.modules}
    assert {"vaultline.enclave.gramine_quotes", "vaultline.enclave.tsm_quotes"} <= trusted
    assert base.within_limit


def test_a_worker_contains_nothing_of_the_other_ones_work() -> None:
    stage, server = (
        {module.name for module in trusted_base(SOURCE, worker).modules} for worker in tcb.WORKERS
    )
    for name in ("enclave.pipeline", "enclave.stage", "transport.streams", "channel.records"):
        assert f"vaultline.{name}" in stage - server
    for name in ("enclave.server", "enclave.groups", "channel.requests", "core.serving"):
        assert f"vaultline.{name}" in server - stage


def test_every_module_of_the_enclave_is_counted_in_some_base() -> None:
    bases = [trusted_base(SOURCE, worker) for worker in tcb.WORKERS]
    counted = {module.name for base in bases for module in (*base.modules, *base.simulated)}
    assert set(tcb._modules_under(SOURCE, "vaultline.enclave")) <= counted


def test_packages_required_by_packages_are_listed() -> None:
    found = {package.name: package for package in tcb._dependencies({"jwcrypto", "os"})}
    assert found["jwcrypto"].direct
    assert not found["cryptography"].direct
    assert "os" not in found


def test_doctor_counts_our_own_code(capsys) -> None:
    code = cli.main(["doctor", "--tcb", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert code == (0 if report["within_limit"] else 1)
    assert "vaultline.enclave" in {module["name"] for module in report["modules"]}
    assert "vaultline.enclave.server" in {module["name"] for module in report["server"]["modules"]}
    assert 0 < report["code_lines"] <= report["lines"]


@pytest.mark.parametrize("which", tcb.WORKERS)
def test_doctor_exits_1_when_there_is_too_much_to_trust(
    which: str, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def base(source: Path, worker: str) -> TrustedBase:
        lines = tcb.TCB_LINES_MAX + (worker == which)
        module = TrustedModule(name=worker, lines=9999, code_lines=lines)
        return TrustedBase(modules=(module,), dependencies=(), dynamic=())

    monkeypatch.setattr("vaultline.cli.doctor.trusted_base", base)
    assert cli.main(["doctor", "--tcb"]) == 1
    assert capsys.readouterr().out.count("OVER") == 1


def test_of_providers_of_evidence_the_largest_counts() -> None:
    sizes = {"vaultline.enclave": 10, tcb.PROVIDERS[0]: 7, tcb.PROVIDERS[1]: 5}
    modules = tuple(TrustedModule(name=n, lines=c, code_lines=c) for n, c in sizes.items())
    base = TrustedBase(modules=modules, dependencies=(), dynamic=())
    assert (base.code_lines, base.lines) == (17, 22)


def test_no_module_loads_a_provider_but_when_it_is_chosen() -> None:
    """What counts one of them alone would be wrong if anything loaded them all."""
    source = (SOURCE / "vaultline" / "enclave" / "evidence.py").read_text()
    for name in tcb.PROVIDERS:
        lines = [line for line in source.splitlines() if f"from {name} import" in line]
        assert len(lines) == 1
        assert lines[0].startswith("        ")
    others = (SOURCE / "vaultline").glob("*/*.py")
    users = {path.name for path in others if "_quotes import" in path.read_text()}
    assert users <= {"evidence.py", "attestation.py", "tsm.py", "deploy_gramine.py"}
