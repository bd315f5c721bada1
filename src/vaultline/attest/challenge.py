"""What the owner asks an enclave to commit to, and the report data that does so."""

from __future__ import annotations

import hashlib
import struct

from msgspec.structs import astuple

from vaultline.core.errors import InputError, RemoteProtocolError
from vaultline.core.limits import STAGES_MAX
from vaultline.core.serde import Struct

CHALLENGE_VERSION = 1
#: A challenge that asks for a key besides, which signs receipts.
RECEIPTS_VERSION = 2
_LABEL = b"vaultline report data v%d\0"
_LAYOUT = struct.Struct(">B32s16sQH32s")
CHALLENGE_BYTES = _LAYOUT.size


class Challenge(Struct, frozen=True, kw_only=True):
    """A fresh question to one enclave: every field is part of what its evidence commits to.

    Attributes:
        nonce: 32 random bytes, never used twice.
        deployment: 16 bytes, the same for all stages of a deployment.
        epoch: counts the plans and restarts of a deployment; keys of one epoch serve no other.
        stage: index of the stage that the enclave is to run.
        plan_digest: SHA-256 of the plan's canonical text.
    """

    version: int = CHALLENGE_VERSION
    nonce: bytes
    deployment: bytes
    epoch: int
    stage: int
    plan_digest: bytes

    def __post_init__(self) -> None:
        sizes = (len(self.nonce), len(self.deployment), len(self.plan_digest))
        in_range = 0 <= self.epoch < 1 << 64 and 0 <= self.stage < STAGES_MAX
        known = self.version in (CHALLENGE_VERSION, RECEIPTS_VERSION)
        if not known or sizes != (32, 16, 32) or not in_range:
            raise InputError(
                "not a challenge of this version",
                got=f"version {self.version}, stage {self.stage}, epoch {self.epoch}, {sizes}",
                expected=f"version 1 or 2, stage below {STAGES_MAX}, 64-bit epoch, (32, 16, 32)",
            )

    def encode(self) -> bytes:
        """The one encoding, of fixed length: on the wire and in the report data."""
        return _LAYOUT.pack(*astuple(self))

    @classmethod
    def decode(cls, data: bytes) -> Challenge:
        """Read a peer's challenge.

        Raises:
            RemoteProtocolError: of another length or version, or out of range.
        """
        if len(data) != CHALLENGE_BYTES:
            raise RemoteProtocolError(
                "not a challenge", got=f"{len(data)} bytes", expected=f"{CHALLENGE_BYTES} bytes"
            )
        fields = zip(cls.__struct_encode_fields__, _LAYOUT.unpack(data), strict=True)
        try:
            return cls(**dict(fields))
        except InputError as error:
            raise RemoteProtocolError(error.message, got=error.got) from error


def report_data(challenge: Challenge, keys: bytes) -> bytes:
    """SHA-512(label, challenge, keys): the 64 bytes that hardware signs into the evidence.

    Label and challenge have fixed lengths, so no two pairs of them and keys encode alike. The label
    is of the challenge's version: with receipts, the keys are one for the grant and one that signs.
    """
    return hashlib.sha512(_LABEL % challenge.version + challenge.encode() + keys).digest()
