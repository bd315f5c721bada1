"""What an enclave answers to a challenge."""

from __future__ import annotations

from typing import Literal

from vaultline.core.errors import InputError
from vaultline.core.serde import Struct, to_msgpack

#: Who vouches for an enclave: ``simulated`` means nobody but the holder of a development platform.
#: An ``accelerator`` is no enclave: nobody vouches for it, its owner knows its key.
Kind = Literal["simulated", "sgx", "tdx", "snp", "nvidia", "accelerator"]
MLKEM_KEY_BYTES = 1184
#: An ML-KEM-768 key, then an X25519 key, as the HPKE hybrid encodes them.
PUBLIC_KEY_BYTES = MLKEM_KEY_BYTES + 32
#: Quotes with their certificates take 4 to 6 KiB; platforms with many certificates a few more.
QUOTE_BYTES_MAX = 32 << 10


class Evidence(Struct, frozen=True, kw_only=True):
    """A quote, the keys whose holder it speaks for, and the kind of enclave that it claims.

    ``signing_key``: Ed25519, for receipts; empty unless the challenge asked for it.
    """

    kind: Kind
    public_key: bytes
    quote: bytes
    signing_key: bytes = b""

    def __post_init__(self) -> None:
        sizes = (len(self.public_key), len(self.quote))
        wrong_key = sizes[0] != PUBLIC_KEY_BYTES or len(self.signing_key) not in (0, 32)
        if wrong_key or not 0 < sizes[1] <= QUOTE_BYTES_MAX:
            raise InputError(
                "evidence has a key of the wrong length, no quote, or too long a one",
                got=f"a key of {sizes[0]} bytes and a quote of {sizes[1]}",
                expected=f"{PUBLIC_KEY_BYTES}, and 1 to {QUOTE_BYTES_MAX} bytes",
            )

    def encode(self) -> bytes:
        """For the wire."""
        return to_msgpack(self)
