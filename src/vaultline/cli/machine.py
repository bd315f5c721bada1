"""What a machine offers, read from its files: enclave kinds, hardening, processor, memory.

Every function takes the root of a file system, so that a test can describe another machine.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import resource
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Literal

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vaultline.core.limits import MIB, VAULT_CHUNK_BYTES_MAX
from vaultline.core.units import format_bytes

#: Sizes at which AES-256-GCM is measured: a page of protected memory, a chunk of a vault.
CRYPTO_SIZES_BYTES = (4096, VAULT_CHUNK_BYTES_MAX)
CRYPTO_MEASURE_S = 0.05
#: A cgroup limit at or above this is the kernel's way of saying "none".
CGROUP_NO_LIMIT_BYTES = 1 << 60
_SYS_LANDLOCK_CREATE_RULESET = 444
_LANDLOCK_CREATE_RULESET_VERSION = 1
_SYS_MEMFD_SECRET = 447


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that this machine has or lacks, and what to do where it lacks it."""

    group: str
    name: str
    status: Literal["yes", "no", "limited"]
    detail: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CipherSpeed:
    """Measured single-core speed of AES-256-GCM encryption in pieces of one size."""

    piece_bytes: int
    bytes_per_s: float


def survey(root: Path = Path("/")) -> tuple[Finding, ...]:
    """Everything below, in the order in which it is shown."""
    return (
        *processor(root),
        *engine(),
        *enclave_kinds(root),
        *hardening(root),
    )


def cpu_flags(root: Path = Path("/")) -> frozenset[str]:
    """The feature flags of the first processor (``flags`` on x86, ``Features`` on ARM)."""
    for line in _read(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"flags", "Features"}:
            return frozenset(value.split())
    return frozenset()


def instruction_set(flags: frozenset[str], machine: str) -> str:
    """The widest kind of stage program this processor runs, as ``core.program`` names them."""
    if machine in {"x86_64", "AMD64"}:
        # avx512f stands for its family: nothing runs on the other parts without it.
        if "avx512f" in flags:
            return "x86-64-avx512"
        return "x86-64-avx2" if "avx2" in flags else "portable"
    return "aarch64" if machine in {"aarch64", "arm64"} else "portable"


def processor(root: Path) -> tuple[Finding, ...]:
    """Cores, memory, instruction set."""
    flags = cpu_flags(root)
    isa = instruction_set(flags, platform.machine())
    aes = "vaes" if "vaes" in flags else "aes" if "aes" in flags else ""
    total, available = memory_bytes(root)
    return (
        Finding(
            group="machine", name="cores", status="yes", detail=f"{len(os.sched_getaffinity(0))}"
        ),
        Finding(
            group="machine",
            name="memory",
            status="yes",
            detail=f"{format_bytes(total)}, {format_bytes(available)} available",
        ),
        Finding(
            group="machine",
            name="instruction set",
            status="limited" if isa == "portable" else "yes",
            detail=isa,
            remedy="stages run as portable programs, up to 1.4x slower"
            if isa == "portable"
            else "",
        ),
        Finding(
            group="machine",
            name="AES instructions",
            status="yes" if aes else "no",
            detail=aes or "none",
            remedy="" if aes else "records and weights decrypt slowly; use another processor",
        ),
    )


def memory_bytes(root: Path) -> tuple[int, int]:
    """Total and available memory, within the control group's limit where there is one."""
    fields = {}
    for line in _read(root / "proc/meminfo").splitlines():
        key, _, value = line.partition(":")
        number = value.split()[:1]
        if number and number[0].isdigit():
            fields[key] = int(number[0]) * 1024
    total, available = fields.get("MemTotal", 0), fields.get("MemAvailable", 0)
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        text = _read(root / "sys/fs/cgroup" / name).strip()
        if text.isdigit() and int(text) < CGROUP_NO_LIMIT_BYTES:
            total, available = min(total, int(text)), min(available, int(text))
    return total, available


def engine() -> tuple[Finding, ...]:
    """The installed inference engine: stage programs are bound to its version."""
    try:
        version = metadata.version("onnxruntime")
    except metadata.PackageNotFoundError:
        return (
            Finding(
                group="machine",
                name="onnxruntime",
                status="no",
                detail="not installed",
                remedy="make env",
            ),
        )
    return (Finding(group="machine", name="onnxruntime", status="yes", detail=version),)


def enclave_kinds(root: Path) -> tuple[Finding, ...]:
    """Which kinds of enclave can be started or are running here."""
    flags = cpu_flags(root)
    tsm = (root / "sys/kernel/config/tsm/report").is_dir()
    return (
        Finding(
            group="enclaves",
            name="simulated",
            status="yes",
            detail="a hardened process; protects nothing from this machine's administrator",
        ),
        _sgx(root, flags),
        _gramine(root),
        _confidential_vm(
            "tdx", flags_seen="tdx_guest" in flags, device=root / "dev/tdx_guest", tsm=tsm
        ),
        _confidential_vm(
            "snp", flags_seen="sev_snp" in flags, device=root / "dev/sev-guest", tsm=tsm
        ),
    )


def _sgx(root: Path, flags: frozenset[str]) -> Finding:
    if (root / "dev/sgx_enclave").exists():
        pages = [
            int(text)
            for path in sorted((root / "sys/devices/system/node").glob("node*/x86/sgx_total_bytes"))
            if (text := _read(path).strip()).isdigit()
        ]
        detail = f"{format_bytes(sum(pages))} of protected memory" if pages else "/dev/sgx_enclave"
        return Finding(group="enclaves", name="sgx", status="yes", detail=detail)
    if "sgx" in flags:
        remedy = "kernel 5.11 or newer with CONFIG_X86_SGX; in a container pass /dev/sgx_enclave in"
        return Finding(
            group="enclaves",
            name="sgx",
            status="limited",
            detail="the processor has SGX, but there is no /dev/sgx_enclave",
            remedy=remedy,
        )
    return Finding(
        group="enclaves",
        name="sgx",
        status="no",
        detail="the processor has no SGX, or its firmware hides it",
        remedy="enable SGX in the firmware, or use a machine that has it",
    )


def _gramine(root: Path) -> Finding:
    kind = _read(root / "dev/attestation/attestation_type").strip()
    if not (root / "dev/attestation").is_dir():
        return Finding(
            group="enclaves",
            name="gramine",
            status="no",
            detail="this process does not run under Gramine",
            remedy="only the worker has to; its host starts it with gramine-sgx",
        )
    if kind == "dcap":
        return Finding(group="enclaves", name="gramine", status="yes", detail="DCAP attestation")
    return Finding(
        group="enclaves",
        name="gramine",
        status="limited",
        detail=f"attestation type {kind or 'none'}: no quotes",
        remedy='set sgx.remote_attestation = "dcap" in the manifest and run gramine-sgx',
    )


def _confidential_vm(name: str, *, flags_seen: bool, device: Path, tsm: bool) -> Finding:
    inside = flags_seen or device.exists()
    if inside and tsm:
        detail = "a confidential VM with configfs-tsm"
        return Finding(group="enclaves", name=name, status="yes", detail=detail)
    if inside:
        return Finding(
            group="enclaves",
            name=name,
            status="limited",
            detail="a confidential VM without /sys/kernel/config/tsm/report",
            remedy="kernel 6.7 or newer; mount configfs and load the guest's tsm module",
        )
    return Finding(
        group="enclaves",
        name=name,
        status="no",
        detail="not a confidential VM of this kind",
        remedy=f"run the worker in a confidential VM with {name.upper()}",
    )


def hardening(root: Path) -> tuple[Finding, ...]:
    """What the kernel offers a worker process that wants to lock itself in."""
    swaps = len(_read(root / "proc/swaps").splitlines()) > 1
    return (
        _landlock(),
        _seccomp(root),
        _memfd_secret(),
        _yama(root),
        Finding(
            group="hardening",
            name="swap",
            status="limited" if swaps else "yes",
            detail="on: pages of a simulated enclave may reach the disk" if swaps else "off",
            remedy="swapoff -a, or encrypt the swap" if swaps else "",
        ),
    )


def _yama(root: Path) -> Finding:
    scope = _read(root / "proc/sys/kernel/yama/ptrace_scope").strip()
    if scope in {"1", "2", "3"}:
        return Finding(group="hardening", name="yama", status="yes", detail=f"ptrace_scope {scope}")
    return Finding(
        group="hardening",
        name="yama",
        status="limited",
        detail="ptrace_scope 0" if scope else "not in this kernel",
        remedy="sysctl kernel.yama.ptrace_scope=1" if scope else "CONFIG_SECURITY_YAMA",
    )


def _landlock() -> Finding:
    abi = _syscall(_SYS_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_CREATE_RULESET_VERSION)
    if abi > 0:
        return Finding(group="hardening", name="landlock", status="yes", detail=f"ABI {abi}")
    return Finding(
        group="hardening",
        name="landlock",
        status="no",
        detail="not in this kernel, or not enabled",
        remedy="kernel 5.13 or newer, booted with lsm=landlock,...",
    )


def _seccomp(root: Path) -> Finding:
    if not (root / "proc/sys/kernel/seccomp/actions_avail").exists():
        remedy = "a kernel with CONFIG_SECCOMP_FILTER"
        detail = "not in this kernel"
    else:
        try:
            ctypes.CDLL("libseccomp.so.2")
        except OSError:
            detail, remedy = "libseccomp.so.2 is missing", "apt-get install libseccomp2"
        else:
            return Finding(group="hardening", name="seccomp", status="yes", detail="filters")
    return Finding(group="hardening", name="seccomp", status="no", detail=detail, remedy=remedy)


def _memfd_secret() -> Finding:
    """Keys may live in memory that even the kernel has unmapped, as far as the lock limit goes."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    room = "unlimited" if limit == resource.RLIM_INFINITY else format_bytes(limit)
    descriptor = _syscall(_SYS_MEMFD_SECRET, 0)
    if descriptor < 0:
        return Finding(
            group="hardening",
            name="memfd_secret",
            status="no",
            detail="not in this kernel, or not enabled",
            remedy="kernel 5.14 or newer, before 6.5 booted with secretmem.enable=1",
        )
    os.close(descriptor)
    enough = limit == resource.RLIM_INFINITY or limit >= mmap.PAGESIZE * 16
    return Finding(
        group="hardening",
        name="memfd_secret",
        status="yes" if enough else "limited",
        detail=f"lockable memory: {room}",
        remedy="" if enough else "raise the limit: ulimit -l 64",
    )


def _syscall(number: int, *arguments: int | None) -> int:
    """A Linux system call by its number (the same on all architectures since 5.0), or -1."""
    if platform.system() != "Linux":
        return -1
    call: Callable[..., int] = ctypes.CDLL(None, use_errno=True).syscall
    return call(ctypes.c_long(number), *(ctypes.c_void_p(value) for value in arguments))


def cipher_speeds() -> tuple[CipherSpeed, ...]:
    """Measure AES-256-GCM encryption into a reused buffer, for a fraction of a second."""
    return tuple(
        CipherSpeed(piece_bytes=size, bytes_per_s=_cipher_speed(size))
        for size in CRYPTO_SIZES_BYTES
    )


def _cipher_speed(size: int) -> float:
    cipher, plain, sealed = AESGCM(bytes(32)), bytes(size), bytearray(size + 16)
    batch = max(1, MIB // size)
    best, started = 0.0, perf_counter()
    sequence = 0
    while (before := perf_counter()) - started < CRYPTO_MEASURE_S:
        for _ in range(batch):
            cipher.encrypt_into(sequence.to_bytes(12, "big"), plain, None, sealed)
            sequence += 1
        best = max(best, batch * size / (perf_counter() - before))
    return best


def _read(path: Path) -> str:
    """A small file's text, empty when it cannot be read: absence is an answer here."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
