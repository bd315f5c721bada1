"""The files of a receipt: what an owner records of a run, and links as text."""

from __future__ import annotations

from base64 import b64decode
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from vaultline.attest.links import LINK_HEADER, Link, base64url
from vaultline.attest.refusals import LinkAltered
from vaultline.core.errors import InputError
from vaultline.core.plan import WORKERS_MAX
from vaultline.core.serde import Struct, from_json

RECEIPT_VERSION = 1
#: A link with the most frames takes 33 KiB; a line to the host 64.
FRAMES_PER_LINK_MAX = 256
_LATEST_S = 253_402_300_799  # the end of the year 9999
LINK_CHARS_MAX = 64 << 10


class RecordedWorker(Struct, frozen=True):
    """What a worker of a run was asked, and what it answered; both as they were sent."""

    stage: int
    replica: int
    challenge: bytes
    evidence: bytes


class ReceiptRecord(Struct, frozen=True):
    """What an owner keeps of a run so that links can be verified; nothing in it is secret.

    Attributes:
        at_s: Unix time of the appraisal.
        collateral: for each kind of enclave, as the owner used it.
    """

    version: int
    at_s: int
    deployment: bytes
    epoch: int
    plan_digest: bytes
    workers: tuple[RecordedWorker, ...]
    collateral: dict[str, bytes]

    def __post_init__(self) -> None:
        if self.version != RECEIPT_VERSION or len(self.workers) > WORKERS_MAX:
            raise InputError(
                "not a receipt of this version",
                got=f"version {self.version}, {len(self.workers)} workers",
                expected=f"version {RECEIPT_VERSION}, at most {WORKERS_MAX}",
            )
        if not 0 <= self.at_s <= _LATEST_S:
            raise InputError("a receipt of no time", got=str(self.at_s))


class SignedLink(NamedTuple):
    """A parsed link: what it says, and what was signed how."""

    link: Link
    signed: bytes
    signature: bytes


def read_link(text: str) -> SignedLink:
    """Parse a link; whose it is has not been verified then.

    Raises:
        LinkAltered: not a JWS of a link, in its one form.
    """
    parts = text.split(".")
    if len(text) > LINK_CHARS_MAX or len(parts) != 3:
        raise LinkAltered("not a link", got=f"{len(text)} characters, {len(parts)} parts")
    header, payload, signature = map(_decoded, parts)
    if header != LINK_HEADER:
        raise LinkAltered("not a link", got=repr(header[:64]), expected=LINK_HEADER.decode())
    try:
        link = from_json(payload, Link, what="a link")
    except InputError as error:
        raise LinkAltered("not a link", got=error.got or error.message) from error
    if len(link.frames) > FRAMES_PER_LINK_MAX:
        raise LinkAltered("a link has too many frames", got=str(len(link.frames)))
    return SignedLink(link, text.rpartition(".")[0].encode(), signature)


def _decoded(text: str) -> bytes:
    try:
        data = b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError as error:  # characters outside of ASCII, too
        raise LinkAltered("not a link: it is not base64url", got=str(error)) from error
    if base64url(data).decode() != text:
        raise LinkAltered("not a link: not the one way to write these bytes")
    return data


def check_signature(signed: SignedLink, key: bytes) -> None:
    """Check a link against its worker's attested key.

    Raises:
        LinkAltered: it is not signed by that key.
    """
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signed.signature, signed.signed)
    except (InvalidSignature, ValueError) as error:
        link = signed.link
        raise LinkAltered(
            "a link is not signed by the key that its stage's evidence commits to",
            got=f"stage {link.stage}, replica {link.replica}, frames from {link.first}",
        ) from error
