"""One run: frames out, results in, in order and exactly once."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from vaultline.channel.messages import StreamAbortedError
from vaultline.core.control import LinkLine, StageMetrics
from vaultline.core.errors import InputError, LocalProtocolError, PeerError, VaultlineError
from vaultline.core.hostline import BeatsLine, EndpointsLine, LaunchWorker, WorkerLostLine
from vaultline.core.plan import Plan
from vaultline.owner.deployment import REASON_S, Appraise, Deployment
from vaultline.owner.frames import FrameCodec, OwnerFrame, ResultFrame
from vaultline.owner.hostlink import HostLostError, lost_error
from vaultline.owner.release import Release, StageSecrets
from vaultline.transport.sockets import ConnectionLostError, TransportTimeoutError

_POLL_S = 0.2
#: The feeding thread has nothing left to do once the end that it sent has come back.
_FED_S = 10.0
#: For the host's last line, once the last result has come.
_LAST_S = 2.0


class ResultsStalledError(PeerError):
    """Frames are on their way and no result has come for too long."""


class FramesLostError(PeerError):
    """The stream ended, authenticated, with fewer results than frames."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """How to reach workers and when to give up.

    Attributes:
        transport: ``unix`` on one host, ``tcp`` anywhere.
        result_bind: address that the owner listens on for results, for TCP.
        stall_s: the longest wait for the next result while frames are in flight.
    """

    transport: Literal["unix", "tcp"] = "unix"
    result_bind: str = "127.0.0.1"
    stall_s: float = 60.0


class Session:
    """A deployed plan, for one run: a context manager that is entered once, one ``stream``.

    Its epoch and its hops' secrets make the record keys, and sequences start at zero: a second
    run of the same session would seal other frames under the same keys and nonces.
    """

    def __init__(
        self,
        plan: Plan,
        secrets: Sequence[StageSecrets],
        workers: Sequence[LaunchWorker],
        appraise: Appraise,
        settings: SessionSettings,
        on_link: Callable[[str], None] = lambda _: None,
    ) -> None:
        """``on_link`` is told links of a receipt, as the host brings them, in another thread."""
        self._deployment = Deployment(
            plan,
            secrets,
            workers,
            appraise,
            transport=settings.transport,
            result_bind=settings.result_bind,
        )
        self._codec = FrameCodec(plan)
        self._on_link = on_link
        self._worker_count = len(workers)
        self._stall_s = settings.stall_s
        self._stack = contextlib.ExitStack()
        self._failure: VaultlineError | None = None
        self._failed = threading.Event()
        self._sent = self._received = 0
        self._progress_s = time.monotonic()
        self._source_error: VaultlineError | None = None
        self._feed_error: PeerError | None = None
        self._finished = self._opened = self._streamed = False
        self._workers_ended = threading.Event()
        self._awaiting_result = False
        self.epoch = self._deployment.epoch
        self.releases: tuple[Release, ...] = ()
        self.endpoints: EndpointsLine | None = None
        self.worker_frames: tuple[int, ...] = ()
        self.worker_metrics: tuple[StageMetrics, ...] = ()

    def __enter__(self) -> Session:
        """Launch, attest, grant and connect.

        Raises:
            LocalProtocolError: entered before, even if that failed.
            VaultlineError: whatever kept the deployment from starting; nothing is left of it.
        """
        if self._opened:
            raise LocalProtocolError("a session runs once; make another one for another run")
        self._opened = True
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop everything that was started; safe to call twice."""
        self._finished = True
        self._workers_ended.set()
        self._stack.close()

    @property
    def host_pid(self) -> int:
        """The untrusted host's process."""
        return self._deployment.host_pid

    def stream(self, frames: Iterable[OwnerFrame]) -> Iterator[ResultFrame]:
        """Send all frames and yield their results in order.

        Raises:
            LocalProtocolError: called before.
            VaultlineError: whatever ended the run; every result before it has been yielded.
        """
        if self._streamed:
            raise LocalProtocolError("a session streams once; make another one for another run")
        self._streamed = True
        feeding = threading.Thread(target=self._feed, args=(frames,), name="feed", daemon=True)
        feeding.start()
        message = memoryview(bytearray(self._codec.returned.message_bytes))
        try:
            while self._receive(message):
                result = self._codec.read(message, now_ns=time.monotonic_ns())
                if result.index != self._received:
                    raise FramesLostError(
                        "a result is out of order",
                        got=f"frame {result.index}",
                        expected=f"frame {self._received}",
                    )
                self._received += 1
                yield result
        except VaultlineError as error:
            reason = self._reason(error)
            if reason is error:
                raise
            raise reason from error
        self._finished = True
        feeding.join(_FED_S)
        if feeding.is_alive():  # an enclave that has the keys has ended it, not the owner
            raise FramesLostError(
                "the stream ended before the source did", got=f"{self._received} results"
            )
        if self._source_error is not None:
            raise self._source_error
        if self._received != self._sent or self._feed_error is not None:
            raise FramesLostError(
                "results are missing at the end of the stream",
                got=f"{self._received} results",
                expected=f"{self._sent}",
            ) from self._feed_error

    def wait_last_metrics(self, timeout_s: float = _LAST_S) -> bool:
        """After the stream: until ``worker_metrics`` covers all of it, as the host tells it."""
        return self._workers_ended.wait(timeout_s)

    def _receive(self, message: memoryview) -> bool:
        """The next result; only while it is awaited it can be late."""
        self._progress_s = time.monotonic()
        self._awaiting_result = True
        try:
            return self._deployment.receiver.receive(message)
        finally:
            self._awaiting_result = False

    def _open(self) -> None:
        """The host is stopped before the watcher is joined: the end of its line wakes it."""
        self._stack.callback(self._deployment.close)
        self._deployment.open(self._codec.sent, self._codec.returned)
        self.releases, self.endpoints = self._deployment.releases, self._deployment.endpoints
        watcher = threading.Thread(target=self._watch_host, name="host", daemon=True)
        self._stack.callback(watcher.join)
        self._stack.callback(self._deployment.stop_host)
        watcher.start()

    def _feed(self, frames: Iterable[OwnerFrame]) -> None:
        """A source that fails ends the stream properly, so that frames on their way still arrive;
        a broken hop shows at the other end too, which knows better why."""
        message = memoryview(bytearray(self._codec.sent.message_bytes))
        try:
            for _ in self._written(message, frames):
                self._deployment.sender.send(message)
            self._deployment.sender.end()
        except PeerError as error:
            self._feed_error = error
            # An enclave that took us for a stranger waits for another connection and says nothing.
            if not self._failed.wait(REASON_S) and not self._finished:
                self._note(error)

    def _written(self, message: memoryview, frames: Iterable[OwnerFrame]) -> Iterator[None]:
        """One step per frame in the message; ends at the source's end or failure, whatever it
        raises: a camera's errors are of the same kinds as a broken hop's."""
        try:
            for frame in frames:
                self._codec.write(message, frame, now_ns=time.monotonic_ns())
                if self._received == self._sent:
                    self._progress_s = time.monotonic()
                self._sent += 1
                yield
        except GeneratorExit:  # ours: the hop broke
            raise
        except VaultlineError as error:
            self._source_error = error
        except BaseException as error:  # the source is the caller's code; it may even exit
            self._source_error = InputError(
                "the frame source failed", got=f"{type(error).__name__}: {error}"
            )

    def _heard(self, line: BeatsLine) -> None:
        """Only for people to look at: nobody vouches for it."""
        if len(line.frames) == len(line.metrics) == self._worker_count:
            self.worker_frames, self.worker_metrics = line.frames, line.metrics
        if line.last:
            self._workers_ended.set()

    def _note(self, error: VaultlineError) -> None:
        """Keep the first reason and wake whoever waits on a socket."""
        if self._failure is None:
            self._failure = error
        self._failed.set()
        self._deployment.interrupt()

    def _reason(self, error: VaultlineError) -> VaultlineError:
        """A broken hop has a cause; the host usually knows it a moment later."""
        if isinstance(error, ConnectionLostError | StreamAbortedError | TransportTimeoutError):
            self._failed.wait(REASON_S)
            return self._failure or error
        return error

    def _watch_host(self) -> None:
        """Learn of lost workers, and of results that don't come."""
        while not (self._finished and self._workers_ended.is_set()):
            try:
                line = self._deployment.poll(_POLL_S)
            except HostLostError as error:
                if not self._workers_ended.is_set() and not self._finished:
                    self._note(error)
                if self._finished or self._failure is not None:
                    return
                # Workers that have ended need no host; their last results may be on the way.
                line = None
                self._failed.wait(_POLL_S)
            if isinstance(line, WorkerLostLine):
                self._note(lost_error(line))
                return
            if isinstance(line, BeatsLine):
                self._heard(line)
            if isinstance(line, LinkLine):
                self._on_link(line.link)
            waited_s = time.monotonic() - self._progress_s
            late = self._awaiting_result and waited_s > self._stall_s
            if late and self._received < self._sent:
                self._note(
                    ResultsStalledError(
                        "no result has come while frames are on their way",
                        got=f"{self._sent - self._received} frames for {waited_s:.1f} s",
                        expected=f"a result within {self._stall_s} s",
                    )
                )
                return
