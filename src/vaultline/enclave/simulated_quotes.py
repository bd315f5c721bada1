"""Evidence of simulated enclaves: no other enclave loads this, and a policy has to allow it."""

from __future__ import annotations

from vaultline.attest.evidence import Kind
from vaultline.attest.sgx_quote import Platform, build_quote, report_body
from vaultline.core.serde import from_json
from vaultline.enclave.measurement import measure
from vaultline.enclave.platform_file import read_platform


class SimulatedProvider:
    """Quotes under a development root, with a measurement that this process took of itself.

    Proves possession of the platform file and nothing more.

    Args:
        platform: the platform file.
        measurement: what stands in for MRENCLAVE (``measurement``).
    """

    kind: Kind = "simulated"

    def __init__(self, platform: bytes, measurement: bytes) -> None:
        self._platform = from_json(platform, Platform, what="the simulated platform")
        self.measurement = measurement

    def quote(self, data: bytes) -> bytes:
        """A quote over report data and the measurement."""
        body = report_body(measurement=self.measurement, report_data=data)
        return build_quote(self._platform, body)


def open_simulated(platform_file: str) -> SimulatedProvider:
    """Measure this process, and read the platform's secrets.

    Raises:
        InputError, RemoteProtocolError: the host named another file, or none.
        MachineError: the process can't be measured.
    """
    return SimulatedProvider(read_platform(platform_file), measure())
