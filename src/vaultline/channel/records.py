"""Records: AES-256-GCM with the header as additional data and the sequence in the nonce.

A record on the wire is ``header (32) | ciphertext (length) | tag (16)``. Sequences start at 0 and
have no gaps: the opener takes exactly the next number, so a replayed, reordered, dropped or
reflected record fails, and so does every record after it. RFC 8446 section 5.3 is the model for
the nonce (IV xor sequence).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vaultline.channel.keys import HopKeys
from vaultline.core.errors import LocalProtocolError, RemoteProtocolError

VERSION = 1
HEADER = struct.Struct("!BBHIQQIHH")
HEADER_BYTES: Final = HEADER.size
TAG_BYTES: Final = 16
OVERHEAD_BYTES: Final = HEADER_BYTES + TAG_BYTES
FLAG_MORE = 1
#: Far above any run, far below where AES-GCM's bounds or the 64-bit counter would matter.
SEQUENCE_MAX = 1 << 40

Buffer = bytes | bytearray | memoryview


class RecordKind(IntEnum):
    """What a record carries."""

    DATA = 1
    END = 2
    ABORT = 3


class RecordHeaderError(RemoteProtocolError):
    """The header is not one of this protocol, or its length is beyond the limit."""


class RecordMisdirectedError(RemoteProtocolError):
    """The record belongs to another hop, pair of replicas or epoch."""


class RecordMiswiredError(RecordMisdirectedError):
    """A connection of this run in the wrong place: another hop's, or another replica's."""


class RecordSequenceError(RemoteProtocolError):
    """Not the next record: replayed, reordered or dropped."""


class RecordTamperedError(RemoteProtocolError):
    """The tag does not verify: altered, reflected or sealed under another key."""


class RecordAfterEndError(RemoteProtocolError):
    """A record after the authenticated end of the stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordHeader:
    """The checked header of the next record."""

    kind: RecordKind
    more: bool
    length: int
    raw: bytes

    @property
    def wire_bytes(self) -> int:
        """Size of the whole record on the wire."""
        return self.length + OVERHEAD_BYTES


def _nonce(iv: bytes, sequence: int) -> bytes:
    return (int.from_bytes(iv, "big") ^ sequence).to_bytes(len(iv), "big")


class RecordSealer:
    """The sending end of a hop: numbers and seals records."""

    def __init__(self, keys: HopKeys) -> None:
        self._keys = keys
        self._cipher = AESGCM(keys.key)
        self._sequence = 0
        self._ended = False

    def seal_into(
        self, kind: RecordKind, plaintext: Buffer, out: memoryview, *, more: bool = False
    ) -> int:
        """Seal one record into ``out``; returns the bytes written.

        Raises:
            LocalProtocolError: the stream has ended, or ``out`` is too small.
        """
        if self._ended or self._sequence >= SEQUENCE_MAX:
            raise LocalProtocolError("the stream has ended: nothing more can be sealed on this hop")
        length = len(plaintext)
        if len(out) < length + OVERHEAD_BYTES:
            raise LocalProtocolError(f"a buffer of {len(out)} bytes can't hold {length} sealed")
        flags, keys = FLAG_MORE if more else 0, self._keys
        fields = (VERSION, kind, flags, keys.hop, keys.epoch, self._sequence, length)
        header = HEADER.pack(*fields, keys.source, keys.target)
        out[:HEADER_BYTES] = header
        target = out[HEADER_BYTES : length + OVERHEAD_BYTES]
        self._cipher.encrypt_into(_nonce(self._keys.iv, self._sequence), plaintext, header, target)
        self._sequence += 1
        self._ended = kind is not RecordKind.DATA
        return length + OVERHEAD_BYTES


class RecordOpener:
    """The receiving end of a hop: checks headers before bodies, opens in strict order."""

    def __init__(self, keys: HopKeys, *, plaintext_bytes_max: int) -> None:
        self._keys = keys
        self._cipher = AESGCM(keys.key)
        self._length_max = plaintext_bytes_max
        self._sequence = 0
        self._closed: str | None = None

    @property
    def opened(self) -> int:
        """Records opened so far."""
        return self._sequence

    def check_header(self, raw: Buffer) -> RecordHeader:
        """Check 32 bytes before anything is allocated or read for the body.

        Raises:
            RemoteProtocolError: one of its subclasses here; the hop is closed from then on.
        """
        self._require_open()
        version, kind, flags, hop, epoch, sequence, length, *pair = HEADER.unpack(raw)
        if version != VERSION or kind not in RecordKind._value2member_map_ or flags > FLAG_MORE:
            raise self._fail(RecordHeaderError)
        if length > self._length_max:
            raise self._fail(RecordHeaderError, f"{length} bytes", f"at most {self._length_max}")
        keys, place = self._keys, f"hop {hop}, pair {pair}, epoch {epoch}"
        if epoch != keys.epoch:
            raise self._fail(RecordMisdirectedError, place, str(keys))
        if (hop, *pair) != (keys.hop, keys.source, keys.target):
            raise self._fail(RecordMiswiredError, place, str(keys))
        if sequence != self._sequence:
            raise self._fail(RecordSequenceError, str(sequence), str(self._sequence))
        return RecordHeader(
            kind=RecordKind(kind), more=flags == FLAG_MORE, length=length, raw=bytes(raw)
        )

    def open_into(self, header: RecordHeader, sealed: Buffer, target: memoryview) -> None:
        """Decrypt a body (ciphertext and tag) into ``target``, which is wiped on failure.

        Raises:
            RecordTamperedError: the tag does not verify.
            LocalProtocolError: the sizes don't match the header.
        """
        self._require_open()
        if len(target) != header.length or len(sealed) != header.length + TAG_BYTES:
            raise LocalProtocolError("a record must be opened into exactly its length")
        nonce = _nonce(self._keys.iv, self._sequence)
        try:
            self._cipher.decrypt_into(nonce, sealed, header.raw, target)
        except InvalidTag:
            target[:] = bytes(len(target))
            raise self._fail(RecordTamperedError) from None
        self._sequence += 1
        if header.kind is not RecordKind.DATA:
            self._closed = "the stream has ended"

    def _require_open(self) -> None:
        if self._closed is not None:
            raise RecordAfterEndError("record on a closed hop", got=self._closed)

    def _fail(
        self, kind: type[RemoteProtocolError], got: str | None = None, expected: str | None = None
    ) -> RemoteProtocolError:
        """The error, said in the words of its own docstring; nothing opens after it."""
        self._closed = f"an earlier record failed: {kind.__name__}"
        return kind(kind.__doc__ or kind.__name__, got=got, expected=expected)
