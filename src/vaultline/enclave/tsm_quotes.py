"""Evidence of confidential VMs (TDX, SEV-SNP) through Linux's configfs-tsm; 6.7 or later.

The interface is Documentation/ABI/testing/configfs-tsm-report: a folder made under ``report`` is a
request of its own, 64 bytes written to its ``inblob`` are signed into its ``outblob``. The kernel
takes what was written when the file is closed, and drops errors of that moment: that it was taken,
once and by nobody else, shows in ``generation``, which counts what was written.
"""

from __future__ import annotations

import errno
import os
from typing import Any, Literal

from vaultline.attest.evidence import QUOTE_BYTES_MAX
from vaultline.core.errors import MachineError

TSM_REPORTS = "/sys/kernel/config/tsm/report"
#: How the kernel names the format of ``outblob``.
_FORMATS = {"tdx": "tdx_guest", "snp": "sev_guest"}
_REMEDIES = {
    errno.EBUSY: "an earlier request is still with the machine's quoting service; ask again later",
    errno.EINVAL: "the report takes exactly 64 bytes of report data",
    errno.EACCES: "run the worker as root, whose the folder is; it needs no capability",
}
_REMEDY = "load the guest's driver (tdx_guest or sev-guest), mount configfs, start its host's QGS"


class TsmProvider:
    """Reports of the processor about this VM: firmware and what it started, not this process.

    Args:
        kind: what this VM must be; the kernel's word for another kind is refused.
        reports: the folder; ``system``: the calls of ``os`` on it. Others only in tests.
    """

    def __init__(
        self, kind: Literal["tdx", "snp"], reports: str = TSM_REPORTS, system: Any = os
    ) -> None:
        self.kind, self._reports, self._system = kind, reports, system

    def quote(self, data: bytes, measurement: bytes) -> bytes:
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
            remedy = _REMEDIES.get(getattr(error, "errno", None) or 0, _REMEDY)
            raise MachineError("no report of this VM", got=str(error), remedy=remedy) from error

    def _report(self, request: str, data: bytes) -> bytes:
        found = self._read(f"{request}/provider").decode().strip()
        if found != _FORMATS[self.kind]:
            raise MachineError(
                "this VM's reports are of another kind than the worker was started for",
                got=found,
                expected=_FORMATS[self.kind],
                remedy="choose the provider that this machine has; no other is tried",
            )
        before = int(self._read(f"{request}/generation"))
        self._write(f"{request}/inblob", data)
        report = self._read(f"{request}/outblob")
        if self.kind == "snp":
            report += self._read(f"{request}/auxblob")
        after = int(self._read(f"{request}/generation"))
        if after != before + 1:
            raise MachineError(
                "the kernel did not take the report data, or others wrote to this request",
                got=f"{after - before} writes",
                expected="1",
                remedy="ask again; keep other processes out of this VM",
            )
        return report

    def _read(self, path: str) -> bytes:
        descriptor, data = self._system.open(path, os.O_RDONLY), b""
        try:
            while len(data) <= QUOTE_BYTES_MAX:
                if not (part := self._system.read(descriptor, QUOTE_BYTES_MAX)):
                    break
                data += part
            return data
        finally:
            self._system.close(descriptor)

    def _write(self, path: str, data: bytes) -> None:
        descriptor = self._system.open(path, os.O_WRONLY)
        try:
            self._system.write(descriptor, data)
        finally:
            self._system.close(descriptor)
