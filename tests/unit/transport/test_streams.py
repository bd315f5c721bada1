"""The transport contract, held by both kinds of sockets."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vaultline.channel.keys import derive_hop_keys
from vaultline.channel.records import RecordHeaderError, RecordTamperedError
from vaultline.core.control import ChallengeMessage, GrantedMessage, RefusedMessage
from vaultline.core.errors import InputError, RemoteProtocolError
from vaultline.owner.release import RefusedByPeerError, receive_answer
from vaultline.transport.control import receive_control, send_control
from vaultline.transport.sockets import (
    Address,
    ConnectionLostError,
    Listener,
    TransportTimeoutError,
    connect,
)
from vaultline.transport.streams import HopReceiver, HopSender

KEYS = derive_hop_keys(b"s" * 32, hop=3, epoch=9)
OTHER_KEYS = derive_hop_keys(b"x" * 32, hop=3, epoch=9)
SIZE = 3_000_000


@pytest.fixture(params=["unix", "tcp"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listener]:
    text = f"unix:{tmp_path}/s" if request.param == "unix" else "tcp:127.0.0.1:0"
    listener = Listener(Address.parse(text))
    yield listener
    listener.close()


def in_thread(work: object) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)  # type: ignore[arg-type]
    thread.start()
    return thread


def receiver(listener: Listener, size: int = SIZE) -> HopReceiver:
    return HopReceiver(listener.accept, KEYS, message_bytes=size)


def test_messages_arrive_and_the_end_is_told_apart_from_a_loss(listener: Listener) -> None:
    message = bytes(range(256)) * (SIZE // 256) + bytes(SIZE % 256)

    def send() -> None:
        sender = HopSender(connect(listener.address, timeout_s=5), KEYS, message_bytes=SIZE)
        sender.send(memoryview(message))
        sender.send(memoryview(message))
        sender.end()

    thread, target = in_thread(send), memoryview(bytearray(SIZE))
    hop = receiver(listener)
    assert hop.receive(target)
    assert bytes(target) == message
    assert hop.receive(target)
    assert hop.clock.crypto_ns > 0
    assert not hop.receive(target)
    thread.join()


def test_a_peer_that_hangs_up_without_an_end_is_a_loss(listener: Listener) -> None:
    def send() -> None:
        sender = HopSender(connect(listener.address, timeout_s=5), KEYS, message_bytes=SIZE)
        sender.send(memoryview(bytes(SIZE)))
        sender.close()

    thread, target = in_thread(send), memoryview(bytearray(SIZE))
    hop = receiver(listener)
    assert hop.receive(target)
    with pytest.raises(ConnectionLostError):
        hop.receive(target)
    thread.join()


def test_strangers_without_the_key_do_not_break_the_hop(listener: Listener) -> None:
    def send() -> None:
        with connect(listener.address, timeout_s=5) as noise:
            noise.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
        with connect(listener.address, timeout_s=5):
            pass
        forger = HopSender(connect(listener.address, timeout_s=5), OTHER_KEYS, message_bytes=10)
        forger.send(memoryview(b"forgedforg"))
        sender = HopSender(connect(listener.address, timeout_s=5), KEYS, message_bytes=10)
        sender.send(memoryview(b"helloworld"))
        sender.end()
        forger.close()

    thread, target = in_thread(send), memoryview(bytearray(10))
    hop = receiver(listener, 10)
    assert hop.receive(target)
    assert bytes(target) == b"helloworld"
    thread.join()


def test_too_many_strangers_end_the_hop(listener: Listener) -> None:
    def send() -> None:
        for _ in range(20):
            try:
                with connect(listener.address, timeout_s=5) as noise:
                    noise.sendall(bytes(64))
            except (OSError, TransportTimeoutError, ConnectionLostError):
                return

    thread = in_thread(send)
    hop = receiver(listener, 10)
    with pytest.raises((RecordHeaderError, ConnectionLostError)):
        hop.receive(memoryview(bytearray(10)))
    listener.close()
    thread.join()


def test_an_established_peer_gets_no_second_chance(listener: Listener) -> None:
    def send() -> None:
        sock = connect(listener.address, timeout_s=5)
        sender = HopSender(sock, KEYS, message_bytes=10)
        sender.send(memoryview(b"helloworld"))
        sock.sendall(bytes(58))

    thread, target = in_thread(send), memoryview(bytearray(10))
    hop = receiver(listener, 10)
    assert hop.receive(target)
    with pytest.raises((RecordHeaderError, RecordTamperedError)):
        hop.receive(target)
    thread.join()


def test_closing_wakes_a_blocked_receiver(listener: Listener) -> None:
    errors: list[Exception] = []
    ready = threading.Event()
    hop = HopReceiver(listener.accept, KEYS, message_bytes=10)

    def receive() -> None:
        ready.set()
        try:
            hop.receive(memoryview(bytearray(10)))
        except Exception as error:
            errors.append(error)

    thread = in_thread(receive)
    ready.wait()
    listener.close()
    thread.join(5)
    assert not thread.is_alive()
    assert isinstance(errors[0], ConnectionLostError)


class ClosesMeanwhile:
    """A connection whose receiver is closed by another thread between two of its system calls."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.hop: HopReceiver | None = None

    def recv_into(self, buffer: memoryview) -> int:
        count = self.sock.recv_into(buffer)
        assert self.hop is not None
        self.hop.close()
        return count

    def shutdown(self, how: int) -> None:
        self.sock.shutdown(how)

    def close(self) -> None:
        self.sock.close()


def test_closing_between_two_reads_is_a_loss() -> None:
    ours, theirs = socket.socketpair()
    ours.sendall(bytes(5))  # less than a header, so that it reads again
    meanwhile = ClosesMeanwhile(theirs)
    hop = HopReceiver(lambda: meanwhile, KEYS, message_bytes=10)  # type: ignore[arg-type,return-value]
    meanwhile.hop = hop
    with pytest.raises(ConnectionLostError):
        hop.receive(memoryview(bytearray(10)))


def test_closing_while_a_connection_is_taken_hangs_it_up() -> None:
    ours, theirs = socket.socketpair()
    hops: list[HopReceiver] = []

    def accept() -> socket.socket:
        hops[0].close()
        return theirs

    hops.append(HopReceiver(accept, KEYS, message_bytes=10))
    with pytest.raises(ConnectionLostError):
        hops[0].receive(memoryview(bytearray(10)))
    assert ours.recv(1) == b""


def test_nobody_at_the_address_is_a_timeout(tmp_path: Path) -> None:
    with pytest.raises(TransportTimeoutError):
        connect(Address.parse(f"unix:{tmp_path}/nobody"), timeout_s=0.05)


@pytest.mark.parametrize(
    "text", ["", "unix:", "unix:relative", "tcp:host", "tcp::80", "tcp:h:65536", "udp:h:1"]
)
def test_not_an_address(text: str) -> None:
    with pytest.raises(InputError):
        Address.parse(text)


def test_addresses_read_back_as_written() -> None:
    for text in ("unix:/tmp/a", "tcp:127.0.0.1:80", "tcp:[::1]:9"):
        assert str(Address.parse(text)) == text


class TestControl:
    def test_a_message_arrives(self) -> None:
        ours, theirs = socket.socketpair()
        send_control(ours, ChallengeMessage(challenge=b"abc"))
        assert receive_control(theirs, ChallengeMessage, timeout_s=5).challenge == b"abc"

    def test_a_refusal_instead_of_the_answer_is_an_error(self) -> None:
        ours, theirs = socket.socketpair()
        send_control(ours, RefusedMessage(code="X", message="no"))
        with pytest.raises(RefusedByPeerError, match="no"):
            receive_answer(theirs, GrantedMessage, timeout_s=5)

    def test_another_message_is_refused(self) -> None:
        ours, theirs = socket.socketpair()
        send_control(ours, ChallengeMessage(challenge=b""))
        with pytest.raises(RemoteProtocolError):
            receive_control(theirs, GrantedMessage, timeout_s=5)

    def test_an_oversized_length_is_refused_before_allocation(self) -> None:
        ours, theirs = socket.socketpair()
        ours.sendall(struct.pack("!I", 2**32 - 1))
        with pytest.raises(RemoteProtocolError, match="limit"):
            receive_control(theirs, GrantedMessage, timeout_s=5)

    @pytest.mark.parametrize("data", [b"\xff" * 20, b"\x81\xa4type", b"", b"\x81\xa4type\xa3abc"])
    def test_garbage_is_a_protocol_error(self, data: bytes) -> None:
        ours, theirs = socket.socketpair()
        ours.sendall(struct.pack("!I", len(data)) + data)
        with pytest.raises(RemoteProtocolError):
            receive_control(theirs, GrantedMessage, timeout_s=5)

    def test_nesting_without_end_is_a_protocol_error(self) -> None:
        """In a value before the tag, which the decoder has to skip to know the message's kind."""
        nested = b"\x82\xa1x" + b"\x91" * 100_000 + b"\xc0\xa4type\xa7granted"
        ours, theirs = socket.socketpair()
        thread = in_thread(lambda: ours.sendall(struct.pack("!I", len(nested)) + nested))
        with pytest.raises(RemoteProtocolError, match="malformed"):
            receive_control(theirs, GrantedMessage, timeout_s=5)
        thread.join()

    def test_silence_is_a_timeout_however_slowly_bytes_drip(self) -> None:
        ours, theirs = socket.socketpair()
        ours.sendall(b"\0\0")
        with pytest.raises(TransportTimeoutError):
            receive_control(theirs, GrantedMessage, timeout_s=0.05)

    def test_a_closed_connection_is_a_loss(self) -> None:
        ours, theirs = socket.socketpair()
        ours.close()
        with pytest.raises(ConnectionLostError):
            receive_control(theirs, GrantedMessage, timeout_s=5)
