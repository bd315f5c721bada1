"""Fetching collateral: a service that answers, and ones that do not answer as they should."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import threading
import urllib.parse
from collections.abc import Callable, Iterable, Iterator

import pytest

from vaultline.attest.collateral import items_of
from vaultline.core.errors import MachineError
from vaultline.owner import pccs
from vaultline.owner.pccs import fetch_collateral
from vaultline.testing.intel_vectors import Vector

VECTOR = Vector()
FIELDS = json.loads(VECTOR.collateral())


@contextlib.contextmanager
def service(answer: Callable[[str], Iterable[bytes]]) -> Iterator[str]:
    """An HTTP service: path to the answer's parts, head first; none says nothing at all."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        held: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                path = sock.recv(1 << 16).decode(errors="replace").split(" ")[1]
                held.append(sock)
                with contextlib.suppress(OSError):
                    for part in (parts := answer(path)):
                        sock.sendall(part)
                    if parts:
                        sock.shutdown(socket.SHUT_RDWR)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        for sock in held:
            sock.close()


def http(body: bytes, *headers: str, status: str = "200 OK") -> list[bytes]:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return ["\r\n".join(head).encode() + b"\r\n\r\n", body]


def chain(name: str, field: str) -> str:
    return f"{name}: {urllib.parse.quote(FIELDS[field])}"


def statement(name: str, field: str) -> bytes:
    text, signature = FIELDS[field], FIELDS[f"{field}_signature"]
    return f'{{"{name}":{text},"signature":"{signature}"}}'.encode()


def right(path: str) -> list[bytes]:
    """What a PCCS says (Intel, PCCS API, version 4)."""
    if "pckcrl" in path:
        header = chain("SGX-PCK-CRL-Issuer-Chain", "pck_crl_issuer_chain")
        return http(bytes.fromhex(FIELDS["pck_crl"]), header)
    if "rootcacrl" in path:
        return http(FIELDS["root_ca_crl"].encode())
    if "identity" in path:
        header = chain("SGX-Enclave-Identity-Issuer-Chain", "qe_identity_issuer_chain")
        return http(statement("enclaveIdentity", "qe_identity"), header)
    header = chain("TCB-Info-Issuer-Chain", "tcb_info_issuer_chain")
    return http(statement("tcbInfo", "tcb_info"), header)


def test_a_service_that_answers() -> None:
    with service(right) as url:
        found = fetch_collateral(url, VECTOR.quote())
    assert [item.kind for item in items_of(found)] == ["sgx", "simulated"]
    assert {name: json.loads(found)[name] for name in FIELDS} == FIELDS


WRONG: dict[str, Callable[[str], Iterable[bytes]]] = {
    "sends somewhere else": lambda path: http(
        b"", "Location: file:///etc/passwd", status="302 Found"
    ),
    "answers something else": lambda path: http(b"\0\1\2"),
    "is no HTTP service": lambda path: [b"hello\r\n"],
    "says nothing": lambda path: [],
}


@pytest.mark.parametrize("answer", WRONG.values(), ids=WRONG.keys())
def test_a_service_that(
    answer: Callable[[str], Iterable[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pccs, "FETCH_S", 2)
    with service(answer) as url, pytest.raises(MachineError, match="cannot be fetched") as caught:
        fetch_collateral(url, VECTOR.quote())
    assert caught.value.got
    assert caught.value.remedy


@pytest.mark.full
def test_a_service_that_does_not_stop_is_left() -> None:
    """Where there is no end, there is one to the memory of who takes it."""

    def endless(path: str) -> Iterable[bytes]:
        header = chain("SGX-PCK-CRL-Issuer-Chain", "pck_crl_issuer_chain")
        head = f"HTTP/1.1 200 OK\r\n{header}\r\n\r\n".encode()
        return itertools.chain([head], itertools.repeat(bytes(1 << 20)))

    with service(endless) as url, pytest.raises(MachineError, match="cannot be fetched"):
        fetch_collateral(url, VECTOR.quote())


@pytest.mark.parametrize(
    "url", ["", "x", "file:///etc/passwd", "http://[", "http://\0", "x" * 200_000]
)
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(MachineError, match="cannot be fetched"):
        fetch_collateral(url, VECTOR.quote())
