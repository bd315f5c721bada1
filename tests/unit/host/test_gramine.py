"""What is wrong with a folder under which a worker should be started is said before it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vaultline.core.errors import MachineError
from vaultline.host.gramine import GramineMissingError, ManifestError, diagnose, gramine_command

MANIFEST = """
loader.argv = ["python3", "-S", "-P", "-B", "-m", "{module}"]
sgx.remote_attestation = "{attestation}"
sgx.allowed_files = [{allowed}]
"""
VAULT = "/vaults/model.vault"


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of Gramine's are installed."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("gramine-sgx", "gramine-direct"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def rendered(tmp_path: Path, **changes: Any) -> Path:
    fields = {
        "name": "worker.manifest.sgx",
        "module": "vaultline.enclave",
        "attestation": "dcap",
        "allowed": '"file:/vaults/"',
    } | changes
    (tmp_path / fields.pop("name")).write_text(MANIFEST.format(**fields))
    (tmp_path / "worker.sig").write_bytes(b"signature")
    return tmp_path


def command(folder: Path, *, sgx: bool = True, vault: str = VAULT) -> list[str]:
    return gramine_command(folder, "vaultline.enclave", (vault,), sgx=sgx)


def test_a_signed_folder_is_run_by_gramine_sgx_and_one_without_sgx_by_gramine_direct(
    tmp_path: Path,
) -> None:
    program, name = command(rendered(tmp_path))
    assert (Path(program).name, name) == ("gramine-sgx", "worker")
    direct = rendered(tmp_path, name="worker.manifest", attestation="none")
    assert Path(command(direct, sgx=False)[0]).name == "gramine-direct"


def test_a_program_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(GramineMissingError, match="gramine-sgx") as caught:
        command(rendered(tmp_path))
    assert "no other way" in str(caught.value.remedy)


BAD = {
    "another worker's": ({"module": "vaultline.enclave.server"}, "another program"),
    "without attestation": ({"attestation": "none"}, "another kind of evidence"),
    "for other models": ({"allowed": '"file:/elsewhere/"'}, "open the sealed model"),
    "for no model": ({"allowed": ""}, "open the sealed model"),
    "for a folder whose name begins so": ({"allowed": '"file:/vault"'}, "open the sealed model"),
    "no TOML": ({"module": '"]]'}, "can't be read"),
    "only rendered": ({"name": "worker.manifest"}, "no manifest"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_manifest_that_would_not_start_this_worker_is_refused(case: str, tmp_path: Path) -> None:
    changes, message = BAD[case]
    with pytest.raises(ManifestError, match=message) as caught:
        command(rendered(tmp_path, **changes))
    assert caught.value.remedy


def test_an_sgx_manifest_is_not_run_without_sgx(tmp_path: Path) -> None:
    folder = rendered(tmp_path, name="worker.manifest")
    with pytest.raises(ManifestError, match="another kind of evidence"):
        command(folder, sgx=False)


def test_a_missing_signature_is_missed(tmp_path: Path) -> None:
    folder = rendered(tmp_path)
    (folder / "worker.sig").unlink()
    with pytest.raises(MachineError, match="no manifest") as caught:
        command(folder)
    assert "gramine-sgx-sign" in str(caught.value.remedy)


def test_a_worker_that_never_spoke_is_explained_by_the_device_that_is_missing(
    tmp_path: Path,
) -> None:
    device = tmp_path / "sgx_enclave"
    assert "no SGX device" in diagnose(sgx=True, devices=[device])
    device.write_bytes(b"")
    assert "--enclave-size" in diagnose(sgx=True, devices=[device])
    assert "no SGX device" not in diagnose(sgx=False, devices=[tmp_path / "none"])
