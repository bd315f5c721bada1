"""A small RTSP server on loopback: H.264 over RTP over the RTSP connection itself.

Enough of RFC 2326 (RTSP 1.0), RFC 6184 (H.264 in RTP) and RFC 7617 (Basic authentication) for a
client to connect, play and be cut off.
"""

from __future__ import annotations

import base64
import re
import socket
import socketserver
import struct
import threading
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Self

import av

from vaultline.video.pixels import Pixels

_RTP_PAYLOAD_BYTES = 1400
_RTP_CLOCK_HZ = 90_000
_PAYLOAD_TYPE = 96
_FRAMES_PER_SECOND = 25


def encode(images: Sequence[Pixels]) -> list[list[bytes]]:
    """H.264 without reordering: for each picture its NAL units; the first picture has SPS, PPS."""
    height, width = images[0].shape[:2]
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.time_base = Fraction(1, _FRAMES_PER_SECOND)
    encoder.thread_count = 1
    encoder.options = {"preset": "ultrafast", "tune": "zerolatency", "crf": "10", "g": "10"}
    packets = []
    for number, image in enumerate(images):
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts = number
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    return [[unit for unit in re.split(b"\0\0\0?\1", bytes(p)) if unit] for p in packets]


def packetise(unit: bytes) -> Iterator[bytes]:
    """RTP payloads of one NAL unit: whole, or in fragments (FU-A, RFC 6184 section 5.8)."""
    if len(unit) <= _RTP_PAYLOAD_BYTES:
        yield unit
        return
    indicator = (unit[0] & 0xE0) | 28
    for start in range(1, len(unit), _RTP_PAYLOAD_BYTES):
        first, last = start == 1, start + _RTP_PAYLOAD_BYTES >= len(unit)
        header = (first << 7) | (last << 6) | (unit[0] & 0x1F)
        yield bytes((indicator, header)) + unit[start : start + _RTP_PAYLOAD_BYTES]


class RtspServer:
    """Plays pictures in a loop to everyone who connects.

    Attributes:
        connections: how many clients have been played to so far.
    """

    def __init__(
        self,
        images: Sequence[Pixels],
        *,
        frames_per_second: float = 100.0,
        credentials: str = "",
        close_after: int | None = None,
        stall_after: int | None = None,
        port: int = 0,
    ) -> None:
        """Start listening.

        Args:
            images: HxWx3 RGB with even sides, all of one size.
            frames_per_second: how fast they are sent (their timestamps say 25).
            credentials: ``user:password`` that a client must present.
            close_after, stall_after: frames of a connection after which it is closed, or falls
                silent.
            port: 0 for any free one.
        """
        self.frames = encode(images)
        self.pause_s = 1 / frames_per_second
        self.credentials = credentials
        self.close_after = close_after
        self.stall_after = stall_after
        self.connections = 0
        self.stopped = threading.Event()
        self._clients: list[socket.socket] = []
        handler = type("Handler", (_Connection,), {"owner": self})
        self._server = _Server(("127.0.0.1", port), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def port(self) -> int:
        """The TCP port it listens on."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """The stream's address, with the credentials."""
        user = f"{self.credentials}@" if self.credentials else ""
        return f"rtsp://{user}127.0.0.1:{self.port}/camera"

    def register(self, client: socket.socket) -> None:
        """Remember a connection, so that it can be cut."""
        self._clients.append(client)

    def kill(self) -> None:
        """Stop listening and cut every connection, as when the camera loses power."""
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()
        for client in self._clients:
            try:
                client.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # The client was faster.
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.stopped.is_set():
            self.kill()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away mid-sentence is usual."""


class _Connection(socketserver.StreamRequestHandler):
    owner: RtspServer

    def handle(self) -> None:
        self.owner.register(self.connection)
        while request := self._request():
            method, headers = request
            answer = self._answer(method, headers)
            lines = [answer, f"CSeq: {headers.get('cseq', '0')}", "Session: 1"]
            body = ""
            if method == "DESCRIBE" and " 200 " in answer:
                body = self._description()
                lines += ["Content-Type: application/sdp", f"Content-Length: {len(body)}"]
            elif method == "SETUP":
                lines.append("Transport: RTP/AVP/TCP;unicast;interleaved=0-1")
            elif " 401 " in answer:
                lines.append('WWW-Authenticate: Basic realm="camera"')
            self.wfile.write("\r\n".join([*lines, "", body]).encode())
            if method == "PLAY":
                self._play()
                return
            if method == "TEARDOWN":
                return

    def _request(self) -> tuple[str, dict[str, str]] | None:
        """(method, headers) of the next request; None at the end."""
        first = self.rfile.readline().decode("latin-1").split()
        headers: dict[str, str] = {}
        while line := self.rfile.readline().decode("latin-1").strip():
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        return (first[0], headers) if first else None

    def _answer(self, method: str, headers: dict[str, str]) -> str:
        wanted = base64.b64encode(self.owner.credentials.encode()).decode()
        known = headers.get("authorization") == f"Basic {wanted}"
        if self.owner.credentials and method != "OPTIONS" and not known:
            return "RTSP/1.0 401 Unauthorized"
        if method in ("OPTIONS", "DESCRIBE", "SETUP", "PLAY", "TEARDOWN"):
            return "RTSP/1.0 200 OK"
        return "RTSP/1.0 405 Method Not Allowed"

    def _description(self) -> str:
        parameters = [
            base64.b64encode(u).decode() for u in self.owner.frames[0] if u[0] & 31 in (7, 8)
        ]
        lines = [
            "v=0",
            "o=- 0 0 IN IP4 127.0.0.1",
            "s=camera",
            "t=0 0",
            f"m=video 0 RTP/AVP {_PAYLOAD_TYPE}",
            f"a=rtpmap:{_PAYLOAD_TYPE} H264/{_RTP_CLOCK_HZ}",
            f"a=fmtp:{_PAYLOAD_TYPE} packetization-mode=1;"
            f"sprop-parameter-sets={','.join(parameters)}",
            "a=control:track0",
            "",
        ]
        return "\r\n".join(lines)

    def _play(self) -> None:
        owner = self.owner
        owner.connections += 1
        sequence, number = 0, 0
        while not owner.stopped.wait(owner.pause_s):
            if number == owner.close_after:
                return
            if number == owner.stall_after:
                owner.stopped.wait()
                return
            payloads = [p for u in owner.frames[number % len(owner.frames)] for p in packetise(u)]
            for position, payload in enumerate(payloads, start=1):
                marker = (position == len(payloads)) << 7
                time = number * _RTP_CLOCK_HZ // _FRAMES_PER_SECOND & 0xFFFFFFFF
                rtp = struct.pack(
                    "!BBHII", 0x80, marker | _PAYLOAD_TYPE, sequence & 0xFFFF, time, 0x5A17
                )
                message = rtp + payload
                self.wfile.write(b"$\0" + struct.pack("!H", len(message)) + message)
                sequence += 1
            number += 1
