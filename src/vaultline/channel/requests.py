"""Requests and answers of a server, each sealed on its own: a host may queue and reorder them.

AES-256-GCM under a key for each direction of each server; the nonce is the sender's counter, which
travels before the ciphertext, and the additional data names model and request. So no answer is
taken for another request's. A host that sends a request twice gets two answers under two nonces,
of which the owner takes one.
"""

from __future__ import annotations

import struct
from itertools import count

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from vaultline.channel.keys import SECRET_BYTES, Direction
from vaultline.core.errors import LocalProtocolError, RemoteProtocolError

_LABEL = b"vaultline request v1"
_COUNTER = struct.Struct("!Q")
_ABOUT = struct.Struct("!IQ")
_TAG_BYTES = 16
#: What sealing adds to a message.
OVERHEAD_BYTES = _COUNTER.size + _TAG_BYTES


class RequestTamperedError(RemoteProtocolError):
    """A request or an answer that was altered, or is of another server, model or request."""


def _cipher(secret: bytes, epoch: int, direction: Direction) -> AESGCM:
    if len(secret) != SECRET_BYTES:
        raise LocalProtocolError(f"a server's secret has {SECRET_BYTES} bytes")
    info = _LABEL + struct.pack("!QB", epoch, direction)
    return AESGCM(HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(secret))


class RequestSealer:
    """One direction's sealing end; any thread may use it."""

    def __init__(self, secret: bytes, *, epoch: int, direction: Direction) -> None:
        self._cipher = _cipher(secret, epoch, direction)
        self._counters = count(1)  # one call of the interpreter: threads never get the same

    def seal_into(self, model: int, number: int, message: memoryview, sealed: memoryview) -> None:
        """Seal a message into a buffer of ``OVERHEAD_BYTES`` more."""
        counter = next(self._counters)
        _COUNTER.pack_into(sealed, 0, counter)
        nonce, about = counter.to_bytes(12, "big"), _ABOUT.pack(model, number)
        self._cipher.encrypt_into(nonce, message, about, sealed[_COUNTER.size :])


class RequestOpener:
    """One direction's opening end; any thread may use it."""

    def __init__(self, secret: bytes, *, epoch: int, direction: Direction) -> None:
        self._cipher = _cipher(secret, epoch, direction)

    def open_into(self, model: int, number: int, sealed: memoryview, message: memoryview) -> None:
        """Verify and decrypt into a buffer of ``OVERHEAD_BYTES`` less; nobody else may write
        ``sealed`` meanwhile.

        Raises:
            RequestTamperedError: not what was sealed for this model and request.
        """
        if len(sealed) != len(message) + OVERHEAD_BYTES:
            raise RequestTamperedError("a sealed request of another size than its model's")
        (counter,) = _COUNTER.unpack_from(sealed)
        nonce, about = counter.to_bytes(12, "big"), _ABOUT.pack(model, number)
        try:
            self._cipher.decrypt_into(nonce, sealed[_COUNTER.size :], about, message)
        except InvalidTag:
            raise RequestTamperedError(
                "a request or answer was altered, or belongs elsewhere",
                got=f"request {number} of model {model}",
                remedy="distrust the host between gateway and enclave",
            ) from None
