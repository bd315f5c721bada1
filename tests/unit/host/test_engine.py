"""The local engine with workers of other machines that don't do as they were asked."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from vaultline.core.control import ReadyLine
from vaultline.core.hostline import HostLine, LaunchRequest, LaunchWorker, Start, WorkerLostLine
from vaultline.core.serde import canonical_json, from_json
from vaultline.host import engine as module
from vaultline.host.engine import LocalEngine


@contextmanager
def elsewhere(ready: ReadyLine) -> Iterator[str]:
    """A machine whose worker says that it is ready, and waits until its line ends."""
    listener = socket.create_server(("127.0.0.1", 0))

    def worker() -> None:
        sock, _ = listener.accept()
        with sock:
            sock.sendall(canonical_json(ready) + b"\n")
            while sock.recv(1 << 16):
                pass

    thread = threading.Thread(target=worker, daemon=True)
    thread.start()
    with listener:
        yield f"tcp:127.0.0.1:{listener.getsockname()[1]}"
    thread.join(10.0)


def run(at: str) -> tuple[int, list[Any]]:
    """One worker of that machine: the exit code, and what the owner is told."""
    start = Start(provider="tdx", at=at)
    worker = LaunchWorker(
        name="w", stage=0, cores=(), vault="/v/model.vault", start=start, busy_s_max=10.0
    )
    results = ("tcp:127.0.0.1:9",)
    request = LaunchRequest(workers=(worker,), transport="tcp", results=results)
    (host_in, owner_out), (owner_in, host_out) = os.pipe(), os.pipe()
    code = LocalEngine(request, owner_in=host_in, owner_out=host_out).run()
    os.close(host_out)
    with os.fdopen(owner_in, "rb") as heard:
        said = [from_json(line, HostLine, what="a line") for line in heard]  # type: ignore[arg-type]
    os.close(host_in)
    os.close(owner_out)
    return code, said


@pytest.mark.parametrize("wrong", ["control", "data"])
def test_no_worker_has_others_connect_to_unix_sockets_of_their_own_machine(wrong: str) -> None:
    named = {"control": "tcp:127.0.0.1:1", "data": "tcp:127.0.0.1:2"} | {wrong: "unix:/run/bus"}
    ready = ReadyLine(control=named["control"], data=(named["data"],), measurement="", hardening=())
    with elsewhere(ready) as at:
        code, said = run(at)
    (lost,) = said
    assert isinstance(lost, WorkerLostLine)
    assert (code, lost.code) == (4, "RemoteProtocolError")
    assert "not asked to" in lost.message


@pytest.mark.parametrize("error", [ConnectionResetError, TimeoutError, OSError(113, "no route")])
def test_a_line_to_another_machine_may_break_in_any_way(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: int) -> bytes:
        raise error

    monkeypatch.setattr(module.os, "read", fail)
    assert module._read(7) == b""
