"""Grants: the keys of a stage or a server, sealed to the key that an enclave's evidence commits to.

HPKE (RFC 9180) in base mode, with the hybrid of ML-KEM-768 and X25519: frames recorded today stay
closed unless both are broken. The owner is authenticated by nothing but the vault: an enclave that
takes a stranger's grant cannot open the vault's section, whose key only the model's owner has.
"""

# ruff: noqa: N818 - errors are named after what happened
from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PrivateKey, Suite

from vaultline.attest.challenge import Challenge
from vaultline.attest.evidence import Evidence
from vaultline.core.errors import RemoteProtocolError
from vaultline.core.limits import CONTROL_MESSAGE_BYTES_MAX
from vaultline.core.serde import Struct, from_msgpack

#: A grant takes about 300 bytes, its encapsulated keys 1,120; what it releases names each tensor
#: of a hop (up to 4,096, whose names can be long), and it must travel in one control message.
SEALED_GRANT_BYTES_MAX = CONTROL_MESSAGE_BYTES_MAX // 2
_LABEL = b"vaultline grant transcript v1\0"
SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


class GrantRefused(RemoteProtocolError):
    """A grant that this enclave cannot or must not use."""


class GrantForAnotherEnclave(GrantRefused):
    """Sealed to another key or another exchange of challenge and evidence, or damaged."""


class GrantForAnotherDeployment(GrantRefused):
    """Its deployment is not the challenge's."""


class GrantForAnotherPlan(GrantRefused):
    """Its plan digest is not the challenge's."""


class GrantForAnotherStage(GrantRefused):
    """Its stage is not the challenge's."""


class GrantForAnotherEpoch(GrantRefused):
    """Its epoch is not the challenge's."""


#: What a grant of any kind repeats of the challenge that it answers.
_ANSWERS: dict[str, type[GrantRefused]] = {
    "deployment": GrantForAnotherDeployment,
    "plan_digest": GrantForAnotherPlan,
    "epoch": GrantForAnotherEpoch,
    "stage": GrantForAnotherStage,
}
G = TypeVar("G", bound=Struct)


@dataclass(frozen=True, slots=True)
class GrantKey:
    """An enclave's private key for one grant, and another that signs links of a receipt; they
    never leave the process."""

    mlkem: MLKEM768PrivateKey = field(repr=False)
    x25519: X25519PrivateKey = field(repr=False)
    ed25519: Ed25519PrivateKey = field(repr=False, default_factory=Ed25519PrivateKey.generate)


def public_key_bytes(key: GrantKey) -> bytes:
    """ML-KEM-768 key then X25519 key, as the HPKE hybrid encodes them: 1,216 bytes."""
    mlkem, x25519 = key.mlkem.public_key(), key.x25519.public_key()
    return mlkem.public_bytes_raw() + x25519.public_bytes_raw()


def transcript_hash(challenge: Challenge, evidence: Evidence) -> bytes:
    """SHA-256 over challenge and evidence: a grant opens only in the exchange it answers."""
    return hashlib.sha256(_LABEL + challenge.encode() + evidence.encode()).digest()


def open_grant(
    sealed: bytes, key: GrantKey, transcript: bytes, kind: type[G], *, challenge: Challenge
) -> G:
    """Open a grant of a kind and check that it answers this enclave's challenge.

    Raises:
        GrantRefused: for another enclave, deployment, plan, stage or epoch.
        RemoteProtocolError: too long or malformed.
    """
    if len(sealed) > SEALED_GRANT_BYTES_MAX:
        raise RemoteProtocolError("a grant is too long", got=f"{len(sealed)} bytes")
    try:
        hybrid = MLKEM768X25519PrivateKey(key.mlkem, key.x25519)
        plain = SUITE.decrypt(sealed, hybrid, info=transcript)
    except (InvalidTag, ValueError) as error:
        raise GrantForAnotherEnclave(
            "this grant was sealed to another enclave or another exchange, or was damaged",
            remedy="start the deployment again; keys are granted to fresh evidence only",
        ) from error
    grant = from_msgpack(plain, kind, what="a grant", bytes_max=SEALED_GRANT_BYTES_MAX)
    for name, error_type in _ANSWERS.items():
        if getattr(grant, name) != getattr(challenge, name):
            raise error_type("the grant is not for what this enclave was challenged for")
    return grant
