"""Judging what an accelerator presents: the owner's half of ``pinned``."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from vaultline.attest.pinned import (
    PINNED_LABEL,
    PINNED_QUOTE_BYTES,
    PUBLIC_BYTES,
    SIGNATURE_BYTES,
)
from vaultline.attest.policy import Accepted
from vaultline.attest.refusals import PinnedKeyRefused, QuoteInvalid


def check_pinned(quote: bytes, entries: Sequence[tuple[int, Accepted]]) -> tuple[int, str, bytes]:
    """The accepting entry's index, the key (hex) and the report data that it signed.

    Raises:
        QuoteInvalid: of another length, or the signature is not the key's.
        PinnedKeyRefused: a key that no entry names.
    """
    if len(quote) != PINNED_QUOTE_BYTES:
        raise QuoteInvalid(
            "an accelerator's evidence has another length",
            got=f"{len(quote)} bytes",
            expected=f"{PINNED_QUOTE_BYTES} bytes",
            remedy="an enclave's quote is no accelerator's signature; launch the planned worker",
        )
    key, data = quote[:PUBLIC_BYTES], quote[PUBLIC_BYTES:-SIGNATURE_BYTES]
    accepted = [index for index, entry in entries if key.hex() in entry.pinned_keys]
    if not accepted:
        raise PinnedKeyRefused(
            "the accelerator has a key that the policy does not name",
            got=key.hex(),
            expected=", ".join(sorted(set().union(*(each.pinned_keys for _, each in entries)))),
            remedy="if it is yours, add the key to `public_keys` of the policy's accelerator",
        )
    signature = quote[-SIGNATURE_BYTES:]
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, PINNED_LABEL + data)
    except (InvalidSignature, ValueError) as error:
        raise QuoteInvalid(
            "an accelerator's evidence is not signed by the key that it names",
            got=key.hex(),
            remedy="somebody answers in its place; no key is released",
        ) from error
    return accepted[0], key.hex(), data
