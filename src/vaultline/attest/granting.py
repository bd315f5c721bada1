"""Reading evidence and sealing a grant to its key: the owner's half of ``grant``."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.hpke import MLKEM768X25519PublicKey

from vaultline.attest.evidence import (
    MLKEM_KEY_BYTES,
    PUBLIC_KEY_BYTES,
    QUOTE_BYTES_MAX,
    Evidence,
)
from vaultline.attest.grant import SEALED_GRANT_BYTES_MAX, SUITE
from vaultline.attest.server_grant import ServerGrant
from vaultline.attest.stage_grant import Grant
from vaultline.core.errors import InputError, RemoteProtocolError
from vaultline.core.serde import from_msgpack, to_msgpack

EVIDENCE_BYTES_MAX = QUOTE_BYTES_MAX + PUBLIC_KEY_BYTES + 256


def read_evidence(data: bytes) -> Evidence:
    """Read a peer's evidence; it is well formed then, and nothing more.

    Raises:
        RemoteProtocolError: too long or malformed.
    """
    return from_msgpack(data, Evidence, what="evidence", bytes_max=EVIDENCE_BYTES_MAX)


def seal_grant(grant: Grant | ServerGrant, public_key: bytes, transcript: bytes) -> bytes:
    """Encrypt a grant to the key in appraised evidence.

    Raises:
        RemoteProtocolError: the key, which came from a peer, is not one.
        InputError: the grant is too large to be taken.
    """
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise RemoteProtocolError("an enclave's public key has the wrong length")
    try:
        hybrid = MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(public_key[:MLKEM_KEY_BYTES]),
            X25519PublicKey.from_public_bytes(public_key[MLKEM_KEY_BYTES:]),
        )
        sealed = SUITE.encrypt(to_msgpack(grant), hybrid, info=transcript)
    except ValueError as error:  # not a key, or a point of low order
        raise RemoteProtocolError("an enclave's public key is not one", got=str(error)) from error
    if len(sealed) > SEALED_GRANT_BYTES_MAX:
        raise InputError(
            "the grant is too large",
            got=f"{len(sealed)} bytes",
            expected=f"at most {SEALED_GRANT_BYTES_MAX}",
            remedy="cut the model where fewer tensors cross, so that fewer names are released"
            if isinstance(grant, Grant)
            else "give the server fewer models, or models of fewer step groups",
        )
    return sealed
