"""Evidence of confidential VMs (TDX, SEV-SNP) through Linux's configfs-tsm; 6.7 or later.

The interface is Documentation/ABI/testing/configfs-tsm-report: a folder made under ``report`` is a
request of its own, 64 bytes written to its ``inblob`` are signed into its ``outblob``. The kernel
takes what was written when the file is closed, and drops errors of that moment: that it was taken,
once and by nobody else, shows in ``generation``, which counts what was written.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal

from vaultline.core.errors import MachineError

TSM_REPORTS = "/sys/kernel/config/tsm/report"
#: How the kernel names the format of ``outblob``.
_FORMATS = {"tdx": "tdx_guest", "snp": "sev_guest"}
_REMEDY = "busy: ask again later; else be root, with the guest's driver loaded and configfs mounted"
_ALONE = "ask again; keep other processes out of this VM"


class TsmProvider:
    """Reports of the processor about this VM: firmware and what it started, not this process.

    Args:
        kind: what this VM must be; the kernel's word for another kind is refused.
        reports: the folder; ``system``: the calls of ``os`` on it. Others only in tests.
    """

    measurement = b""  # the processor measures

    def __init__(
        self, kind: Literal["tdx", "snp"], reports: str = TSM_REPORTS, system: Any = os
    ) -> None:
        self.kind, self._reports, self._system = kind, reports, system

    def quote(self, data: bytes) -> bytes:
        """A TDX quote; or an SNP report (1,184 bytes), then certificates if the host gave any.

        The certificates are ``auxblob``: the GHCB's certificate table, which nobody vouches for.

        Raises:
            MachineError: no such interface, of another kind, busy, or disturbed by others.
        """
        request = f"{self._reports}/vaultline-{os.urandom(8).hex()}"
        try:
            self._system.mkdir(request, 0o700)
            try:
                return self._report(request, data)
            finally:
                self._system.rmdir(request)
        except (OSError, ValueError) as error:
            raise MachineError(f"no report of this VM: {error}", remedy=_REMEDY) from error

    def _report(self, request: str, data: bytes) -> bytes:
        found = self._read(f"{request}/provider").decode().strip()
        if found != _FORMATS[self.kind]:
            message = "this VM's reports are of another kind than the worker's; no other is tried"
            raise MachineError(message, got=found, expected=_FORMATS[self.kind])
        before = int(self._read(f"{request}/generation"))
        self._file(f"{request}/inblob", os.O_WRONLY, lambda file: self._system.write(file, data))
        report = self._read(f"{request}/outblob")
        report = report + self._read(f"{request}/auxblob") if self.kind == "snp" else _cut(report)
        after = int(self._read(f"{request}/generation"))
        if after != before + 1:
            message = "the kernel did not take the report data, or others wrote to this request"
            raise MachineError(message, got=f"{after - before} writes", remedy=_ALONE)
        return report

    def _read(self, path: str) -> bytes:
        """All of it, in one call: too long a report is refused later."""
        return bytes(self._file(path, os.O_RDONLY, lambda file: self._system.read(file, 1 << 16)))

    def _file(self, path: str, flags: int, use: Callable[[int], Any]) -> Any:
        descriptor = self._system.open(path, flags)
        try:
            return use(descriptor)
        finally:
            self._system.close(descriptor)


def _cut(quote: bytes) -> bytes:
    """Without the zeros with which hosts fill the buffer: whoever verifies refuses them."""
    ends = {b"\4": 632, b"\5": 54 + int.from_bytes(quote[50:54], "little")}  # of what is signed
    at = ends.get(quote[:1], len(quote))
    end = at + 4 + int.from_bytes(quote[at : at + 4], "little")
    return quote if any(quote[end:]) else quote[:end]
