"""What an enclave answers to a challenge."""

from __future__ import annotations

from typing import Literal

from vaultline.attest.grant import PUBLIC_KEY_BYTES
from vaultline.core.errors import InputError
from vaultline.core.serde import Struct, from_msgpack, to_msgpack

#: Who vouches for an enclave: ``simulated`` means nobody but the holder of a development platform.
Kind = Literal["simulated", "sgx", "tdx", "snp"]
#: Quotes with their certificates take 4 to 6 KiB; platforms with many certificates a few more.
QUOTE_BYTES_MAX = 32 << 10
EVIDENCE_BYTES_MAX = QUOTE_BYTES_MAX + PUBLIC_KEY_BYTES + 256


class Evidence(Struct, frozen=True, kw_only=True):
    """A quote, the key whose holder it speaks for, and the kind of enclave that it claims."""

    kind: Kind
    public_key: bytes
    quote: bytes

    def __post_init__(self) -> None:
        if len(self.public_key) != PUBLIC_KEY_BYTES:
            raise InputError(
                "evidence has a key of the wrong length",
                got=f"{len(self.public_key)} bytes",
                expected=f"{PUBLIC_KEY_BYTES} bytes",
            )
        if not 0 < len(self.quote) <= QUOTE_BYTES_MAX:
            raise InputError(
                "evidence has no quote, or too long a one",
                got=f"{len(self.quote)} bytes",
                expected=f"1 to {QUOTE_BYTES_MAX} bytes",
            )

    def encode(self) -> bytes:
        """For the wire."""
        return to_msgpack(self)

    @classmethod
    def decode(cls, data: bytes) -> Evidence:
        """Read a peer's evidence; it is well formed then, and nothing more.

        Raises:
            RemoteProtocolError: too long or malformed.
        """
        return from_msgpack(data, cls, what="evidence", bytes_max=EVIDENCE_BYTES_MAX)
