"""``vaultline measure``: reference values of the worker that is installed here, for policies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vaultline.attest.sgx_sigstruct import SIGSTRUCT_BYTES, read_sigstruct
from vaultline.cli.common import JsonFlag, print_json, results
from vaultline.core.errors import InputError
from vaultline.enclave.measurement import measure as measure_worker

#: OVMF is 4 MiB, images for SNP with a kernel in them some tens.
_FIRMWARE_BYTES_MAX = 256 << 20
_NO_GRAMINE = (
    "MRENCLAVE: render a manifest (`vaultline deploy gramine`), sign it (`gramine-sgx-sign`), "
    "and name its .sig file with --gramine"
)
_NO_SNP = "SNP launch digest: name the guest's firmware with --snp-firmware, and its kernel if any"
_FIRMWARE_ALONE = (
    "This digest is the firmware's alone: a policy that names it accepts whatever the host boots "
    "behind it. Start the guest with kernel-hashes=on, and name its kernel with --kernel"
)
_NO_TDX = (
    "MRTD and RTMRs: start the image once and read them from its evidence; "
    "nothing here can compute them"
)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    epilog = "Example: vaultline measure --gramine worker.sig --json"
    app.command("measure", epilog=epilog)(measure)


def measure(
    gramine: Annotated[
        Path | None, typer.Option(help="Signature file (.sig) of a Gramine manifest.")
    ] = None,
    snp_firmware: Annotated[
        Path | None, typer.Option(help="Firmware (OVMF) of an SEV-SNP guest.")
    ] = None,
    kernel: Annotated[
        Path | None, typer.Option(help="Kernel that QEMU is given, hashed by the firmware.")
    ] = None,
    initrd: Annotated[Path | None, typer.Option(help="Initial file system.")] = None,
    append: Annotated[str, typer.Option(help="Kernel command line.")] = "",
    vcpus: Annotated[int, typer.Option(help="Of the guest.", min=1, max=1024)] = 1,
    vcpu_type: Annotated[str, typer.Option(help="QEMU's name.")] = "EPYC-v4",
    guest_features: Annotated[
        str, typer.Option(help="SEV_FEATURES of the guest, as QEMU sets them.")
    ] = "0x1",
    as_json: JsonFlag = False,
) -> None:
    """Print reference values: what a policy names for the worker that is installed here."""
    values: dict[str, Any] = {"simulated": measure_worker().hex()}
    hints = []
    if gramine is None:
        hints.append(_NO_GRAMINE)
    else:
        values["sgx"] = read_sigstruct(_read(gramine, SIGSTRUCT_BYTES + 1))
    if snp_firmware is None:
        hints.append(_NO_SNP)
        if kernel or initrd or append:
            raise InputError("a kernel without a firmware", remedy="name it with --snp-firmware")
    else:
        files = (snp_firmware, kernel, initrd)
        digest = launch_digest(files, append, vcpus, vcpu_type, guest_features)
        covers = "firmware" if kernel is None else "firmware, kernel, command line, initrd"
        values["snp"] = {"launch_digest": digest, "vcpus": vcpus, "vcpu_type": vcpu_type}
        values["snp"]["covers"] = covers
    hints.append(_NO_TDX)
    if as_json:
        print_json(values)
        return
    console = results()
    console.print(f"simulated  measurement    {values['simulated']}", soft_wrap=True)
    if sgx := values.get("sgx"):
        console.print(f"sgx        MRENCLAVE      {sgx.mrenclave}", soft_wrap=True)
        console.print(f"sgx        MRSIGNER       {sgx.mrsigner}", soft_wrap=True)
        console.print(f"sgx        product id {sgx.product_id}, SVN {sgx.svn}")
        if sgx.debug:
            console.print("sgx        DEBUG: its evidence will be refused", style="yellow")
    if snp := values.get("snp"):
        console.print(f"snp        launch digest  {snp['launch_digest']}", soft_wrap=True)
        console.print(f"snp        covers         {snp['covers']}", soft_wrap=True)
        if kernel is None:
            console.print(_FIRMWARE_ALONE, style="yellow", soft_wrap=True)
    for hint in hints:
        console.print(hint, style="dim", soft_wrap=True)


def launch_digest(
    files: tuple[Path, Path | None, Path | None],
    append: str,
    vcpus: int,
    vcpu_type: str,
    guest_features: str,
) -> str:
    """The launch digest (hex) of an SEV-SNP guest under QEMU, by `sev-snp-measure`.

    Args:
        files: firmware, kernel, initial file system.
        guest_features: a number, such as 0x1.

    Raises:
        InputError: the package is not installed, or firmware or options are not for SNP.
    """
    try:
        from sevsnpmeasure import guest, vcpu_types
    except ImportError as error:
        raise InputError(
            "the package sev-snp-measure is not installed",
            remedy="in a clone of vaultline: pip install '.[measure]'",
        ) from error
    for path in files:
        if path is not None:
            _read(path, _FIRMWARE_BYTES_MAX)
    if vcpu_type not in vcpu_types.CPU_SIGS:
        expected = ", ".join(sorted(vcpu_types.CPU_SIGS))
        raise InputError("no such type of processor", got=vcpu_type, expected=expected)
    names = tuple("" if path is None else str(path) for path in files)
    signature = vcpu_types.CPU_SIGS[vcpu_type]
    try:
        features = int(guest_features, 0)
        digest: bytes = guest.snp_calc_launch_digest(
            vcpus, signature, names[0], *names[1:], append, features, ""
        )
    except Exception as error:  # the package raises whatever its parser meets
        raise InputError(
            "this firmware cannot be measured for SEV-SNP",
            got=f"{type(error).__name__}: {error}",
            remedy="build OVMF with SNP's metadata (AmdSevX64), and kernel hashes for a kernel",
        ) from error
    return digest.hex()


def _read(path: Path, bytes_max: int) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(bytes_max + 1)
    except OSError as error:
        raise InputError(
            "cannot read a file to measure", got=f"{path}: {error.strerror}"
        ) from error
    if len(data) > bytes_max:
        raise InputError("too long a file to measure", got=str(path))
    return data
