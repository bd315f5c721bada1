"""Frames from a camera over RTSP: always the newest, through stalls and reconnections."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import av

from vaultline.core.errors import InputError, MachineError, PeerError, VaultlineError
from vaultline.video.frames import Frame, Source, check_limit, reason, redact
from vaultline.video.pixels import Pixels, Scaler


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait for a camera.

    Attributes:
        connect_s: for a connection and the description of the stream.
        stall_s: without a frame, before a connection counts as lost. Many cameras send a key
            frame only every few seconds, and nothing can be shown before one.
        retries: reconnections in a row without a frame, before giving up.
        backoff_s, backoff_max_s: pause before the first of them, doubled for each next.
    """

    connect_s: float = 10.0
    stall_s: float = 10.0
    retries: int = 6
    backoff_s: float = 0.5
    backoff_max_s: float = 8.0


#: Frames kept for a consumer that is briefly slower than the camera; then the oldest is dropped.
_QUEUE_FRAMES = 4
#: RTSP over TCP passes firewalls and loses nothing. The stream's description names the codec, so
#: probing may end with the first frame or two (FFmpeg keeps them, unless told ``nobuffer``).
_OPTIONS = {"rtsp_transport": "tcp", "analyzeduration": "0", "probesize": "2048"}
#: When a read times out, FFmpeg first hands out what it still holds, and then waits once more.
_TIMEOUT_SHARE = 0.5
#: The wait for the thread at the end: ample between two frames, short for a person.
_CLOSE_S = 2.0


class Camera(Source):
    """The newest frames of an RTSP stream; ``timestamp_s`` is the arrival, from the opening on.

    A thread decodes all frames, since later ones build on earlier ones, and keeps the last few.
    When the pipeline is slower than the camera, the oldest is dropped and counted in ``dropped``:
    a result about now is worth more than one about a minute ago.
    """

    def __init__(
        self, uri: str, *, limit: int | None = None, patience: Patience | None = None
    ) -> None:
        """Connect.

        Raises:
            InputError: the camera refused the address, the user name or the password.
            PeerError: it cannot be reached or speaks something else.
        """
        self.name = redact(uri)
        self.frame_count = limit
        self.dropped = 0
        self.reconnections = 0
        self._uri = uri
        self._limit = check_limit(limit)
        self._patience = patience or Patience()
        self._start_s = time.monotonic()
        self._last_frame_s = self._start_s
        self._failures = 0
        self._delivered = 0
        self._queue: deque[tuple[float, Pixels]] = deque()
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._ended: VaultlineError | None = None
        container = self._connect()
        self._thread = threading.Thread(
            target=self._run, args=(container,), name="camera", daemon=True
        )
        self._thread.start()

    def __iter__(self) -> Iterator[Frame]:
        """Frames until the limit or until closed.

        Raises:
            PeerError: the camera is gone and reconnecting has failed as often as is allowed.
        """
        while self._delivered != self._limit and not self._stopping.is_set():
            with self._changed:
                self._changed.wait_for(
                    lambda: self._queue or self._ended or self._stopping.is_set()
                )
                if self._queue:
                    timestamp_s, image = self._queue.popleft()
                elif self._ended:
                    raise self._ended
                else:
                    return
            index, self._delivered = self._delivered, self._delivered + 1
            yield Frame(index=index, timestamp_s=timestamp_s, image=image)

    def close(self) -> None:
        """Stop the thread; one that waits for a silent camera ends when that times out."""
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(_CLOSE_S)

    def _connect(self) -> av.container.InputContainer:
        patience = self._patience
        timeout_s = (patience.connect_s * _TIMEOUT_SHARE, patience.stall_s * _TIMEOUT_SHARE)
        try:
            container = av.open(self._uri, mode="r", options=_OPTIONS, timeout=timeout_s)
        except av.error.HTTPClientError as error:
            raise InputError(
                f"{self.name}: the camera refused",
                got=reason(error),
                remedy="check the user name, the password and the path in the address",
            ) from None
        except av.error.FFmpegError as error:
            raise PeerError(
                f"{self.name}: no connection to the camera",
                got=reason(error),
                expected="an RTSP server that sends video over TCP",
                remedy="check the address, and that this machine can reach the camera",
            ) from None
        if not container.streams.video:
            container.close()
            raise InputError(f"{self.name}: the stream has no video", expected="a video track")
        return container

    def _run(self, container: av.container.InputContainer) -> None:
        """The thread: whatever ends it, the consumer is told and never waits for nothing."""
        try:
            found = self._follow(container)
            if found:
                self._end(
                    PeerError(
                        f"{self.name}: the camera is gone "
                        f"after {self._failures} attempts to reconnect",
                        got=found,
                        expected=f"a frame at least every {self._patience.stall_s:g} s",
                        remedy="check the camera's power and network, then start again",
                    )
                )
        except Exception as error:
            self._end(MachineError(f"{self.name}: decoding failed", got=type(error).__name__))

    def _follow(self, first: av.container.InputContainer) -> str:
        """Read until the connection is lost, reconnect, and again; says why it gave up."""
        scaler = Scaler()
        container: av.container.InputContainer | None = first
        found = ""
        while True:
            if container is not None:
                self._last_frame_s = time.monotonic()
                with container:
                    found = self._read(container, scaler)
                container = None
            if self._failures >= self._patience.retries:
                return found
            pause_s = self._patience.backoff_s * 2**self._failures
            self._failures += 1
            if self._stopping.wait(min(pause_s, self._patience.backoff_max_s)):
                return ""
            try:
                container = self._connect()
                self.reconnections += 1
            except VaultlineError as error:
                found = error.got or error.message

    def _read(self, container: av.container.InputContainer, scaler: Scaler) -> str:
        """Decode until the stream ends or stalls; says which."""
        stream = container.streams.video[0]
        stream.thread_count, stream.thread_type = 1, "SLICE"
        try:
            for packet in container.demux(stream):
                if self._stopping.is_set():
                    return "stopped"
                try:
                    frames = packet.decode()
                except av.error.InvalidDataError:
                    frames = []  # Before the first key frame, or damaged: the next one heals it.
                for frame in frames:
                    self._deliver(scaler.rgb(frame))
                if time.monotonic() - self._last_frame_s > self._patience.stall_s:
                    return f"packets but no frame for {self._patience.stall_s:g} s"
        except av.error.FFmpegError as error:
            return reason(error)
        return "the camera closed the connection"

    def _deliver(self, image: Pixels) -> None:
        now_s = time.monotonic()
        self._last_frame_s = now_s
        self._failures = 0
        with self._changed:
            if len(self._queue) == _QUEUE_FRAMES:
                self._queue.popleft()
                self.dropped += 1
            self._queue.append((now_s - self._start_s, image))
            self._changed.notify_all()

    def _end(self, error: VaultlineError) -> None:
        with self._changed:
            self._ended = error
            self._changed.notify_all()
