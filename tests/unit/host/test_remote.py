"""Workers that a connection starts."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from vaultline.core.control import WireLine
from vaultline.core.errors import InputError
from vaultline.host.launcher import NotConfidentialError, check_confidential
from vaultline.host.remote import WorkerUnreachableError, connect_worker, parse_at

PLACES = {
    "tcp:10.0.0.5:7000": (socket.AF_INET, ("10.0.0.5", 7000)),
    "tcp:[::1]:7000": (socket.AF_INET6, ("::1", 7000)),
    "vsock:3:7000": (socket.AF_VSOCK, (3, 7000)),
}


@pytest.mark.parametrize("text", PLACES)
def test_an_address_is_of_tcp_or_vsock(text: str) -> None:
    assert parse_at(text) == PLACES[text]


@pytest.mark.parametrize(
    "text",
    ["", "tcp:", "tcp:host", "tcp:host:0", "tcp:host:70000", "vsock:a:1", "unix:/x", "vsock:1:-1"],
)
def test_anything_else_is_none(text: str) -> None:
    with pytest.raises(InputError, match="not where workers are started"):
        parse_at(text)


def test_a_connection_is_the_workers_line_until_it_is_stopped() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        heard: list[bytes] = []

        def worker() -> None:
            sock, _ = listener.accept()
            with sock:
                heard.append(sock.recv(1 << 16))
                heard.append(sock.recv(1 << 16))

        thread = threading.Thread(target=worker)
        thread.start()
        started = connect_worker(f"tcp:127.0.0.1:{listener.getsockname()[1]}")
        started.say(WireLine(next=("tcp:10.0.0.5:7002",)))
        while not heard:
            thread.join(0.01)
        started.stop()
        thread.join(10.0)
        assert heard[0].endswith(b"\n")
        assert b"10.0.0.5" in heard[0]
        assert heard[1] == b""
        started.say(WireLine(next=()))  # nobody is there any more
        started.close()
        assert (started.wait(), started.pid) == (0, 0)


def test_where_nobody_listens_the_remedy_names_the_cluster_file() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(WorkerUnreachableError, match="nobody starts workers") as caught:
        connect_worker(f"tcp:127.0.0.1:{port}")
    assert "launch:" in str(caught.value.remedy)


def test_a_machine_without_reports_is_no_confidential_vm(tmp_path: Path) -> None:
    check_confidential(tmp_path)
    with pytest.raises(NotConfidentialError, match="no confidential VM"):
        check_confidential(tmp_path / "report")
