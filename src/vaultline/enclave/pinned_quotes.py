"""Evidence of untrusted accelerators; no enclave loads this."""

from __future__ import annotations

from vaultline.attest.evidence import Kind
from vaultline.attest.pinned import AcceleratorKey
from vaultline.core.serde import from_json


class PinnedProvider:
    """Signatures by the key that an owner pinned: who this is, and not what it does."""

    kind: Kind = "accelerator"

    def __init__(self, key: bytes) -> None:
        self._key = from_json(key, AcceleratorKey, what="the accelerator's key")

    def quote(self, data: bytes, measurement: bytes) -> bytes:
        """The key's signature over report data; nobody would believe a measurement."""
        return self._key.quote(data)
