"""A tap on the switch that joins network namespaces: what the host and its network would see.

It needs root, as the namespaces do.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections import defaultdict
from typing import Self

from vaultline.bench.namespaces import Network, in_namespace

_ETH_P_ALL = 0x0003
_ETH_P_IP = 0x0800
_PACKET_OUTGOING = 4
_SOL_PACKET, _PACKET_STATISTICS, _SO_RCVBUFFORCE = 263, 6, 33
#: The kernel hands over segments of up to 64 KiB and their headers.
_PACKET_BYTES_MAX = 1 << 17
_TAP_BUFFER_BYTES = 256 << 20


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

    def __exit__(self, *_: object) -> None:
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
