"""Gramine manifests: what they say, and that a worker lives within what they allow."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import tomllib
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from gramine_entries import Manifest
from msgspec import ValidationError, convert

from vaultline.attest.granting import read_evidence
from vaultline.cli import main as cli
from vaultline.cli.deploy_gramine import (
    GLIBC,
    GramineOptions,
    configuration,
    render,
    worker_files,
)
from vaultline.core.control import ChallengeMessage, EvidenceMessage, ReadyLine, WorkerLine
from vaultline.core.errors import InputError
from vaultline.core.serde import from_json
from vaultline.testing.attestation import challenge, devroot
from vaultline.transport.control import receive_control, send_control
from vaultline.transport.sockets import Address, connect, hang_up

#: Stands for the file policy of Gramine: only what the manifest names can be read. Folders can be
#: listed, as under Gramine, and the host's libc stands for Gramine's.
GUARD = r"""
import json, os, sys
from py_landlock import AccessFs, Landlock

files, libc, argv, environment = json.load(open(sys.argv[1]))
rules = Landlock(strict=False)
rules.add_path_rule("/", access=AccessFs.READ_DIR)
for path in files + libc:
    rules.add_path_rule(path, access=AccessFs.READ_FILE | AccessFs.EXECUTE)
for path in ("/proc", "/sys/devices", "/dev"):
    rules.add_path_rule(path, access=AccessFs.READ_FILE | AccessFs.WRITE_FILE)
rules.allow_all_network()
rules.apply()
os.execve(argv[0], ["python3", *argv[1:]], environment)
"""


@cache
def gramine() -> Path:
    """Stands for Gramine's libraries."""
    folder = Path(mkdtemp(prefix="gramine-"))
    (folder / "runtime" / "glibc").mkdir(parents=True)
    (folder / "libsysdb.so").write_bytes(b"library OS")
    (folder / "runtime" / "glibc" / "libc.so.6").write_bytes(b"libc")
    return folder


def options(**changes: Any) -> GramineOptions:
    fields = {"variant": "sgx", "vaults": Path("/var/lib/vaultline/vaults"), "libraries": gramine()}
    return GramineOptions(**fields | changes)


@cache
def manifest() -> dict[str, Any]:
    return tomllib.loads(render(options(), worker_files()))


def keys(value: Any) -> set[str]:
    """All names of tables and values, at any depth."""
    if isinstance(value, dict):
        return set(value) | {name for each in value.values() for name in keys(each)}
    return {name for each in value for name in keys(each)} if isinstance(value, list) else set()


def paths(entries: list[Any]) -> list[Path]:
    uris = [entry if isinstance(entry, str) else entry["uri"] for entry in entries]
    assert all(uri.startswith("file:/") for uri in uris)
    return [Path(uri.removeprefix("file:")) for uri in uris]


def test_nothing_is_insecure_and_nothing_can_be_debugged() -> None:
    made = manifest()
    assert not {name for name in keys(made) if name.startswith(("insecure__", "debug__"))}
    assert made["sgx"]["debug"] is False
    assert made["sgx"]["file_check_policy"] == "strict"
    assert made["sgx"]["remote_attestation"] == "dcap"
    assert made["loader"]["log_level"] == "error"
    assert made["sys"]["disallow_subprocesses"] is True
    assert "env_src_file" not in made["loader"]
    # The host's signals reach no worker, and it answers no look-up of names.
    assert not keys(made) & {"enable_sigterm_injection", "enable_extra_runtime_domain_names_conf"}


def test_nothing_of_the_hosts_environment_or_command_line_gets_in() -> None:
    loader = manifest()["loader"]
    assert all(isinstance(value, str) for value in loader["env"].values())  # no passthrough
    assert loader["argv"][1:] == ["-S", "-P", "-B", "-m", "vaultline.enclave"]


def test_every_trusted_file_exists_and_has_its_hash() -> None:
    entries = manifest()["sgx"]["trusted_files"]
    assert len(entries) > 500
    for entry, path in zip(entries, paths(entries), strict=True):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"], path
    assert len({entry["uri"] for entry in entries}) == len(entries)


def test_entrypoint_and_code_are_trusted_and_caches_and_hooks_are_not() -> None:
    made = manifest()
    trusted = set(paths(made["sgx"]["trusted_files"]))
    assert Path(made["libos"]["entrypoint"]) in trusted
    assert paths([made["loader"]["entrypoint"]["uri"]])[0] in trusted
    assert any(path.match("vaultline/enclave/__main__.py") for path in trusted)
    assert any(path.match("vaultline/enclave/gramine_quotes.py") for path in trusted)
    assert any(path.match("onnxruntime/capi/*.so") for path in trusted)
    assert not any(path.suffix in {".pyc", ".pth"} for path in trusted)
    assert not any(
        path.match("vaultline/owner/*") or path.match("vaultline/cli/*") for path in trusted
    )


def test_only_vaults_are_allowed_without_a_hash_and_every_file_is_mounted() -> None:
    made = manifest()
    assert made["sgx"]["allowed_files"] == ["file:/var/lib/vaultline/vaults/"]
    assert made["fs"]["root"] == {"type": "tmpfs"}
    mounts = {Path(mount["path"]): mount["uri"] for mount in made["fs"]["mounts"]}
    assert mounts.pop(Path("/lib")) == f"file:{gramine()}/runtime/glibc"
    assert all(uri == f"file:{path}" for path, uri in mounts.items())
    entries = [*made["sgx"]["trusted_files"], *made["sgx"]["allowed_files"]]
    for path in paths(entries):
        assert path.is_relative_to(gramine()) or any(path.is_relative_to(top) for top in mounts)


def test_without_sgx_a_simulated_platform_is_read_and_the_text_says_so(tmp_path: Path) -> None:
    platform = tmp_path / "platform.json"
    direct = options(variant="direct", platform_file=platform)
    text = render(direct, worker_files())
    made = tomllib.loads(text)
    assert "protects and proves nothing" in text
    assert f"file:{platform}" in made["sgx"]["allowed_files"]
    assert made["sgx"]["remote_attestation"] == "none"
    assert made["sgx"]["debug"] is False


def test_paths_are_written_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gramine starts in the manifest's folder, not where it was rendered."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    near = options(
        variant="direct",
        libraries=Path(os.path.relpath(gramine())),
        platform_file=Path("../platform.json"),
        vaults=Path("../vaults"),
    )
    made = tomllib.loads(render(near, worker_files()))
    assert made["loader"]["entrypoint"]["uri"] == f"file:{gramine()}/libsysdb.so"
    assert {"path": "/lib", "uri": f"file:{gramine()}/runtime/glibc"} in made["fs"]["mounts"]
    allowed = [f"file:{tmp_path}/vaults/", f"file:{tmp_path}/platform.json"]
    assert made["sgx"]["allowed_files"] == allowed
    assert configuration(near)["platform_file"] == str(tmp_path / "platform.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"enclave_size": "3G"},
        {"enclave_size": "3G", "edmm": True},
        {"enclave_size": "2GiB"},
        {"enclave_size": "0M"},
        {"enclave_size": '1G"\nsgx.debug = true'},
        {"threads": 4},
        {"product_id": 1 << 16},
        {"svn": -1},
        {"platform_file": Path("p.json")},
        {"variant": "direct"},
    ],
)
def test_options_that_make_no_enclave_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        options(**changes)


@pytest.mark.parametrize("name", ['va"ults', "va\nults", "va ults", "va$ults", "va\\ults"])
def test_a_path_cannot_write_a_line_of_its_own(name: str) -> None:
    with pytest.raises(InputError, match="can't be written"):
        render(options(vaults=Path("/srv") / name), worker_files())


def code_folders() -> dict[str, Path]:
    """Where a worker looks for code, and around and within that."""
    files = worker_files()
    package = files.python_path[0]
    return {
        "everything": Path("/"),
        "the packages": package,
        "around the packages": package.parent,
        "within the packages": package / "vaults",
        "by way of another folder": package / "x" / ".." / ".." / package.name,
        "the standard library": Path(sysconfig.get_path("stdlib")) / "vaults",
        "the interpreter's folder": files.python.parent,
        "shared objects": files.libraries[0],
        "Gramine's own": gramine() / "runtime" / "glibc",
    }


@pytest.mark.parametrize(
    "where",
    [
        "everything",
        "the packages",
        "around the packages",
        "within the packages",
        "by way of another folder",
        "the standard library",
        "the interpreter's folder",
        "shared objects",
        "Gramine's own",
    ],
)
def test_vaults_never_lie_where_the_host_could_add_code_that_is_not_measured(where: str) -> None:
    """All of the vaults' folder may be opened, so a module or library put there would run."""
    with pytest.raises(InputError, match="looks for code") as caught:
        render(options(vaults=code_folders()[where]), worker_files())
    assert "--vaults" in str(caught.value.remedy)


def test_the_vaults_folder_is_written_as_gramine_resolves_it() -> None:
    made = tomllib.loads(render(options(vaults=Path("/var/lib/x/../vaults")), worker_files()))
    assert made["sgx"]["allowed_files"] == ["file:/var/lib/vaults/"]


def test_every_entry_is_one_that_gramine_reads() -> None:
    """By strict types of the entries used, and by Gramine's own schema where it is installed."""
    for changes in ({}, {"variant": "direct", "platform_file": Path("/srv/platform.json")}):
        made = tomllib.loads(render(options(**changes), worker_files()))
        convert(made, Manifest)
        for section in made:
            with pytest.raises(ValidationError):
                convert(made | {section: made[section] | {"surprise": True}}, Manifest)
        schema = importlib.util.find_spec("graminelibos")
        if schema is not None:
            importlib.import_module("graminelibos.manifest_check").GramineManifestSchema(made)


def start(tmp_path: Path, denied: str = "") -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
    """A worker as the direct manifest would start it, within its list of files."""
    platform, vault = tmp_path / "platform.json", tmp_path / "model.vault"
    platform.write_bytes(devroot().platform)
    vault.write_bytes(b"no vault")
    direct = options(variant="direct", vaults=tmp_path, platform_file=platform)
    made = tomllib.loads(render(direct, worker_files()))
    files = [str(path) for path in paths(made["sgx"]["trusted_files"]) if path.name != denied]
    files += [str(platform), str(vault)]
    maps = Path("/proc/self/maps").read_text().splitlines()
    folder = next(Path(line.split()[-1]).parent for line in maps if "/libc.so.6" in line)
    libc = [str(path) for path in folder.iterdir() if GLIBC.fullmatch(path.name)]
    argv = [made["libos"]["entrypoint"], *made["loader"]["argv"][1:]]
    environment = made["loader"]["env"]
    environment["LD_LIBRARY_PATH"] = environment["LD_LIBRARY_PATH"].removeprefix("/lib:")
    guarded = tmp_path / "guard.json"
    guarded.write_text(json.dumps([files, libc, argv, environment]))
    popen = subprocess.Popen(
        [sys.executable, "-c", GUARD, str(guarded)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    config = {
        "name": "w",
        "platform": "gramine",
        "provider": "simulated",
        "platform_file": str(platform),
        "vault": str(vault),
        "control": "tcp:127.0.0.1:0",
        "data": ["tcp:127.0.0.1:0"],
        "runtime_dir": "/",
    }
    return popen, config


@pytest.mark.skipif(sys.platform != "linux", reason="Landlock stands for Gramine's file policy")
def test_a_worker_starts_and_answers_with_nothing_but_what_the_manifest_names(
    tmp_path: Path,
) -> None:
    popen, config = start(tmp_path)
    assert popen.stdin is not None
    assert popen.stdout is not None
    try:
        popen.stdin.write(json.dumps(config).encode() + b"\n")
        popen.stdin.flush()
        ready = None
        while not isinstance(ready, ReadyLine):
            line = popen.stdout.readline()
            assert line, popen.stderr and popen.stderr.read()
            ready = from_json(line, WorkerLine, what="a line")  # type: ignore[arg-type]
        assert {step.state for step in ready.hardening} == {"skipped"}
        sock = connect(Address.parse(ready.control), timeout_s=10.0)
        send_control(sock, ChallengeMessage(challenge=challenge().encode()))
        answer = receive_control(sock, EvidenceMessage, timeout_s=10.0)
        assert read_evidence(answer.evidence).kind == "simulated"
        hang_up(sock)
    finally:
        popen.kill()
        popen.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="Landlock stands for Gramine's file policy")
def test_the_guard_of_that_test_does_guard(tmp_path: Path) -> None:
    popen, config = start(tmp_path, denied="executor.py")
    out, error = popen.communicate(json.dumps(config).encode() + b"\n", timeout=60)
    assert popen.returncode != 0
    assert not out
    assert b"executor" in error


def test_the_verb_writes_manifest_and_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["deploy", "gramine", "--out", str(out), "--gramine", str(gramine()), "--json"]
    assert cli.main(arguments) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["files"] == ["worker.manifest", "worker.json"]
    assert tomllib.loads((out / "worker.manifest").read_text()) == manifest()
    assert json.loads((out / "worker.json").read_text())["provider"] == "gramine"
    assert cli.main(arguments) == 2  # nothing is overwritten
    assert "in the way" in capsys.readouterr().out


def test_without_gramine_the_verb_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["deploy", "gramine", "--out", str(tmp_path / "o"), "--gramine", str(tmp_path)]
    assert cli.main(arguments) == 2
    assert "libsysdb.so" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
