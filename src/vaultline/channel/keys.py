"""Keys of one connection: an AES-256-GCM key and a nonce mask per hop, pair, direction, epoch."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from vaultline.core.errors import LocalProtocolError
from vaultline.core.limits import REPLICAS_MAX

SECRET_BYTES = 32
IV_BYTES = 12
_LABEL = b"vaultline hop v2"


class Direction(IntEnum):
    """Which way a record travels; part of the key, so a reflected record never opens."""

    FORWARD = 0
    BACKWARD = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class HopKeys:
    """What both ends of a connection derive from the hop's secret.

    Attributes:
        source, target: replicas of the stages before and after the hop.
    """

    hop: int
    epoch: int
    source: int
    target: int
    key: bytes = field(repr=False)
    iv: bytes = field(repr=False)


def derive_hop_keys(
    secret: bytes,
    *,
    hop: int,
    epoch: int,
    source: int = 0,
    target: int = 0,
    direction: Direction = Direction.FORWARD,
) -> HopKeys:
    """Derive a connection's key and IV with HKDF-SHA256 (RFC 5869): no two pairs share them.

    Raises:
        LocalProtocolError: the secret is not 32 bytes or the numbers don't fit.
    """
    pair_fits = 0 <= source < REPLICAS_MAX and 0 <= target < REPLICAS_MAX
    fits = pair_fits and 0 <= hop < 1 << 32 and 0 <= epoch < 1 << 64
    if len(secret) != SECRET_BYTES or not fits:
        raise LocalProtocolError(
            "a hop needs a 32-byte secret, a 32-bit hop, a 64-bit epoch and replicas within limits"
        )
    info = _LABEL + struct.pack("!IQHHB", hop, epoch, source, target, direction)
    okm = HKDF(algorithm=hashes.SHA256(), length=SECRET_BYTES + IV_BYTES, salt=None, info=info)
    material = okm.derive(secret)
    key, iv = material[:SECRET_BYTES], material[SECRET_BYTES:]
    return HopKeys(hop=hop, epoch=epoch, source=source, target=target, key=key, iv=iv)
