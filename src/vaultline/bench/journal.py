"""The parts of a profile that are measured so far, in a file beside it.

One line says what is measured, and where; then one line a part, each written at once, so that a
process that is killed loses the part at hand and no other.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from vaultline.bench.measuring import Part, Parts
from vaultline.core.errors import InputError, MachineError, RemoteProtocolError
from vaultline.core.serde import Struct, canonical_json, from_json

SUFFIX = ".partial"
#: A thousand rounds of a model with a thousand blocks are 20 MB.
JOURNAL_BYTES_MAX = 256 << 20


class JournalKey(Struct, frozen=True):
    """What parts must have in common to make one profile."""

    vaultline_version: str
    model_digest: str
    positions: tuple[int, ...]
    engine_version: str
    isa: str
    host: str
    cpu: str
    core: int
    neighbours: int
    device_class: str
    settings: str


class Journal:
    """The journal of one profile, this process's alone while it is open. A context manager.

    Attributes:
        path: the file; None where nothing can be kept beside the profile.
        parts: what an interrupted run has left, and what has come since.
        note: what a person should know of it; empty if there is nothing.
    """

    def __init__(self, target: Path, key: JournalKey) -> None:
        """Open or begin the journal of a profile that will be written to ``target``.

        Raises:
            InputError: another process is at it.
            MachineError: the file can't be read or written.
        """
        self.path: Path | None = target.with_name(target.name + SUFFIX)
        self.parts = Parts(len(key.positions) - 1)
        self.note = ""
        self._fd = -1
        if (target.exists() and not target.is_file()) or not os.access(target.parent, os.W_OK):
            self.path = None
            self.note = f"nothing can be kept beside {target}: do not interrupt this"
            return
        try:
            self._open(self.path)
            self._lock()
            self._take_up(key)
        except OSError as error:
            self.close()
            raise self._failed(error) from error
        except InputError:
            self._let_go()
            raise

    def _open(self, path: Path) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(path, flags, 0o644)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"another process is measuring for {self.path}",
                remedy="wait for it, or name another output",
            ) from error

    def _take_up(self, key: JournalKey) -> None:
        """Read what is there and fits; cut off the rest."""
        size = os.fstat(self._fd).st_size
        data = os.pread(self._fd, size, 0) if size <= JOURNAL_BYTES_MAX else b""
        kept = self._read(data, key)
        if size and not kept:
            self.note = f"{self.path} is of another model, machine or version: not used"
        os.ftruncate(self._fd, kept)
        if not kept:
            self._write(canonical_json(key))

    def _read(self, data: bytes, key: JournalKey) -> int:
        """Take the parts up to the first that is torn or doesn't fit; how many bytes those are."""
        lines = data.split(b"\n")[:-1]  # what follows the last end of a line is torn
        if not lines or lines[0] != canonical_json(key):
            return 0
        kept = len(lines[0]) + 1
        for line in lines[1:]:
            try:
                part: Part = from_json(line, Part, what="a part")  # type: ignore[arg-type]
                self.parts.add(part)
            except (InputError, RemoteProtocolError):
                break
            kept += len(line) + 1
        return kept

    def add(self, part: Part) -> None:
        """Take a part and keep it.

        Raises:
            RemoteProtocolError: it doesn't fit.
            MachineError: the disk is full or gone.
        """
        self.parts.add(part)
        try:
            self._write(canonical_json(part))
        except OSError as error:
            raise self._failed(error) from error

    def _write(self, line: bytes) -> None:
        data = line + b"\n"
        if self._fd >= 0 and os.write(self._fd, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def remove(self) -> None:
        """Once the profile itself is written."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let others have it; a journal of nothing is removed."""
        if self._fd >= 0 and not self.parts.anything:
            self.remove()
        self._let_go()

    def _let_go(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _failed(self, error: OSError) -> MachineError:
        return MachineError(f"cannot keep {self.path}", got=error.strerror or str(error))
