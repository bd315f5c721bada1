"""Messages of one fixed size per hop, cut into records; after h11: bytes in, events out.

The size of a hop's message follows from the plan, so both ends know it before the first byte:
the writer cuts it into full fragments and a rest, and the reader accepts exactly that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

from vaultline.channel.keys import HopKeys
from vaultline.channel.records import (
    HEADER_BYTES,
    OVERHEAD_BYTES,
    RecordHeader,
    RecordHeaderError,
    RecordKind,
    RecordOpener,
    RecordSealer,
)
from vaultline.core.errors import LocalProtocolError, RemoteProtocolError
from vaultline.core.limits import FRAME_BYTES_MAX, RECORD_FRAGMENT_BYTES, RECORD_PLAINTEXT_BYTES_MAX

ABORT_REASON_BYTES_MAX = 200
#: Bytes read ahead of the current record, so that small records share a system call.
_READ_AHEAD_BYTES = 64 << 10


class StreamAbortedError(RemoteProtocolError):
    """The sender ended the stream with a reason instead of the authenticated end."""


class FragmentError(RemoteProtocolError):
    """A record that is not the fragment which must come next."""


class Need(Enum):
    """What the reader is waiting for."""

    DATA = auto()


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """The target buffer holds a whole verified message."""


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """The sender's authenticated end of stream, after ``messages`` messages."""

    messages: int


Event = MessageReceived | StreamEnded


def _check_sizes(message_bytes: int, fragment_bytes: int) -> None:
    if not (
        0 < message_bytes <= FRAME_BYTES_MAX and 0 < fragment_bytes <= RECORD_PLAINTEXT_BYTES_MAX
    ):
        raise LocalProtocolError(
            f"no message of {message_bytes} bytes in fragments of {fragment_bytes}"
        )


class MessageWriter:
    """The sending end of a hop: messages to wire bytes, through one reused buffer."""

    def __init__(
        self, keys: HopKeys, *, message_bytes: int, fragment_bytes: int = RECORD_FRAGMENT_BYTES
    ) -> None:
        _check_sizes(message_bytes, fragment_bytes)
        self._sealer = RecordSealer(keys)
        self._message_bytes = message_bytes
        self._fragment_bytes = min(fragment_bytes, message_bytes)
        wire_bytes = max(self._fragment_bytes, ABORT_REASON_BYTES_MAX) + OVERHEAD_BYTES
        self._wire = memoryview(bytearray(wire_bytes))

    def message(self, plaintext: memoryview) -> Iterator[memoryview]:
        """Yield the message's records; each must be sent before the next is asked for.

        Raises:
            LocalProtocolError: not this hop's message size, or the stream has ended.
        """
        if len(plaintext) != self._message_bytes:
            raise LocalProtocolError(
                f"a message of {len(plaintext)} bytes on a hop of {self._message_bytes}"
            )
        for start in range(0, self._message_bytes, self._fragment_bytes):
            part = plaintext[start : start + self._fragment_bytes]
            more = start + len(part) < self._message_bytes
            size = self._sealer.seal_into(RecordKind.DATA, part, self._wire, more=more)
            yield self._wire[:size]

    def end(self) -> memoryview:
        """The authenticated end of the stream."""
        return self._wire[: self._sealer.seal_into(RecordKind.END, b"", self._wire)]

    def abort(self, reason: str) -> memoryview:
        """An authenticated end that tells the receiver why no more will come."""
        text = reason.encode()[:ABORT_REASON_BYTES_MAX]
        return self._wire[: self._sealer.seal_into(RecordKind.ABORT, text, self._wire)]


class MessageReader:
    """The receiving end of a hop.

    Call ``want()`` for a buffer, put the peer's bytes there, say how many with ``received()``,
    then call ``next_event(target)`` until it answers ``Need.DATA``.
    """

    def __init__(
        self, keys: HopKeys, *, message_bytes: int, fragment_bytes: int = RECORD_FRAGMENT_BYTES
    ) -> None:
        _check_sizes(message_bytes, fragment_bytes)
        self._fragment_bytes = min(fragment_bytes, message_bytes)
        record_bytes = max(self._fragment_bytes, ABORT_REASON_BYTES_MAX)
        self._opener = RecordOpener(keys, plaintext_bytes_max=record_bytes)
        self._message_bytes = message_bytes
        self._wire = memoryview(bytearray(record_bytes + OVERHEAD_BYTES + _READ_AHEAD_BYTES))
        self._start = 0
        self._filled = 0
        self._header: RecordHeader | None = None
        self._offset = 0
        self._messages = 0

    @property
    def established(self) -> bool:
        """Whether the peer has proved that it holds the hop's key."""
        return self._opener.opened > 0

    def want(self) -> memoryview:
        """Where the next bytes of the peer go; never empty while ``next_event`` needs data."""
        if self._start:
            rest = self._filled - self._start
            self._wire[:rest] = self._wire[self._start : self._filled]
            self._start, self._filled = 0, rest
        return self._wire[self._filled :]

    def received(self, count: int) -> None:
        """``count`` bytes were put at the start of what ``want`` returned."""
        if not 0 <= count <= len(self._wire) - self._filled:
            raise LocalProtocolError(f"{count} bytes were not asked for")
        self._filled += count

    def next_event(self, target: memoryview) -> Event | Need:
        """Open what has arrived into ``target``, which must stay the same until an event comes.

        Raises:
            RemoteProtocolError: the peer's bytes break the protocol; the hop is dead.
        """
        if len(target) != self._message_bytes:
            raise LocalProtocolError("the target is not of the hop's message size")
        while True:
            if self._header is None:
                if self._filled - self._start < HEADER_BYTES:
                    return Need.DATA
                raw = self._wire[self._start : self._start + HEADER_BYTES]
                self._header = self._check(self._opener.check_header(raw))
            if self._filled - self._start < self._header.wire_bytes:
                return Need.DATA
            event = self._open(self._header, target)
            if event is not None:
                return event

    def _check(self, header: RecordHeader) -> RecordHeader:
        """Only the one fragment that must come next, or an end between messages."""
        if header.kind is RecordKind.DATA:
            rest = self._message_bytes - self._offset
            expected = min(rest, self._fragment_bytes)
            if header.length != expected or header.more != (expected < rest):
                raise FragmentError(
                    "not the fragment that must come next",
                    got=f"{header.length} bytes",
                    expected=f"{expected} bytes",
                )
        elif header.kind is RecordKind.END and (self._offset or header.length or header.more):
            raise FragmentError("the stream ended inside a message")
        elif header.kind is RecordKind.ABORT and header.length > ABORT_REASON_BYTES_MAX:
            raise RecordHeaderError("abort reason beyond the limit")
        return header

    def _open(self, header: RecordHeader, target: memoryview) -> Event | None:
        body = self._start + HEADER_BYTES
        sealed = self._wire[body : self._start + header.wire_bytes]
        if header.kind is RecordKind.DATA:
            part = target[self._offset : self._offset + header.length]
        else:
            part = memoryview(bytearray(header.length))
        self._opener.open_into(header, sealed, part)
        self._header = None
        self._start += header.wire_bytes
        if header.kind is RecordKind.ABORT:
            raise StreamAbortedError("the sender gave up", got=bytes(part).decode(errors="replace"))
        if header.kind is RecordKind.END:
            return StreamEnded(self._messages)
        self._offset += header.length
        if header.more:
            return None
        self._offset = 0
        self._messages += 1
        return MessageReceived()
