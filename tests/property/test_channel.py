"""Invariants of records and messages: whatever goes in comes out, and nothing else ever does."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from vaultline.channel.keys import derive_hop_keys
from vaultline.channel.messages import MessageReader, MessageReceived, MessageWriter, StreamEnded
from vaultline.channel.records import HEADER, RecordKind, RecordSealer
from vaultline.core.errors import RemoteProtocolError

KEYS = derive_hop_keys(b"k" * 32, hop=0, epoch=1)
fixed = settings(derandomize=True, deadline=None, max_examples=150)


def pump(reader: MessageReader, data: bytes, sizes: list[int], message_bytes: int) -> list[bytes]:
    """Feed bytes in pieces of the given sizes (cycled); returns the messages that came out."""
    target, out, turn = memoryview(bytearray(message_bytes)), [], 0
    while True:
        event = reader.next_event(target)
        if isinstance(event, MessageReceived):
            out.append(bytes(target))
            continue
        if isinstance(event, StreamEnded):
            assert event.messages == len(out)
            return out
        if not data:
            raise EOFError
        buffer = reader.want()
        assert len(buffer) > 0
        count = min(len(buffer), len(data), sizes[turn % len(sizes)])
        turn += 1
        buffer[:count], data = data[:count], data[count:]
        reader.received(count)


@fixed
@given(
    message_bytes=st.integers(1, 5000),
    fragment_bytes=st.integers(1, 2000),
    count=st.integers(0, 4),
    sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=5),
)
def test_what_is_sent_arrives_however_it_is_cut(
    message_bytes: int, fragment_bytes: int, count: int, sizes: list[int]
) -> None:
    writer = MessageWriter(KEYS, message_bytes=message_bytes, fragment_bytes=fragment_bytes)
    messages = [bytes((n * 31 + i) & 255 for i in range(message_bytes)) for n in range(count)]
    wire = b"".join(bytes(r) for m in messages for r in writer.message(memoryview(m)))
    wire += bytes(writer.end())
    reader = MessageReader(KEYS, message_bytes=message_bytes, fragment_bytes=fragment_bytes)
    assert pump(reader, wire, sizes, message_bytes) == messages


@fixed
@given(
    edits=st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), min_size=1, max_size=6),
    drop=st.tuples(st.integers(0, 1500), st.integers(0, 40)),
)
def test_mutated_bytes_raise_only_remote_protocol_errors(
    edits: list[tuple[int, int]], drop: tuple[int, int]
) -> None:
    writer = MessageWriter(KEYS, message_bytes=700, fragment_bytes=300)
    message = bytes(i & 255 for i in range(700))
    wire = bytearray(b"".join(bytes(r) for r in writer.message(memoryview(message))))
    wire += writer.end()
    original = bytes(wire)
    for position, value in edits:
        wire[position % len(wire)] = value
    del wire[drop[0] % len(wire) : drop[0] % len(wire) + drop[1]]
    reader = MessageReader(KEYS, message_bytes=700, fragment_bytes=300)
    try:
        out = pump(reader, bytes(wire), [997], 700)
    except (RemoteProtocolError, EOFError):
        return
    assert bytes(wire) == original
    assert out == [message]


@fixed
@given(data=st.binary(max_size=400))
def test_garbage_raises_only_remote_protocol_errors(data: bytes) -> None:
    reader = MessageReader(KEYS, message_bytes=100)
    try:
        pump(reader, data, [64], 100)
    except (RemoteProtocolError, EOFError):
        return
    raise AssertionError("garbage was taken for a stream")


def test_no_nonce_repeats() -> None:
    sealer, seen = RecordSealer(KEYS), set()
    out = memoryview(bytearray(200))
    for _ in range(500):
        size = sealer.seal_into(RecordKind.DATA, b"same", out)
        ciphertext = bytes(out[HEADER.size : size])
        assert ciphertext not in seen
        seen.add(ciphertext)
