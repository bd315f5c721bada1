"""Evidence of untrusted accelerators; no enclave loads this."""

from __future__ import annotations

from vaultline.attest.evidence import Kind
from vaultline.attest.pinned import AcceleratorKey
from vaultline.core.serde import from_json
from vaultline.enclave.platform_file import read_platform


class PinnedProvider:
    """Signatures by the key that an owner pinned: who this is, and not what it does."""

    kind: Kind = "accelerator"
    measurement = b""  # nobody would believe one

    def __init__(self, key: bytes) -> None:
        self._key = from_json(key, AcceleratorKey, what="the accelerator's key")

    def quote(self, data: bytes) -> bytes:
        """The key's signature over report data."""
        return self._key.quote(data)


def open_pinned(platform_file: str) -> PinnedProvider:
    """Read the accelerator's key.

    Raises:
        InputError, RemoteProtocolError: the host named another file, or none.
    """
    return PinnedProvider(read_platform(platform_file))
