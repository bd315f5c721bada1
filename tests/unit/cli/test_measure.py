"""Reference values on the command line."""

from __future__ import annotations

import hashlib
import json
import struct
import uuid
from pathlib import Path

import pytest
from sigstructs import MRENCLAVE, sigstruct

from vaultline.cli import main as cli
from vaultline.enclave.measurement import measure


def told(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert cli.main(["measure", *arguments]) == code
    captured = capsys.readouterr()
    return captured.out + captured.err


def firmware(metadata: bytes = b"") -> bytes:
    """The least that is OVMF for SEV-SNP: a table at its end with a reset vector and metadata."""
    size = 0x4000

    def entry(guid: str, data: bytes) -> bytes:
        return data + struct.pack("<H", len(data) + 18) + uuid.UUID(guid).bytes_le

    sections = metadata or struct.pack("<III", 0x800000, 0x1000, 2)  # the page of secrets
    header = b"ASEV" + struct.pack("<III", 16 + len(sections), 1, len(sections) // 12)
    place = 0x1000
    table = entry("00f771de-1a7e-4fcb-890e-68c77e2fb44e", struct.pack("<I", 0x80B004))
    table += entry("dc886566-984a-4798-a75e-5585a7bf67cc", struct.pack("<I", size - place))
    foot = (
        struct.pack("<H", len(table) + 18)
        + uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d").bytes_le
    )
    data = bytearray(size)
    data[place : place + 16 + len(sections)] = header + sections
    end = size - 32
    data[end - len(table + foot) : end] = table + foot
    return bytes(data)


def test_the_worker_is_measured_as_it_measures_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(told(capsys, "--json")) == {"simulated": measure().hex()}
    text = told(capsys)
    assert measure().hex() in text
    for way in ("vaultline deploy gramine", "--snp-firmware", "MRTD"):
        assert way in text


def test_an_enclave_is_measured_by_its_signature_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "worker.sig"
    path.write_bytes(sigstruct())
    found = json.loads(told(capsys, "--gramine", str(path), "--json"))["sgx"]
    assert found["mrenclave"] == MRENCLAVE.hex()
    assert MRENCLAVE.hex() in told(capsys, "--gramine", str(path))
    path.write_bytes(sigstruct(flags=0x06))
    assert "refused" in told(capsys, "--gramine", str(path))
    path.write_bytes(b"no signature")
    assert "gramine-sgx-sign" in told(capsys, "--gramine", str(path), code=2)
    assert "cannot read" in told(capsys, "--gramine", str(tmp_path / "none"), code=2)


def test_an_snp_guest_is_measured_by_firmware_and_kernel(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sevsnpmeasure", reason="sev-snp-measure is missing")
    path = tmp_path / "OVMF.fd"
    path.write_bytes(firmware())

    def digest(*arguments: str) -> str:
        out = json.loads(told(capsys, "--snp-firmware", str(path), *arguments, "--json"))
        return str(out["snp"]["launch_digest"])

    one = digest()
    assert len(bytes.fromhex(one)) == hashlib.sha384().digest_size
    assert digest() == one
    assert len({one, digest("--vcpus", "2"), digest("--vcpu-type", "EPYC-Milan")}) == 3
    assert "kernel" in told(capsys, "--snp-firmware", str(path), "--kernel", str(path), code=2)
    assert "EPYC" in told(capsys, "--snp-firmware", str(path), "--vcpu-type", "Pentium", code=2)
    assert "features" in told(
        capsys, "--snp-firmware", str(path), "--guest-features", "features", code=2
    )
    path.write_bytes(b"no firmware")
    assert "cannot be measured" in told(capsys, "--snp-firmware", str(path), code=2)


def test_a_digest_of_the_firmware_alone_is_told_to_accept_every_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vaultline.cli.measure.launch_digest", lambda *_: "ab" * 48)
    path = str(tmp_path / "OVMF.fd")
    alone, whole = ("--snp-firmware", path), ("--snp-firmware", path, "--kernel", path)
    assert json.loads(told(capsys, *alone, "--json"))["snp"]["covers"] == "firmware"
    assert "kernel" in json.loads(told(capsys, *whole, "--json"))["snp"]["covers"]
    assert "kernel-hashes=on" in told(capsys, *alone)
    assert "kernel-hashes=on" not in told(capsys, *whole)


def test_without_the_package_or_the_firmware_it_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sevsnpmeasure", None)
    path = tmp_path / "OVMF.fd"
    path.write_bytes(firmware())
    assert "[measure]" in told(capsys, "--snp-firmware", str(path), code=2)
    assert "--snp-firmware" in told(capsys, "--kernel", str(path), code=2)
