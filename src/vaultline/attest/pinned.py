"""What an untrusted accelerator presents as evidence: a signature by a key that the owner pinned.

It says who answers, for which challenge and with which key for the grant; nothing vouches for what
that worker is or does. So it is a kind of evidence of its own, which stands for no enclave.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vaultline.core.errors import InputError
from vaultline.core.serde import Struct

PINNED_LABEL = b"vaultline accelerator evidence v1\0"
#: Public key, report data, signature over label and report data (Ed25519, RFC 8032).
PUBLIC_BYTES, REPORT_BYTES, SIGNATURE_BYTES = 32, 64, 64
PINNED_QUOTE_BYTES = PUBLIC_BYTES + REPORT_BYTES + SIGNATURE_BYTES


class AcceleratorKey(Struct, frozen=True, kw_only=True):
    """The file that makes a worker the accelerator which an owner knows: 32 bytes, Ed25519."""

    version: int
    private_key: bytes

    def __post_init__(self) -> None:
        if self.version != 1 or len(self.private_key) != 32:
            raise InputError(
                "not an accelerator's key of this version",
                remedy="make one with `vaultline policy accelerator`",
            )

    def __repr__(self) -> str:
        return "AcceleratorKey(hidden)"

    @property
    def public_key(self) -> bytes:
        """What a policy pins: 32 bytes."""
        return self._signer().public_key().public_bytes_raw()

    def quote(self, report_data: bytes) -> bytes:
        """Sign report data, which commits to a challenge and a key for the grant."""
        signature = self._signer().sign(PINNED_LABEL + report_data)
        return self.public_key + report_data + signature

    def _signer(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.private_key)
