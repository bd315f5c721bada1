"""Locking a worker's process down, after its imports and before its first secret.

None of this stops root on the host: it narrows what a compromised worker can reach and what other
users can read. Each step is reported, and one that this kernel lacks is named as missing. Under
Gramine the enclave is what holds the line and these calls don't exist, so they are skipped.
"""

from __future__ import annotations

import ctypes
import resource
import site
import sys
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from vaultline.core.control import HardeningStep

PlatformName = Literal["process", "gramine"]

_PR_GET_DUMPABLE, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS, _PR_GET_NO_NEW_PRIVS = 3, 4, 38, 39
_CLONE_THREAD = 0x00010000
_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_ENOSYS, _EPERM = 38, 1
_TIOCSTI = 0x5412

#: What no worker needs: programs, other processes' memory, the kernel's configuration, and
#: io_uring, whose operations seccomp does not see.
_DENIED = (
    "execve execveat fork vfork ptrace process_vm_readv process_vm_writev process_madvise "
    "pidfd_getfd kcmp bpf perf_event_open userfaultfd io_uring_setup io_uring_enter "
    "io_uring_register mount umount2 pivot_root move_mount open_tree fsopen fsconfig fsmount "
    "fspick mount_setattr chroot setns unshare keyctl add_key request_key init_module "
    "finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff acct quotactl "
    "open_by_handle_at personality iopl ioperm syslog settimeofday clock_settime adjtimex "
    "clock_adjtime mknod mknodat"
)

#: What the interpreter and the engine read: programs' libraries and facts about this machine.
_SYSTEM_READS = (
    "/lib /lib64 /usr/lib /usr/lib64 /usr/local/lib /etc/ld.so.cache /etc/localtime "
    "/usr/share/zoneinfo /proc/self /proc/cpuinfo /proc/meminfo /sys/devices/system "
    "/sys/fs/cgroup /dev/urandom"
)

#: Where the kernel of a confidential VM makes evidence; a request is a folder (`tsm_quotes`). Among
#: the paths to be read, it may be written as well: only by workers whose evidence comes from there.
TSM_REPORTS = Path("/sys/kernel/config/tsm/report")


def harden(
    *,
    read_paths: Sequence[Path],
    socket_dirs: Sequence[Path] = (),
    tcp: bool = False,
    platform: PlatformName = "process",
) -> list[HardeningStep]:
    """Give up what a worker does not need. Call it once, after all imports.

    Args:
        read_paths: files and folders to be read later, such as the vault; the interpreter's own
            are added.
        socket_dirs: folders in which Unix sockets may be made and removed.
        tcp: TCP sockets may listen and connect.
        platform: ``gramine`` skips every step, since the platform supplies its own.

    Returns:
        Every step with its outcome; the caller decides whether a missing one is acceptable.
    """
    steps: tuple[tuple[str, Callable[[], str]], ...] = (
        ("core-limit", _no_core_files),
        ("not-dumpable", _not_dumpable),
        ("no-new-privileges", _no_new_privileges),
        ("landlock", lambda: _landlock([*_interpreter_paths(), *read_paths], socket_dirs, tcp)),
        ("seccomp", _seccomp),
    )
    if platform == "gramine":
        reason = "Gramine isolates the enclave"
        return [HardeningStep(name=name, state="skipped", detail=reason) for name, _ in steps]
    with suppress(ImportError, OSError, RuntimeError):  # if it fails, its step will say so
        import pyseccomp  # noqa: F401 - loading it needs files that Landlock will close
    return [_attempt(name, step) for name, step in steps]


class _Missing(Exception):  # noqa: N818 - an outcome, caught below
    """This machine cannot do a step."""


def _attempt(name: str, step: Callable[[], str]) -> HardeningStep:
    try:
        return HardeningStep(name=name, state="done", detail=step())
    except (_Missing, OSError, ValueError, ImportError, RuntimeError) as error:
        return HardeningStep(name=name, state="missing", detail=str(error) or repr(error))


def _prctl(option: int, argument: int = 0) -> int:
    result = int(ctypes.CDLL(None, use_errno=True).prctl(option, argument, 0, 0, 0))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")
    return result


def _no_core_files() -> str:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return "RLIMIT_CORE 0"


def _not_dumpable() -> str:
    _prctl(_PR_SET_DUMPABLE, 0)
    if _prctl(_PR_GET_DUMPABLE) != 0:
        raise _Missing("the process is still dumpable")
    return "other processes of this user cannot read its memory"


def _no_new_privileges() -> str:
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if _prctl(_PR_GET_NO_NEW_PRIVS) != 1:
        raise _Missing("no_new_privs did not hold")
    return "set-user-id programs give no privileges"


def _interpreter_paths() -> list[Path]:
    """Where this interpreter, its libraries and this package are."""
    paths = [sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), *site.getsitepackages()]
    paths += [*_SYSTEM_READS.split(), str(Path(__file__).resolve().parents[2])]
    return [path for path in map(Path, dict.fromkeys(paths)) if path.exists()]


def _landlock(reads: Sequence[Path], socket_dirs: Iterable[Path], tcp: bool) -> str:
    from py_landlock import AccessFs, Landlock, LandlockError

    try:
        rules = Landlock(strict=False)
        abi = rules.abi_version
        for path in reads:
            access = AccessFs.READ_FILE | (AccessFs.READ_DIR if path.is_dir() else AccessFs(0))
            rules.add_path_rule(path, access=access)
        for path in socket_dirs:
            access = AccessFs.MAKE_SOCK | AccessFs.REMOVE_FILE | AccessFs.READ_DIR
            rules.add_path_rule(path, access=access)
        if TSM_REPORTS in reads:
            access = AccessFs.READ_FILE | AccessFs.WRITE_FILE | AccessFs.MAKE_DIR
            rules.add_path_rule(TSM_REPORTS, access=access | AccessFs.REMOVE_DIR)
        if tcp:
            rules.allow_all_network()
        rules.apply()
    except LandlockError as error:
        raise _Missing(str(error)) from error
    network = "TCP allowed" if tcp else "no TCP" if abi >= 4 else "TCP not restricted"
    others = len(list(Path("/proc/self/task").iterdir())) - 1
    if others:
        raise _Missing(
            f"ABI {abi}, {network}; {others} threads that were running already are not covered: "
            "start the worker with OPENBLAS_NUM_THREADS=1 ORT_DISABLE_TELEMETRY=1"
        )
    return f"ABI {abi}: reads only listed paths, writes no file, {network}"


def _seccomp() -> str:
    import pyseccomp as seccomp

    rules = seccomp.SyscallFilter(seccomp.ALLOW)
    rules.set_attr(seccomp.Attr.CTL_TSYNC, 1)
    denied = seccomp.ERRNO(_EPERM)
    for name in _DENIED.split():
        try:
            rules.add_rule(denied, name)
        except OSError:  # this architecture has no such call
            continue
    # Threads only. clone3 passes its flags in memory, which a filter cannot read; libc falls back.
    rules.add_rule(seccomp.ERRNO(_ENOSYS), "clone3")
    rules.add_rule(denied, "clone", seccomp.Arg(0, seccomp.MASKED_EQ, _CLONE_THREAD, 0))
    rules.add_rule(denied, "prctl", seccomp.Arg(0, seccomp.EQ, _PR_SET_DUMPABLE))
    rules.add_rule(denied, "ioctl", seccomp.Arg(1, seccomp.EQ, _TIOCSTI))
    for family in set(range(_AF_INET6)) - {_AF_UNIX, _AF_INET}:
        rules.add_rule(denied, "socket", seccomp.Arg(0, seccomp.EQ, family))
    rules.add_rule(denied, "socket", seccomp.Arg(0, seccomp.GT, _AF_INET6))
    rules.load()
    return "no programs, no processes, no ptrace; sockets: Unix, IPv4, IPv6"
