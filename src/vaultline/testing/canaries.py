"""Known bytes, and every place to look for them: memory, core files, files, bytes on a wire.

A search says nothing unless it is shown to find what there is: see ``tests/attack/test_canary.py``.
"""

from __future__ import annotations

import base64
import os
import re
import resource
import signal
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vaultline.testing.deployment import ProcessId, family, wait_until

WIDTH = 256
#: Long enough that chance finds none, short enough to survive any tiling of a row.
NEEDLE_BYTES = 32
_CHUNK_BYTES = 8 << 20
#: Mappings of the kernel's own that can't be read as memory.
_KERNEL_MAPPINGS = re.compile(r"\[v(var|syscall|var_vclock)\]")
#: Everything that a core can hold (core(5)), pages of files included.
_WHOLE_CORE = "0x7f"
_DUMPED_S = 30.0

Needles = dict[str, bytes]


# --- What to look for ----------------------------------------------------------------------------


def pattern(seed: int, *shape: int) -> NDArray[np.float32]:
    """Random numbers of a sane size; nearly every bit of theirs is random."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * 0.1


def windows(name: str, array: NDArray[np.float32]) -> Needles:
    """The beginnings of some rows of a matrix, and of some of its columns."""
    found = {}
    for turned, matrix in (("row", array), ("column", array.T)):
        for index in (0, len(matrix) // 2, len(matrix) - 1):
            row = np.ascontiguousarray(matrix[index]).tobytes()
            if len(row) >= NEEDLE_BYTES:
                found[f"{name} {turned} {index}"] = row[:NEEDLE_BYTES]
    return found


def texts(name: str, secret: bytes) -> Needles:
    """A key as it is, in hex and in both alphabets of base 64."""
    return {
        name: secret,
        f"{name} in hex": secret.hex().encode(),
        f"{name} in base64": base64.b64encode(secret).rstrip(b"="),
        f"{name} in base64url": base64.urlsafe_b64encode(secret).rstrip(b"="),
    }


# --- Where to look -------------------------------------------------------------------------------


def found_in(pieces: Iterable[bytes], needles: Needles) -> set[str]:
    """Names of the needles in a stream of bytes that comes in pieces.

    Two tables of the needles' first and second 16-bit words sort out nearly all places, so that
    the time hardly depends on how many needles there are.
    """
    starting: dict[bytes, list[str]] = defaultdict(list)
    tables = np.zeros((2, 1 << 16), dtype=bool)
    for name, needle in needles.items():
        starting[needle[:4]].append(name)
        tables[[0, 1], np.frombuffer(needle[:4], "<u2")] = True
    found: set[str] = set()
    overlap = max(map(len, needles.values())) - 1
    tail = b""
    for piece in pieces:
        data = tail + piece
        for odd in range(2 if len(data) >= NEEDLE_BYTES else 0):
            words = np.frombuffer(data, "<u2", (len(data) - odd) // 2, odd)
            at = np.flatnonzero(tables[0][words[:-1]])
            at = at[tables[1][words[at + 1]]]
            for place in (at * 2 + odd).tolist():
                names = starting.get(data[place : place + 4], ())
                found |= {name for name in names if data.startswith(needles[name], place)}
        tail = data[-overlap:]
    return found


def memory(pid: int) -> Iterator[bytes]:
    """All mappings of a process; between two of them comes a gap that matches nothing."""
    unread = []
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as mem:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights = line.split(maxsplit=2)[:2]
            start, end = (int(text, 16) for text in span.split("-"))
            try:
                for at in range(start, end, _CHUNK_BYTES):
                    yield os.pread(mem.fileno(), min(_CHUNK_BYTES, end - at), at)
            except (OSError, OverflowError):
                if not (_KERNEL_MAPPINGS.search(line) or rights.startswith("---")):
                    unread.append(line)
            yield b"\0" * 64
    now = Path(f"/proc/{pid}/maps").read_text().splitlines()
    left = [line for line in unread if line in now]  # a thread that ends takes its stack away
    assert not left, f"not all of the memory could be read: {left}"


def open_files(pid: int) -> set[Path]:
    """Regular files that a process holds open."""
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        if stat.S_ISREG(link.stat().st_mode):
            found.add(link)
    return found


def files_under(*folders: Path) -> set[Path]:
    """All files in these folders, at any depth."""
    return {path for folder in folders for path in folder.rglob("*") if path.is_file()}


def shared_memory() -> set[Path]:
    """Named pieces of shared memory of this machine."""
    return set(Path("/dev/shm").iterdir()) if Path("/dev/shm").is_dir() else set()


def hidden_in(paths: Iterable[Path], needles: Needles) -> set[str]:
    """Which needles are in which files."""
    return {
        f"{name} in {path}"
        for path in paths
        if path.is_file()
        for name in found_in([path.read_bytes()], needles)
    }


# --- Core files ----------------------------------------------------------------------------------


def why_no_cores() -> str | None:
    """Why the kernel writes no core into a process's own folder here, or None."""
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern.startswith("|") or "/" in pattern or not pattern.startswith("core"):
        return f"cores go elsewhere: {pattern}"
    return None


def abort(pid: int, folder: Path) -> list[Path]:
    """End a process as a crash would, with a core if the kernel makes one of it at all.

    Its limit is lifted before, where this user may: a process that only limits itself does not hide
    from who runs the machine. A process that was stopped goes on only to die.

    Args:
        folder: that the process runs in.

    Returns:
        The core files that were not there before.
    """
    before = set(folder.glob("core*"))
    try:
        resource.prlimit(pid, resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2)
        Path(f"/proc/{pid}/coredump_filter").write_text(_WHOLE_CORE)
    except PermissionError:  # neither root nor dumpable: that is the protection
        pass
    (process, *_) = family(pid)
    os.kill(pid, signal.SIGABRT)
    os.kill(pid, signal.SIGCONT)
    wait_until(lambda: not process.alive, timeout_s=_DUMPED_S, what="the end of a process")
    return sorted(set(folder.glob("core*")) - before)


def freeze(pid: int) -> ProcessId:
    """Stop a process where it is, so that nothing it holds goes away."""
    (process, *_) = family(pid)
    os.kill(pid, signal.SIGSTOP)
    stat_file = Path(f"/proc/{pid}/stat")
    wait_until(
        lambda: stat_file.read_text().rpartition(")")[2].split()[0] == "T",
        timeout_s=_DUMPED_S,
        what="a stopped process",
    )
    return process
