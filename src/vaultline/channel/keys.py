"""Keys of one hop: one AES-256-GCM key and one nonce mask per hop, direction and epoch."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from vaultline.core.errors import LocalProtocolError

SECRET_BYTES = 32
IV_BYTES = 12
_LABEL = b"vaultline hop v1"


class Direction(IntEnum):
    """Which way a record travels; part of the key, so a reflected record never opens."""

    FORWARD = 0
    BACKWARD = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class HopKeys:
    """What both ends of a hop derive from the hop's secret."""

    hop: int
    epoch: int
    key: bytes = field(repr=False)
    iv: bytes = field(repr=False)


def derive_hop_keys(
    secret: bytes, *, hop: int, epoch: int, direction: Direction = Direction.FORWARD
) -> HopKeys:
    """Derive a hop's key and IV with HKDF-SHA256 (RFC 5869).

    Raises:
        LocalProtocolError: the secret is not 32 bytes or the numbers don't fit.
    """
    if len(secret) != SECRET_BYTES or not (0 <= hop < 1 << 32 and 0 <= epoch < 1 << 64):
        raise LocalProtocolError("a hop needs a 32-byte secret, a 32-bit hop and a 64-bit epoch")
    info = _LABEL + struct.pack("!IQB", hop, epoch, direction)
    okm = HKDF(algorithm=hashes.SHA256(), length=SECRET_BYTES + IV_BYTES, salt=None, info=info)
    material = okm.derive(secret)
    return HopKeys(hop=hop, epoch=epoch, key=material[:SECRET_BYTES], iv=material[SECRET_BYTES:])
