"""Evidence of SGX enclaves under Gramine; no other worker loads this."""

from __future__ import annotations

import threading
from pathlib import Path

from vaultline.attest.evidence import Kind
from vaultline.core.errors import MachineError

GRAMINE_ATTESTATION = Path("/dev/attestation")


class GramineProvider:
    """Quotes from SGX hardware through Gramine's pseudo-files, whose state is per process.

    Args:
        directory: where Gramine shows them; another one only in tests.
    """

    kind: Kind = "sgx"
    measurement = b""  # the processor measures

    def __init__(self, directory: Path = GRAMINE_ATTESTATION) -> None:
        self._directory = directory
        self._lock = threading.Lock()

    def quote(self, data: bytes) -> bytes:
        """A quote over report data.

        Raises:
            MachineError: the pseudo-files are missing, or the quoting service failed.
        """
        try:
            with self._lock:
                (self._directory / "user_report_data").write_bytes(data)
                quote = (self._directory / "quote").read_bytes()
        except OSError as error:
            raise MachineError(
                f"Gramine gave no quote: {error}",
                remedy='set sgx.remote_attestation = "dcap" and start the AESM service',
            ) from error
        # The quoting service may fill its buffer with zeros: whoever verifies refuses them.
        end = 436 + int.from_bytes(quote[432:436], "little")
        return quote if any(quote[end:]) else quote[:end]
