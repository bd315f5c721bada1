"""What a hostile network can do to records on a hop, each refused with its own error."""

from __future__ import annotations

import tracemalloc

import pytest

from vaultline.channel.keys import Direction, HopKeys, derive_hop_keys
from vaultline.channel.messages import (
    FragmentError,
    MessageReader,
    MessageReceived,
    MessageWriter,
    StreamAbortedError,
    StreamEnded,
)
from vaultline.channel.records import (
    HEADER,
    RecordAfterEndError,
    RecordHeaderError,
    RecordMisdirectedError,
    RecordMiswiredError,
    RecordSequenceError,
    RecordTamperedError,
)
from vaultline.core.errors import RemoteProtocolError

SECRET = bytes(range(32))
MESSAGE_BYTES, FRAGMENT_BYTES = 1000, 400
RECORDS_PER_MESSAGE = 3


def keys(
    hop: int = 1,
    epoch: int = 7,
    source: int = 2,
    target: int = 5,
    direction: Direction = Direction.FORWARD,
) -> HopKeys:
    return derive_hop_keys(
        SECRET, hop=hop, epoch=epoch, source=source, target=target, direction=direction
    )


def writer(**names: int) -> MessageWriter:
    return MessageWriter(keys(**names), message_bytes=MESSAGE_BYTES, fragment_bytes=FRAGMENT_BYTES)


def reader() -> MessageReader:
    return MessageReader(keys(), message_bytes=MESSAGE_BYTES, fragment_bytes=FRAGMENT_BYTES)


def message(number: int) -> bytes:
    return bytes((number + i) % 251 for i in range(MESSAGE_BYTES))


def records(count: int = 2, sender: MessageWriter | None = None) -> list[bytes]:
    """The records of ``count`` messages and the end of the stream."""
    sender = sender or writer()
    wire = [bytes(r) for n in range(count) for r in sender.message(memoryview(message(n)))]
    return [*wire, bytes(sender.end())]


def deliver(wire: list[bytes]) -> tuple[list[bytes], int | None]:
    """Messages that a fresh reader lets out, and the count in the end of stream if it came."""
    peer, target, out = reader(), memoryview(bytearray(MESSAGE_BYTES)), []
    data = b"".join(wire)
    while True:
        event = peer.next_event(target)
        if isinstance(event, MessageReceived):
            out.append(bytes(target))
        elif isinstance(event, StreamEnded):
            return out, event.messages
        elif not data:
            return out, None
        else:
            buffer = peer.want()
            count = min(len(buffer), len(data))
            buffer[:count], data = data[:count], data[count:]
            peer.received(count)


def flipped(record: bytes, position: int, bit: int = 1) -> bytes:
    changed = bytearray(record)
    changed[position] ^= bit
    return bytes(changed)


def with_length(record: bytes, length: int) -> bytes:
    fields = list(HEADER.unpack(record[: HEADER.size]))
    fields[6] = length
    return HEADER.pack(*fields) + record[HEADER.size :]


def renumbered(record: bytes, sequence: int) -> bytes:
    fields = list(HEADER.unpack(record[: HEADER.size]))
    fields[5] = sequence
    return HEADER.pack(*fields) + record[HEADER.size :]


GOOD = records()
OTHER_FRAMES = records(3)
ATTACKS: dict[str, tuple[list[bytes], type[RemoteProtocolError]]] = {
    "a record is replayed at once": ([GOOD[0], GOOD[0]], RecordSequenceError),
    "a whole message is replayed": ([*GOOD[:3], *GOOD[:3]], RecordSequenceError),
    "a replayed record is renumbered": (
        [*GOOD[:3], renumbered(GOOD[0], 3)],
        RecordTamperedError,
    ),
    "two records are exchanged": ([GOOD[1], GOOD[0]], RecordSequenceError),
    "a record is dropped": ([GOOD[0], GOOD[2]], RecordSequenceError),
    "a whole message is dropped": ([*GOOD[3:]], RecordSequenceError),
    "the end comes before the last message": ([*GOOD[:3], GOOD[6]], RecordSequenceError),
    "a bit of the ciphertext is flipped": (
        [flipped(GOOD[0], HEADER.size + 5)],
        RecordTamperedError,
    ),
    "a bit of the tag is flipped": ([flipped(GOOD[0], len(GOOD[0]) - 1)], RecordTamperedError),
    "a bit of the sequence is flipped": ([flipped(GOOD[0], 23)], RecordSequenceError),
    "the flag of a fragment is flipped": ([flipped(GOOD[0], 3)], FragmentError),
    "the kind is changed to the end": ([flipped(GOOD[0], 1, 3)], FragmentError),
    "the version is unknown": ([flipped(GOOD[0], 0, 2)], RecordHeaderError),
    "the source in the header is another": ([flipped(GOOD[0], 29)], RecordMiswiredError),
    "the target in the header is another": ([flipped(GOOD[0], 31)], RecordMiswiredError),
    "a record of another source claims to be of this one": (
        [flipped(records(sender=writer(source=3))[0], 29)],
        RecordTamperedError,
    ),
    "a record for another target claims to be for this one": (
        [flipped(records(sender=writer(target=4))[0], 31)],
        RecordTamperedError,
    ),
    "a record is reflected from the other direction": (
        records(
            sender=MessageWriter(
                keys(direction=Direction.BACKWARD),
                message_bytes=MESSAGE_BYTES,
                fragment_bytes=FRAGMENT_BYTES,
            )
        ),
        RecordTamperedError,
    ),
    "a record comes from another hop": (records(sender=writer(hop=2)), RecordMiswiredError),
    "a record comes from another replica": (
        records(sender=writer(source=3)),
        RecordMiswiredError,
    ),
    "a record goes to another replica": (records(sender=writer(target=4)), RecordMiswiredError),
    "the same pair the other way round": (
        records(sender=writer(source=5, target=2)),
        RecordMiswiredError,
    ),
    "a record comes from another epoch": (records(sender=writer(epoch=8)), RecordMisdirectedError),
    "a record follows the end": ([*GOOD, renumbered(GOOD[0], 7)], RecordAfterEndError),
    "a length is beyond the limit": (
        [with_length(GOOD[0], FRAGMENT_BYTES + 1)],
        RecordHeaderError,
    ),
    "a length is the largest there is": ([with_length(GOOD[0], 2**32 - 1)], RecordHeaderError),
    "a length is shorter than the fragment": ([with_length(GOOD[0], 399)], FragmentError),
    "the sender gives up, authenticated": (
        [
            *GOOD[:3],
            bytes((lambda w: (list(w.message(memoryview(message(0)))), w.abort("x"))[1])(writer())),
        ],
        StreamAbortedError,
    ),
}


def test_an_untouched_stream_arrives() -> None:
    assert deliver(GOOD) == ([message(0), message(1)], 2)


@pytest.mark.parametrize("sentence", ATTACKS)
def test_refused_with_its_own_error(sentence: str) -> None:
    wire, error = ATTACKS[sentence]
    with pytest.raises(RemoteProtocolError) as caught:
        deliver(wire)
        if error is RecordAfterEndError:
            # The reader stops at the end; a caller that goes on is refused.
            peer, target = reader(), memoryview(bytearray(MESSAGE_BYTES))
            data = b"".join(wire)
            peer.want()[: len(data)] = data
            peer.received(len(data))
            while True:
                peer.next_event(target)
    assert type(caught.value) is error


@pytest.mark.parametrize("cut", [1, HEADER.size - 1, HEADER.size, HEADER.size + 1, 447, 449, 1143])
def test_a_truncated_stream_never_ends_nor_lets_a_message_out(cut: int) -> None:
    data = b"".join(records(1))[:cut]
    assert deliver([data]) == ([], None)


@pytest.mark.parametrize("number", range(RECORDS_PER_MESSAGE))
def test_nothing_of_a_tampered_message_is_let_out(number: int) -> None:
    wire = records(1)
    wire[number] = flipped(wire[number], HEADER.size + 1)
    peer, target = reader(), memoryview(bytearray(MESSAGE_BYTES))
    data = b"".join(wire)
    peer.want()[: len(data)] = data
    peer.received(len(data))
    with pytest.raises(RecordTamperedError):
        peer.next_event(target)
    start = number * FRAGMENT_BYTES
    length = min(FRAGMENT_BYTES, MESSAGE_BYTES - start)
    assert bytes(target[start : start + length]) == bytes(length)
    with pytest.raises(RecordAfterEndError):
        peer.next_event(target)


def test_an_oversized_length_is_refused_before_any_allocation() -> None:
    peer, target = reader(), memoryview(bytearray(MESSAGE_BYTES))
    header = with_length(GOOD[0], 2**32 - 1)[: HEADER.size]
    peer.want()[: len(header)] = header
    peer.received(len(header))
    tracemalloc.start()
    with pytest.raises(RecordHeaderError):
        peer.next_event(target)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 << 10


@pytest.mark.parametrize("position", range(0, 32 + 16 + 400, 7))
def test_every_flipped_bit_is_noticed(position: int) -> None:
    wire = records(1)
    wire[0] = flipped(wire[0], position, 0x80)
    with pytest.raises(RemoteProtocolError):
        _, ended = deliver(wire)
        if ended is None:
            raise RemoteProtocolError("the stream never ended")
