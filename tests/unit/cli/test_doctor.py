"""``vaultline doctor`` on made-up machines, and on this one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vaultline.cli import main as cli
from vaultline.cli.machine import (
    enclave_kinds,
    hardening,
    instruction_set,
    memory_bytes,
    processor,
    survey,
)
from vaultline.core.limits import GIB, MIB, VAULT_CHUNK_BYTES_MAX

MACHINES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "nothing special": ({}, {"sgx": "no", "gramine": "no", "tdx": "no", "snp": "no"}),
    "SGX with its driver": (
        {"proc/cpuinfo": "flags\t\t: sgx aes\n", "dev/sgx_enclave": ""},
        {"sgx": "yes"},
    ),
    "SGX without its driver": ({"proc/cpuinfo": "flags\t\t: sgx aes\n"}, {"sgx": "limited"}),
    "under Gramine with quotes": (
        {"dev/attestation/attestation_type": "dcap"},
        {"gramine": "yes"},
    ),
    "under Gramine without quotes": (
        {"dev/attestation/attestation_type": "none"},
        {"gramine": "limited"},
    ),
    "a TDX guest": (
        {"dev/tdx_guest": "", "sys/kernel/config/tsm/report/x": ""},
        {"tdx": "yes", "snp": "no"},
    ),
    "an SNP guest with an old kernel": ({"dev/sev-guest": ""}, {"snp": "limited", "tdx": "no"}),
}


def make_root(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize("case", MACHINES)
def test_enclave_kinds(case: str, tmp_path: Path) -> None:
    files, expected = MACHINES[case]
    found = {finding.name: finding for finding in enclave_kinds(make_root(tmp_path, files))}
    assert {name: found[name].status for name in expected} == expected
    assert all(finding.remedy for finding in found.values() if finding.status != "yes")


def test_memory_is_what_the_control_group_allows(tmp_path: Path) -> None:
    meminfo = "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n"
    root = make_root(tmp_path, {"proc/meminfo": meminfo})
    assert memory_bytes(root) == (8 * GIB, 4 * GIB)
    make_root(tmp_path, {"sys/fs/cgroup/memory.max": f"{512 * MIB}\n"})
    assert memory_bytes(root) == (512 * MIB, 512 * MIB)
    make_root(tmp_path, {"sys/fs/cgroup/memory.max": "max\n"})
    assert memory_bytes(root) == (8 * GIB, 4 * GIB)


@pytest.mark.parametrize(
    ("flags", "machine", "expected"),
    [
        ({"avx2", "avx512f"}, "x86_64", "x86-64-avx512"),
        ({"avx2"}, "x86_64", "x86-64-avx2"),
        ({"sse2"}, "x86_64", "portable"),
        ({"asimd"}, "aarch64", "aarch64"),
        (set(), "riscv64", "portable"),
    ],
)
def test_instruction_set(flags: set[str], machine: str, expected: str) -> None:
    assert instruction_set(frozenset(flags), machine) == expected


def test_an_unreadable_machine_is_reported_and_not_an_error(tmp_path: Path) -> None:
    found = {finding.name: finding for finding in (*processor(tmp_path), *hardening(tmp_path))}
    assert found["AES instructions"].status == "no"
    assert found["seccomp"].status == "no"
    assert found["yama"].remedy


def test_swap_is_noticed(tmp_path: Path) -> None:
    root = make_root(tmp_path, {"proc/swaps": "Filename Type\n/dev/sda2 partition\n"})
    assert {f.name: f.status for f in hardening(root)}["swap"] == "limited"


def test_doctor_reports_this_machine_as_json(capsys) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [finding["name"] for finding in report["findings"]] == [f.name for f in survey()]
    assert [speed["piece_bytes"] for speed in report["aes_256_gcm"]] == [
        4096,
        VAULT_CHUNK_BYTES_MAX,
    ]
    assert all(speed["bytes_per_s"] > 1e6 for speed in report["aes_256_gcm"])


def test_doctor_shows_a_person_the_same(capsys) -> None:
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert all(finding.name in out for finding in survey())
