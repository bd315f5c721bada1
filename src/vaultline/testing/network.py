"""Networks for tests: namespaces joined by a switch, a tap on its wire, a man in the middle.

Namespaces and the tap need root; the man in the middle is an ordinary proxy inside a host that has
turned against its owner.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
import socket
import struct
import subprocess
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_ETH_P_ALL = 0x0003
_ETH_P_IP = 0x0800
_PACKET_OUTGOING = 4
_SOL_PACKET, _PACKET_STATISTICS, _SO_RCVBUFFORCE = 263, 6, 33
#: The kernel hands over segments of up to 64 KiB and their headers.
_PACKET_BYTES_MAX = 1 << 17
_TAP_BUFFER_BYTES = 256 << 20
_SUBNET = "10.77.0"
_counter = itertools.count()


def why_no_namespaces() -> str | None:
    """Why network namespaces can't be made here, or None where they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need iproute2"
    try:
        with Network(("probe",)):
            return None
    except subprocess.CalledProcessError as error:
        return f"network namespaces can't be made here: {error.stderr.strip()}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Network:
    """Places of their own, each with an address on one switch. A context manager.

    Attributes:
        netns: name of each place's namespace.
        address: each place's address.
    """

    def __init__(self, places: Sequence[str]) -> None:
        prefix = f"vlt{os.getpid():x}-{next(_counter)}"
        self.switch = f"{prefix}-switch"
        self.netns = {place: f"{prefix}-{place}" for place in places}
        self.address = {place: f"{_SUBNET}.{n}" for n, place in enumerate(places, start=1)}

    def __enter__(self) -> Self:
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._remove()

    def _make(self) -> None:
        _ip("netns", "add", self.switch)
        _ip("-n", self.switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", self.switch, "link", "set", "br0", "up")
        for number, (place, name) in enumerate(self.netns.items()):
            _ip("netns", "add", name)
            port = f"port{number}"
            veth = ("type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("-n", self.switch, "link", "add", port, *veth)
            _ip("-n", self.switch, "link", "set", port, "master", "br0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "address", "add", f"{self.address[place]}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")

    def _remove(self) -> None:
        """A namespace takes its end of every wire with it."""
        for name in (*self.netns.values(), self.switch):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "delete", name)

    def call(self, place: str, function: Callable[[], T]) -> T:
        """Run a function in a place: its sockets, threads and processes belong there."""
        return in_namespace(self.netns[place], function)


def in_namespace(name: str, function: Callable[[], T]) -> T:
    """Run a function in a thread of its own that has entered a network namespace.

    Namespaces belong to threads; threads and processes that the function starts inherit its own.

    Raises:
        OSError: no such namespace, or no right to enter it.
        BaseException: whatever the function raised.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            with Path(f"/run/netns/{name}").open() as file:
                if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), f"cannot enter namespace {name}")
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name=f"in {name}")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


class Tap:
    """Everything that leaves the ports of a network's switch, from now on. A context manager."""

    def __init__(self, network: Network) -> None:
        self._sock = in_namespace(network.switch, self._open)
        self._packets: list[bytes] = []
        self._thread = threading.Thread(target=self._read, name="tap", daemon=True)
        self._stop, self._stopped = os.pipe()
        self.dropped = 0

    @staticmethod
    def _open() -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _TAP_BUFFER_BYTES)
        sock.settimeout(0.1)
        return sock

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._stopped)
        self._thread.join()
        statistics = self._sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        self.dropped = struct.unpack("=II", statistics)[1]
        self._sock.close()
        os.close(self._stop)

    def _read(self) -> None:
        """Until told to stop, and then until nothing waits."""
        os.set_blocking(self._stop, False)
        while True:
            try:
                packet, source = self._sock.recvfrom(_PACKET_BYTES_MAX)
            except TimeoutError:
                if self._told_to_stop():
                    return
                continue
            # On its way through a bridge a packet is seen twice: coming in, and going out.
            if source[2] == _PACKET_OUTGOING and source[1] == _ETH_P_IP:
                self._packets.append(packet)

    def _told_to_stop(self) -> bool:
        try:
            return os.read(self._stop, 1) == b""
        except BlockingIOError:
            return False

    @property
    def raw(self) -> bytes:
        """All packets, headers too, one after another."""
        return b"".join(self._packets)

    def streams(self) -> dict[tuple[str, int, str, int], bytes]:
        """The bytes of every TCP connection and direction, put together again.

        Keys are (source, its port, target, its port). Nothing may be missing: a gap stays zero.
        """
        starts: dict[tuple[str, int, str, int], int] = {}
        parts: dict[tuple[str, int, str, int], dict[int, bytes]] = defaultdict(dict)
        for packet in self._packets:
            segment = _segment(packet)
            if segment is None:
                continue
            flow, sequence, opens, payload = segment
            if opens:
                starts[flow] = sequence + 1
            if payload:
                parts[flow][sequence] = payload
        return {flow: _joined(parts[flow], start) for flow, start in starts.items()}


def _segment(
    packet: bytes,
) -> tuple[tuple[str, int, str, int], int, bool, bytes] | None:
    """(flow, sequence number, whether it opens the flow, payload) of a TCP segment."""
    header = 14
    if packet[header + 9] != socket.IPPROTO_TCP:
        return None
    tcp = header + (packet[header] & 0x0F) * 4
    end = header + struct.unpack_from("!H", packet, header + 2)[0]
    if end == header:  # a segment too large for the field
        end = len(packet)
    source, target = (socket.inet_ntoa(packet[header + at : header + at + 4]) for at in (12, 16))
    source_port, target_port, sequence = struct.unpack_from("!HHI", packet, tcp)
    payload = packet[tcp + (packet[tcp + 12] >> 4) * 4 : end]
    opens = bool(packet[tcp + 13] & 0x02)
    return (source, source_port, target, target_port), sequence, opens, payload


def _joined(parts: dict[int, bytes], start: int) -> bytes:
    data = bytearray()
    for sequence, payload in parts.items():
        offset = (sequence - start) & 0xFFFFFFFF
        if len(data) < offset + len(payload):
            data.extend(bytes(offset + len(payload) - len(data)))
        data[offset : offset + len(payload)] = payload
    return bytes(data)
