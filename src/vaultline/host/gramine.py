"""Workers under Gramine: the program, the rendered folder, and what is wrong with either.

Nothing here is trusted: the processor measures the manifest, whoever looks at it before. These
checks say early and by name what would otherwise end as a worker that never speaks.
"""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vaultline.core.errors import MachineError

SGX_DEVICES = (Path("/dev/sgx_enclave"), Path("/dev/sgx/enclave"))
_NAME = "worker"
_RENDER = "render it with `vaultline deploy gramine`"


class GramineMissingError(MachineError):
    """The program that would start the worker is not installed here."""


class ManifestError(MachineError):
    """The folder holds no manifest that this worker can be started with."""


def gramine_command(folder: Path, module: str, vaults: Sequence[str], *, sgx: bool) -> list[str]:
    """What starts a worker with the manifest of a folder; run it there.

    Args:
        module: that the manifest must start. vaults: files that it must allow.
        sgx: in an enclave (``gramine-sgx``), or without one (``gramine-direct``).

    Raises:
        GramineMissingError, ManifestError: as named.
    """
    program = "gramine-sgx" if sgx else "gramine-direct"
    found = shutil.which(program)
    if found is None:
        raise GramineMissingError(
            f"{program} is not installed",
            got="not on the PATH",
            remedy="install Gramine 1.9 on this machine; no other way to start it is tried",
        )
    _check_manifest(folder, module, vaults, sgx=sgx)
    return [found, _NAME]


def _check_manifest(folder: Path, module: str, vaults: Sequence[str], *, sgx: bool) -> None:
    path = folder / (f"{_NAME}.manifest.sgx" if sgx else f"{_NAME}.manifest")
    needed = [path, folder / f"{_NAME}.sig"] if sgx else [path]
    missing = [each.name for each in needed if not each.is_file()]
    if missing:
        then = ", then `gramine-sgx-sign` it" if sgx else " --mode direct"
        raise ManifestError(
            "there is no manifest to start a worker with",
            got=f"no {', '.join(missing)} in {folder}",
            remedy=_RENDER + then,
        )
    manifest = _read(path)
    argv = _at(manifest, "loader", "argv")
    if not isinstance(argv, list) or argv[-1:] != [module]:
        which = "server" if module.endswith(".server") else "stage"
        raise ManifestError(
            "the manifest starts another program than is needed",
            got=str(argv),
            expected=f"-m {module}",
            remedy=f"{_RENDER} --worker {which}",
        )
    attestation = _at(manifest, "sgx", "remote_attestation")
    if (attestation == "dcap") != sgx:
        raise ManifestError(
            "the manifest is for another kind of evidence",
            got=f"sgx.remote_attestation = {attestation!r}",
            expected="'dcap' for kind: sgx, 'none' for kind: simulated",
            remedy=_RENDER + " --mode " + ("sgx" if sgx else "direct"),
        )
    uris = _at(manifest, "sgx", "allowed_files") or ()
    allowed = [str(uri).removeprefix("file:") for uri in uris]
    folders = tuple(path for path in allowed if path.endswith("/"))
    for vault in vaults:
        if vault not in allowed and not vault.startswith(folders):
            raise ManifestError(
                "the manifest does not let the worker open the sealed model",
                got=vault,
                expected=f"in {', '.join(allowed) or 'no folder'}",
                remedy="move the sealed model there, or render with --vaults",
            )


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ManifestError(
            "the manifest can't be read", got=f"{path}: {error}", remedy=_RENDER
        ) from error


def _at(manifest: dict[str, Any], *keys: str) -> Any:
    value: Any = manifest
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def diagnose(*, sgx: bool, devices: Sequence[Path] = SGX_DEVICES) -> str:
    """What to do about a worker under Gramine that ended before it listened."""
    if sgx and not any(device.exists() for device in devices):
        return (
            f"this machine shows no SGX device ({devices[0]}): turn SGX on in its firmware, use "
            "Linux 5.11 or newer, and let the user open the device (group sgx)"
        )
    return (
        "read what Gramine wrote above; often the enclave is too small (--enclave-size) or has too "
        "few threads, or a file changed after the manifest was rendered"
    )
