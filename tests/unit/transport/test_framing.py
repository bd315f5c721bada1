"""Messages over a stream: whatever the pieces, the same messages; nothing else gets through."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultline.core.errors import RemoteProtocolError
from vaultline.core.serde import Struct, from_msgpack
from vaultline.transport.framing import (
    Link,
    MessageReader,
    encode,
    receive_message,
    send_message,
)
from vaultline.transport.sockets import ConnectionLostError, TransportTimeoutError

BYTES_MAX = 1000


class Note(Struct, frozen=True):
    """A message that says what follows it."""

    text: str
    sizes: tuple[int, ...] = ()


def decode(data: bytearray) -> tuple[Note, tuple[int, ...]]:
    note = from_msgpack(bytes(data), Note, what="a note", bytes_max=BYTES_MAX)
    return note, note.sizes


def reader() -> MessageReader[Note]:
    return MessageReader(decode, bytes_max=BYTES_MAX)


def note(text: str, *payloads: bytes) -> tuple[Note, tuple[bytes, ...]]:
    return Note(text=text, sizes=tuple(map(len, payloads))), payloads


def wire(*notes: tuple[Note, tuple[bytes, ...]]) -> bytes:
    return b"".join(encode(message) + b"".join(payloads) for message, payloads in notes)


def fed(data: bytes, piece: int) -> list[tuple[Note, tuple[bytearray, ...]]]:
    """What a reader finds in pieces of at most this size."""
    reading, found = reader(), []
    while data:
        view = reading.want()
        count = min(len(view), piece, len(data))
        view[:count], data = data[:count], data[count:]
        received = reading.received(count)
        if received is not None:
            found.append(received)
    assert reading.between
    return found


PAYLOADS = st.lists(st.binary(max_size=40), max_size=3)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=9), PAYLOADS), max_size=6), st.integers(1, 50))
def test_messages_come_out_whole_however_they_are_cut(
    texts: list[tuple[str, list[bytes]]], piece: int
) -> None:
    notes = [note(text, *payloads) for text, payloads in texts]
    found = fed(wire(*notes), piece)
    assert [message for message, _ in found] == [message for message, _ in notes]
    for (_, got), (_, sent) in zip(found, notes, strict=True):
        assert list(map(bytes, got)) == [payload for payload in sent if payload]


@pytest.mark.parametrize(
    ("case", "data"),
    [
        ("a length of nothing", b"\0\0\0\0"),
        ("a length beyond the limit", (BYTES_MAX + 1).to_bytes(4, "big")),
        ("no message", b"\0\0\0\1\xc1"),
        ("another message", encode(7)),
    ],
)
def test_what_is_no_message_is_refused(case: str, data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        fed(data, 3)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    with here, there:
        yield here, there


def test_a_link_sends_what_fits_and_keeps_the_rest(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    here, there = ends
    left, right = (Link(sock, decode, bytes_max=BYTES_MAX) for sock in (here, there))
    sent = [note(f"{number}", bytes([number]) * 300_000) for number in range(8)]
    for message, payloads in sent:
        left.send(message, payloads)
    assert not left.flush()
    assert left.waiting_bytes > 0
    found: list[tuple[Note, tuple[bytearray, ...]]] = []
    while len(found) < len(sent):
        found += right.receive()
        left.flush()
    assert left.waiting_bytes == 0
    assert found == [(message, tuple(map(bytearray, parts))) for message, parts in sent]


def test_what_came_before_the_end_counts(ends: tuple[socket.socket, socket.socket]) -> None:
    here, there = ends
    link = Link(there, decode, bytes_max=BYTES_MAX)
    send_message(here, Note(text="last"))
    here.close()
    assert [message.text for message, _ in link.receive()] == ["last"]
    with pytest.raises(ConnectionLostError):
        link.receive()


def test_nothing_to_read_is_no_end(ends: tuple[socket.socket, socket.socket]) -> None:
    assert Link(ends[1], decode, bytes_max=BYTES_MAX).receive() == []


def test_sending_to_nobody_is_a_lost_connection(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    here, there = ends
    link = Link(here, decode, bytes_max=BYTES_MAX)
    there.close()
    link.send(Note(text="hello"))
    with pytest.raises(ConnectionLostError):
        link.flush()
    with pytest.raises(ConnectionLostError):
        send_message(here, Note(text="hello"))


def test_threads_send_and_receive(ends: tuple[socket.socket, socket.socket]) -> None:
    here, there = ends
    reading = reader()
    for message, payloads in (note("one", b"x" * 9, b"y"), note("two")):
        send_message(here, message, payloads)
        got, parts = receive_message(there, reading, timeout_s=5.0)
        assert (got, tuple(map(bytes, parts))) == (message, payloads)
    here.close()
    with pytest.raises(ConnectionLostError):
        receive_message(there, reading)


def test_a_silent_peer_is_given_up(ends: tuple[socket.socket, socket.socket]) -> None:
    here, there = ends
    here.send(encode(Note(text="half"))[:3])
    with pytest.raises(TransportTimeoutError):
        receive_message(there, reader(), timeout_s=0.01)
