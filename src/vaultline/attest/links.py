"""Links of a receipt: what one enclave took in and gave out of a run's frames, signed (ADR 0020).

A link is a JWS (RFC 7515, compact serialisation, EdDSA of RFC 8037) over canonical JSON. Its key is
the one that the enclave's evidence commits to. Links are public: the digests of frames are keyed,
so that they are no guess at a picture to whoever lacks the secret.
"""

from __future__ import annotations

import hmac
import struct
from base64 import urlsafe_b64encode
from collections.abc import Iterable
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vaultline.core.section import SectionId
from vaultline.core.serde import canonical_json

LINK_HEADER = b'{"alg":"EdDSA","typ":"vaultline-link+jws"}'
_PLACE = struct.Struct("!IQ")


class Link(SectionId, frozen=True):
    """What an enclave says of consecutive frames of its own: every r-th of a stage's r replicas.

    Attributes:
        section_digest: of the program and weights, which it verified before the first frame.
        model_digest: SHA-256 of the model, the owner's word.
        secret_check: `frame_digest` of nothing: which secret the digests are keyed with.
        first: number of the first frame in the run's stream.
        frames: digests of each frame's tensors as they entered and as they left the stage.
        last: the stream has ended, authenticated; no link of this enclave follows.
    """

    section_digest: bytes
    model_digest: bytes
    deployment: bytes
    epoch: int
    replica: int
    secret_check: bytes
    first: int
    frames: tuple[tuple[bytes, bytes], ...]
    last: bool


def frame_digest(secret: bytes, hop: int, frame: int, tensors: Iterable[Any]) -> bytes:
    """HMAC-SHA256 over hop, frame number and the bytes of all tensors that cross there.

    Their lengths follow from the plan. A stage's input crosses the hop of its number.
    """
    mac = hmac.new(secret, _PLACE.pack(hop, frame), "sha256")
    for tensor in tensors:
        mac.update(tensor)
    return mac.digest()


def sign_link(link: Link, key: Ed25519PrivateKey) -> str:
    """The JWS."""
    signed = base64url(LINK_HEADER) + b"." + base64url(canonical_json(link))
    return (signed + b"." + base64url(key.sign(signed))).decode()


def base64url(data: bytes) -> bytes:
    """As RFC 7515 has it: without padding."""
    return urlsafe_b64encode(data).rstrip(b"=")
