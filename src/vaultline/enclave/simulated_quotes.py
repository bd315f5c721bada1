"""Evidence of simulated enclaves: no other enclave loads this, and a policy has to allow it."""

from __future__ import annotations

from vaultline.attest.evidence import Kind
from vaultline.attest.sgx_quote import Platform, build_quote, report_body
from vaultline.core.serde import from_json


class SimulatedProvider:
    """Quotes under a development root, with a measurement that this process took of itself.

    Proves possession of the platform file and nothing more.
    """

    kind: Kind = "simulated"

    def __init__(self, platform: bytes) -> None:
        self._platform = from_json(platform, Platform, what="the simulated platform")

    def quote(self, data: bytes, measurement: bytes) -> bytes:
        """A quote over report data and this measurement."""
        body = report_body(measurement=measurement, report_data=data)
        return build_quote(self._platform, body)
