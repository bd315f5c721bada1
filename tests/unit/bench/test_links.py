"""Measuring a link over the loopback: honest ends, and what each makes of a dishonest one."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultline.bench import links
from vaultline.bench.links import LinkRate, measure_link, serve_once
from vaultline.core.cluster_file import parse_cluster
from vaultline.core.errors import MachineError, PeerError, RemoteProtocolError
from vaultline.transport.sockets import (
    Address,
    ConnectionLostError,
    Listener,
    TransportTimeoutError,
    connect,
)

ANYWHERE = Address("tcp", "127.0.0.1")
GREETING = b"vaultline link 1"


@contextmanager
def serving() -> Iterator[tuple[Address, Callable[[], BaseException | None]]]:
    """A server in a thread; the second value waits for its end and tells how it ended."""
    addresses: SimpleQueue[Address] = SimpleQueue()
    ends: SimpleQueue[BaseException | None] = SimpleQueue()

    def run() -> None:
        try:
            serve_once(ANYWHERE, timeout_s=10.0, on_listening=addresses.put)
            ends.put(None)
        except BaseException as error:
            ends.put(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield addresses.get(timeout=10.0), lambda: ends.get(timeout=10.0)
    finally:
        thread.join(10.0)


def test_both_directions_and_the_latency_are_measured_and_the_server_ends() -> None:
    with serving() as (address, ended):
        found = measure_link(address, wanted_s=0.02)
        assert ended() is None
    assert found.bytes_per_s > 1e7
    assert found.back_bytes_per_s > 1e7
    assert 0 < found.latency_s < 0.1


def test_the_entry_is_what_a_cluster_file_takes() -> None:
    rate = LinkRate(bytes_per_s=30e6 / 8, back_bytes_per_s=1.25e8, latency_s=0.00512)
    assert rate.entry("edge", "cloud") == (
        "- {source: edge, target: cloud, bandwidth: 30Mbit/s, back: 1Gbit/s, latency: 5.12ms}"
    )
    cluster = parse_cluster(
        "owner: edge\nhosts:\n"
        "- {name: edge, cores: 1, memory: 1GiB}\n- {name: cloud, cores: 1, memory: 1GiB}\n"
        "devices:\n- {name: d, host: cloud, kind: simulated, trust: attested, memory: 1MiB}\n"
        f"links:\n{rate.entry('edge', 'cloud')}\n",
        "c.yaml",
    )
    there, back = cluster.link("edge", "cloud"), cluster.link("cloud", "edge")
    assert there is not None
    assert back is not None
    assert (there.bytes_per_s, back.bytes_per_s) == (rate.bytes_per_s, rate.back_bytes_per_s)
    assert there.latency_s == back.latency_s == rate.latency_s


#: Case -> (what a client says, the error that ends the server).
CLIENTS: dict[str, tuple[bytes, type[PeerError]]] = {
    "a client of something else": (b"GET / HTTP/1.1\r\n\r\n", RemoteProtocolError),
    "a client that hangs up": (GREETING, ConnectionLostError),
    "a client that hangs up amid its bytes": (
        GREETING + struct.pack("!cQ", b"t", 100) + bytes(60),
        ConnectionLostError,
    ),
    "an operation that doesn't exist": (
        GREETING + struct.pack("!cQ", b"x", 1),
        RemoteProtocolError,
    ),
    "more bytes than are served": (
        GREETING + struct.pack("!cQ", b"b", (1 << 30) + 1),
        RemoteProtocolError,
    ),
    "more bytes than are taken": (
        GREETING + struct.pack("!cQ", b"t", (1 << 64) - 1),
        RemoteProtocolError,
    ),
    "requests without end": (
        GREETING + struct.pack("!cQ", b"p", 0) * 201,
        RemoteProtocolError,
    ),
}


@pytest.mark.parametrize("case", CLIENTS)
def test_a_server_ends_with_a_named_error_after(case: str) -> None:
    said, kind = CLIENTS[case]
    with serving() as (address, ended):
        sock = connect(address, timeout_s=10.0)
        with contextlib.suppress(OSError):  # the server may have hung up already
            sock.sendall(said)
            sock.shutdown(socket.SHUT_WR)
        assert type(ended()) is kind
        sock.close()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.binary(max_size=60))
def test_no_bytes_of_a_client_raise_anything_else(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(GREETING + data)
        theirs.shutdown(socket.SHUT_WR)
        try:
            links._serve(links._Wire(ours, 10.0))
        except PeerError:
            return
        assert b"e" in data[::9]  # only a client that ends in order is served without an error


def answering(reply: bytes) -> tuple[Address, threading.Thread]:
    """A server that says the same to everybody and hangs up."""
    listener = Listener(ANYWHERE)

    def run() -> None:
        with listener.accept() as sock:
            sock.sendall(reply)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(1 << 16):
                pass
        listener.close()

    thread = threading.Thread(target=run)
    thread.start()
    return listener.address, thread


PONGS = GREETING + bytes(8) * 21
SERVERS: dict[str, tuple[bytes, type[PeerError]]] = {
    "a server of something else": (b"SSH-2.0-OpenSSH_9.9\r\n", RemoteProtocolError),
    "a server that hangs up": (b"", ConnectionLostError),
    "a rate that is no number": (PONGS + struct.pack("!d", float("nan")), RemoteProtocolError),
    "a rate without end": (PONGS + struct.pack("!d", float("inf")), RemoteProtocolError),
    "a rate below zero": (PONGS + struct.pack("!d", -1.0), RemoteProtocolError),
}


@pytest.mark.parametrize("case", SERVERS)
def test_a_client_ends_with_a_named_error_after(case: str) -> None:
    reply, kind = SERVERS[case]
    address, thread = answering(reply)
    with pytest.raises(kind):
        measure_link(address, wanted_s=0.01)
    thread.join(10.0)


def test_nobody_to_serve_is_a_timeout() -> None:
    with pytest.raises(TransportTimeoutError, match="nobody connected"):
        serve_once(ANYWHERE, timeout_s=0.01)


def test_nobody_who_serves_is_a_timeout() -> None:
    listener = Listener(ANYWHERE)
    listener.close()
    with pytest.raises(TransportTimeoutError, match="nobody answers"):
        measure_link(listener.address, connect_timeout_s=0.01)


def test_an_address_in_use_is_a_named_error() -> None:
    listener = Listener(ANYWHERE)
    with pytest.raises(MachineError, match="cannot listen"):
        serve_once(listener.address)
    listener.close()


def test_no_wait_goes_beyond_the_limit() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(TransportTimeoutError, match="too long"):
        links._Wire(ours, 0.0).receive(1)
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(TransportTimeoutError, match="silent"):
        links._Wire(ours, 0.01).receive(1)
