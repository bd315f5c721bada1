"""A kernel's configfs-tsm for tests: the calls of ``os`` on a folder of report requests.

Behaves as Documentation/ABI/testing/configfs-tsm-report describes and as Linux's code does
(drivers/virt/coco/guest/report.c, fs/configfs/file.c): folders fill themselves when made and are
removed whole; ``inblob`` is taken when its file is closed, and what goes wrong then is not said;
one descriptor reads one state of a binary file; numbers count writes and not requests.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from vaultline.enclave.tsm_quotes import TSM_REPORTS

INBLOB_BYTES_MAX = 64
_MODES = {"inblob": 0o200, "generation": 0o400, "provider": 0o400, "outblob": 0o400}


def sign(inblob: bytes) -> bytes:
    """What stands for the processor: recognisable, and of no format."""
    return b"report over " + inblob


@dataclass(slots=True)
class _Request:
    inblob: bytes = b""
    written: int = 0
    read: int = 0
    report: bytes | None = None


@dataclass(slots=True)
class _File:
    request: _Request
    name: str
    flags: int
    place: int = 0
    data: bytes | None = None
    taken: bytearray = field(default_factory=bytearray)


def _fail(code: int, path: str = "") -> OSError:
    return OSError(code, os.strerror(code), path)


@dataclass(slots=True, kw_only=True)
class FakeTsm:
    """Pass it as ``system``.

    Attributes:
        provider: what vouches; None where no guest driver is loaded.
        report: the processor; may raise OSError, as a driver returns it.
        certificates: ``auxblob``; None where it is not visible.
        on_close: runs after ``inblob`` was taken: another process's turn.
        advance: false where the kernel refuses what is written, which close() does not say.
        calls: names of what was called and on which file.
    """

    provider: str | None = "tdx_guest"
    report: Callable[[bytes], bytes] = sign
    certificates: bytes | None = None
    on_close: Callable[[FakeTsm], None] | None = None
    advance: bool = True
    reports: str = TSM_REPORTS
    requests: dict[str, _Request] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    _files: dict[int, _File] = field(default_factory=dict)

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        """A request of its own."""
        parent, _, name = path.rpartition("/")
        if parent != self.reports or self.provider is None:
            raise _fail(errno.ENOENT if parent != self.reports else errno.ENXIO, path)
        if name in self.requests:
            raise _fail(errno.EEXIST, path)
        self.requests[name] = _Request()

    def rmdir(self, path: str) -> None:
        """Remove a request with its files."""
        name = path.rpartition("/")[2]
        if self.requests.pop(name, None) is None:
            raise _fail(errno.ENOENT, path)

    def open(self, path: str, flags: int) -> int:
        """One file of a request."""
        folder, _, name = path.rpartition("/")
        request = self.requests.get(folder.rpartition("/")[2])
        modes = _MODES | ({} if self.certificates is None else {"auxblob": 0o400})
        self.calls.append(f"open {name}")
        if request is None or name not in modes:
            raise _fail(errno.ENOENT, path)
        writing = bool(flags & os.O_ACCMODE)
        if writing != (modes[name] == 0o200):
            raise _fail(errno.EACCES, path)
        descriptor = 100 + len(self.calls)
        self._files[descriptor] = _File(request, name, flags)
        return descriptor

    def write(self, descriptor: int, data: bytes) -> int:
        """Gather what close() hands over; more than ``inblob`` takes is refused at once."""
        file = self._file(descriptor)
        if len(file.taken) + len(data) > INBLOB_BYTES_MAX:
            raise _fail(errno.EFBIG)
        file.taken += data
        return len(data)

    def read(self, descriptor: int, count: int) -> bytes:
        """The state at the first read of this descriptor, on and on."""
        file = self._file(descriptor)
        if file.data is None:
            file.data = self._fill(file)
        part = file.data[file.place : file.place + count]
        file.place += len(part)
        return part

    def close(self, descriptor: int) -> None:
        """Take what was written; the kernel drops errors of this."""
        file = self._files.pop(descriptor)
        if file.name == "inblob" and file.taken and self.advance:
            self.put(file.request, bytes(file.taken))
            if self.on_close is not None:
                self.on_close(self)

    def put(self, request: _Request, inblob: bytes) -> None:
        """A write to ``inblob`` by whomever."""
        request.inblob, request.written = inblob, request.written + 1

    @property
    def open_files(self) -> int:
        """Descriptors that nobody has closed."""
        return len(self._files)

    def _file(self, descriptor: int) -> _File:
        if descriptor not in self._files:
            raise _fail(errno.EBADF)
        return self._files[descriptor]

    def _fill(self, file: _File) -> bytes:
        if self.provider is None:
            raise _fail(errno.ENXIO)
        if file.name == "provider":
            return f"{self.provider}\n".encode()
        request = file.request
        if file.name == "generation":
            return f"{request.written}\n".encode()
        if not request.inblob:
            raise _fail(errno.EINVAL)
        if request.report is None or request.read != request.written:
            if len(request.inblob) != INBLOB_BYTES_MAX:  # both drivers' rule
                raise _fail(errno.EINVAL)
            request.report = self.report(request.inblob)
            request.read = request.written
        return request.report if file.name == "outblob" else self.certificates or b""
