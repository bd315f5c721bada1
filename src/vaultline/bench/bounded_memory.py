"""What a process takes of memory, as the kernel counts it, and what the kernel caches of a file."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Collection
from pathlib import Path

from vaultline.core.errors import MachineError
from vaultline.core.serde import Struct

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_KIB = 1024


class ProcessMemory(Struct, frozen=True):
    """Bytes of a process that are in memory (proc_pid_status(5)).

    Attributes:
        peak_bytes: the most that was resident since the peak was last reset.
        resident_bytes: what is resident now: the sum of the other three.
        anonymous_bytes, shared_bytes: the process's own; the latter may be other processes' too.
        file_bytes: code of the interpreter and its libraries, and files that are mapped.
    """

    peak_bytes: int
    resident_bytes: int
    anonymous_bytes: int
    shared_bytes: int
    file_bytes: int


class PeakMeter:
    """Reads this process's memory. It is opened before the process is locked down."""

    def __init__(self) -> None:
        """Raises:
        MachineError: the kernel doesn't let a process reset its own peak.
        """
        try:
            self._reset = _CLEAR_REFS.open("wb", buffering=0)
        except OSError as error:
            raise MachineError(
                "the peak of memory can't be measured here",
                got=f"{_CLEAR_REFS}: {error.strerror}",
                expected="a Linux kernel with CONFIG_PROC_PAGE_MONITOR",
            ) from error

    def reset(self) -> ProcessMemory:
        """Begin a new peak; returns what is resident at this moment."""
        self._reset.write(b"5")
        return self.now()

    def now(self) -> ProcessMemory:
        """Memory now, and its peak since the last reset."""
        return parse_status(_STATUS.read_text())


def parse_status(text: str) -> ProcessMemory:
    """Memory from the text of ``/proc/PID/status``.

    Raises:
        MachineError: a line that is needed is not there.
    """
    lines = (line.partition(":") for line in text.splitlines())
    values = {name: rest.split() for name, _, rest in lines}
    try:
        peak, resident, anonymous, shared, file = (
            int(values[name][0]) * _KIB
            for name in ("VmHWM", "VmRSS", "RssAnon", "RssShmem", "RssFile")
        )
    except (KeyError, IndexError, ValueError) as error:
        raise MachineError("the kernel doesn't say what memory a process takes") from error
    return ProcessMemory(
        peak_bytes=peak,
        resident_bytes=resident,
        anonymous_bytes=anonymous,
        shared_bytes=shared,
        file_bytes=file,
    )


def mapped_bytes(smaps: str, paths: Collection[str]) -> int:
    """How much of some files is resident in a process, from the text of ``/proc/PID/smaps``."""
    total, counted = 0, False
    for line in smaps.splitlines():
        fields = line.split(maxsplit=5)
        if fields and not fields[0].endswith(":"):
            counted = len(fields) == 6 and fields[5].removesuffix(" (deleted)") in paths
        elif counted and fields[0] == "Rss:":
            total += int(fields[1]) * _KIB
    return total


def page_cache_bytes(path: Path) -> int:
    """How much of a file the kernel holds in its page cache: nobody's protected memory."""
    size = path.stat().st_size
    if size == 0:
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE) as mapped:
        pages = -(-size // mmap.PAGESIZE)
        found = (ctypes.c_ubyte * pages)()
        first = ctypes.c_char.from_buffer(mapped)
        result = libc.mincore(
            ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size), found
        )
        del first  # or the map could not be closed
        if result:
            raise MachineError("the kernel doesn't say what it caches of a file")
        return sum(flag & 1 for flag in found) * mmap.PAGESIZE
