"""One run: workers launched and attested, frames out, results in, in order and exactly once."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vaultline.attest.challenge import Challenge
from vaultline.attest.evidence import Evidence
from vaultline.attest.refusals import KindRefused
from vaultline.channel.messages import StreamAbortedError
from vaultline.core.control import LinkLine, StageMetrics
from vaultline.core.errors import InputError, LocalProtocolError, PeerError, VaultlineError
from vaultline.core.frame_meta import FrameMeta, read_meta, read_times, tensor_bytes, write_meta
from vaultline.core.frames import FrameLayout, StageTimes
from vaultline.core.hostline import (
    BeatsLine,
    EndpointsLine,
    LaunchRequest,
    LaunchWorker,
    WorkerLostLine,
)
from vaultline.core.plan import Plan
from vaultline.core.tensors import TensorSpec
from vaultline.owner.hostlink import HostLink, HostLostError, lost_error
from vaultline.owner.release import Epoch, RefusedByPeerError, Release, StageSecrets, release
from vaultline.transport.sockets import (
    Address,
    ConnectionLostError,
    Listener,
    TransportTimeoutError,
    connect,
    hang_up,
)
from vaultline.transport.streams import FanIn, FanOut, Hop

#: For the host's word, beyond what the slowest worker may take to start.
_LAUNCH_S = 30.0
_CONNECT_S = 10.0
#: How long to wait for the host's word on which worker was lost, once a hop has broken.
_REASON_S = 2.0
_POLL_S = 0.2
#: The feeding thread has nothing left to do once the end that it sent has come back.
_FED_S = 10.0
#: For the host's last line, once the last result has come.
_LAST_S = 2.0

Array = npt.NDArray[Any]


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


@dataclass(frozen=True, slots=True)
class OwnerFrame:
    """A preprocessed frame: tensors in the order of the plan's first inputs."""

    index: int
    timestamp_s: float
    tensors: Sequence[Array]


@dataclass(frozen=True, slots=True)
class ResultFrame:
    """A frame's outputs and times; ``sent_ns`` and ``received_ns`` are the owner's clock."""

    index: int
    timestamp_s: float
    outputs: dict[str, Array]
    times: tuple[StageTimes, ...]
    sent_ns: int
    received_ns: int


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
        appraise: Callable[[Evidence, Challenge], object],
        settings: SessionSettings,
        on_link: Callable[[str], None] = lambda _: None,
    ) -> None:
        """``on_link`` is told links of a receipt, as the host brings them, in another thread."""
        self._plan = plan
        self._on_link = on_link
        self._secrets = tuple(secrets)
        self._workers = tuple(workers)
        self._appraise = appraise
        self._settings = settings
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
        self.epoch = Epoch(
            deployment=os.urandom(16), number=time.time_ns() // 1000, plan_digest=plan.digest
        )
        self.releases: tuple[Release, ...] = ()
        self.endpoints: EndpointsLine | None = None
        self.worker_frames: tuple[int, ...] = ()
        self.worker_metrics: tuple[StageMetrics, ...] = ()
        stages = len(plan.stages)
        self._in_layout = FrameLayout(plan.stages[0].inputs, stages)
        self._out_layout = FrameLayout(plan.stages[-1].outputs, stages)

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
        return self._host.pid

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
        message = memoryview(bytearray(self._out_layout.message_bytes))
        try:
            while self._receive(message):
                result = self._read(message)
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
            return self._receiver.receive(message)
        finally:
            self._awaiting_result = False

    def _open(self) -> None:
        own_dir = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="vaultline-owner-"))
        self._listeners = []
        for replica in range(len(self._plan.stages[-1].devices)):
            listener = Listener(self._result_address(Path(own_dir), replica))
            self._stack.callback(listener.close)
            self._listeners.append(listener)
        self._host = HostLink(
            LaunchRequest(
                workers=self._workers,
                transport=self._settings.transport,
                results=tuple(str(listener.address) for listener in self._listeners),
            )
        )
        self._stack.callback(self._host.dispose)
        self._stack.callback(self._host.stop)
        self.endpoints = self._wait_endpoints()
        try:
            self._grant_all(self.endpoints)
            socks = self._connect_first(self.endpoints)
        except RefusedByPeerError:
            raise
        except PeerError as error:
            raise self._host_reason() or error from error
        before, after = self._hops()
        self._sender = FanOut(before, 0, socks)
        self._receiver = FanIn(after, 0, [listener.accept for listener in self._listeners])
        self._stack.callback(self._receiver.close)
        self._start_watching()

    def _connect_first(self, endpoints: EndpointsLine) -> list[socket.socket]:
        """To every replica of the first stage."""
        socks = []
        for addresses in endpoints.data[: len(self._plan.stages[0].devices)]:
            sock = connect(Address.parse(addresses[0]), timeout_s=_CONNECT_S)
            self._stack.callback(hang_up, sock)
            socks.append(sock)
        return socks

    def _hops(self) -> tuple[Hop, Hop]:
        """The owner's own: it is the one source of the first and the one target of the last."""
        first, last = self._plan.stages[0], self._plan.stages[-1]
        before = Hop(
            number=0,
            epoch=self.epoch.number,
            secret=self._secrets[0].hop_in_secret,
            message_bytes=self._in_layout.message_bytes,
            targets=len(first.devices),
        )
        after = Hop(
            number=len(self._plan.stages),
            epoch=self.epoch.number,
            secret=self._secrets[-1].hop_out_secret,
            message_bytes=self._out_layout.message_bytes,
            sources=len(last.devices),
        )
        return before, after

    def _start_watching(self) -> None:
        """The host is stopped before the watcher is joined: the end of its line wakes it."""
        watcher = threading.Thread(target=self._watch_host, name="host", daemon=True)
        closing = self._stack.pop_all()
        self._stack.callback(closing.close)
        self._stack.callback(watcher.join)
        self._stack.callback(self._host.stop)
        watcher.start()

    def _host_reason(self) -> VaultlineError | None:
        """Why an enclave vanished before the stream began, if the host can say."""
        deadline_s = time.monotonic() + _REASON_S
        try:
            while (rest_s := deadline_s - time.monotonic()) > 0:
                line = self._host.poll(rest_s)
                if isinstance(line, WorkerLostLine):
                    return lost_error(line)
        except HostLostError as error:
            return error
        return None

    def _result_address(self, own_dir: Path, replica: int) -> Address:
        if self._settings.transport == "unix":
            return Address("unix", str(own_dir / f"result{replica}"))
        return Address("tcp", self._settings.result_bind, 0)

    def _wait_endpoints(self) -> EndpointsLine:
        start_s_max = max(worker.start.start_s_max for worker in self._workers) + _LAUNCH_S
        deadline_s = time.monotonic() + start_s_max
        while (rest_s := deadline_s - time.monotonic()) > 0:
            line = self._host.poll(rest_s)
            if isinstance(line, EndpointsLine):
                return line
            if isinstance(line, WorkerLostLine):
                raise lost_error(line)
        raise HostLostError(
            "the host did not start the workers", expected=f"within {start_s_max} s"
        )

    def _grant_all(self, endpoints: EndpointsLine) -> None:
        """All are granted before the first is waited for: loading overlaps."""
        stages = enumerate(self._plan.stages)
        places = [(stage, k) for stage, planned in stages for k in range(len(planned.devices))]
        if {len(endpoints.control), len(endpoints.data)} != {len(places)}:
            raise HostLostError("the host started another number of workers than asked for")
        if not all(endpoints.data):
            raise HostLostError("the host started a worker that takes no frames")
        releases = []
        for (stage, replica), address in zip(places, endpoints.control, strict=True):
            granted = release(
                Address.parse(address),
                stage,
                self.epoch,
                self._secrets[stage],
                self._appraise_planned,
                replica=replica,
            )
            self._stack.callback(granted.close)
            releases.append(granted)
        for granted in releases:
            granted.wait_loaded()
        self.releases = tuple(releases)

    def _appraise_planned(self, evidence: Evidence, challenge: Challenge) -> object:
        """A policy may accept several kinds; a stage gets the one that the plan says, so that no
        simulated enclave stands in for one in hardware."""
        planned = self._plan.stages[challenge.stage].device.kind
        if evidence.kind != planned:
            raise KindRefused(
                f"stage {challenge.stage} runs in another kind of enclave than planned",
                got=evidence.kind,
                expected=planned,
                remedy="launch the worker on the planned device, or plan for what is there",
            )
        return self._appraise(evidence, challenge)

    def _feed(self, frames: Iterable[OwnerFrame]) -> None:
        """A source that fails ends the stream properly, so that frames on their way still arrive;
        a broken hop shows at the other end too, which knows better why."""
        message = memoryview(bytearray(self._in_layout.message_bytes))
        try:
            for _ in self._written(message, frames):
                self._sender.send(message)
            self._sender.end()
        except PeerError as error:
            self._feed_error = error
            # An enclave that took us for a stranger waits for another connection and says nothing.
            if not self._failed.wait(_REASON_S) and not self._finished:
                self._note(error)

    def _written(self, message: memoryview, frames: Iterable[OwnerFrame]) -> Iterator[None]:
        """One step per frame in the message; ends at the source's end or failure, whatever it
        raises: a camera's errors are of the same kinds as a broken hop's."""
        try:
            for frame in frames:
                self._write(message, frame)
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

    def _write(self, message: memoryview, frame: OwnerFrame) -> None:
        specs = self._in_layout.specs
        if len(frame.tensors) != len(specs):
            raise InputError(
                "a frame has the wrong number of tensors",
                got=str(len(frame.tensors)),
                expected=str(len(specs)),
            )
        meta = FrameMeta(
            index=frame.index, timestamp_s=frame.timestamp_s, sent_ns=time.monotonic_ns()
        )
        write_meta(self._in_layout, message, meta)
        for position, (spec, tensor) in enumerate(zip(specs, frame.tensors, strict=True)):
            if tensor.shape != spec.shape or str(tensor.dtype) != spec.dtype:
                raise InputError(
                    f"a frame does not fit the model's input {spec.name!r}",
                    got=f"{tensor.dtype} {tensor.shape}",
                    expected=f"{spec.dtype} {spec.shape}",
                )
            target = np.frombuffer(tensor_bytes(self._in_layout, message, position), tensor.dtype)
            target[:] = tensor.reshape(-1)

    def _read(self, message: memoryview) -> ResultFrame:
        received_ns = time.monotonic_ns()
        meta = read_meta(message)
        outputs = {
            spec.name: _array(tensor_bytes(self._out_layout, message, position), spec)
            for position, spec in enumerate(self._out_layout.specs)
        }
        return ResultFrame(
            index=meta.index,
            timestamp_s=meta.timestamp_s,
            outputs=outputs,
            times=read_times(self._out_layout, message),
            sent_ns=meta.sent_ns,
            received_ns=received_ns,
        )

    def _heard(self, line: BeatsLine) -> None:
        """Only for people to look at: nobody vouches for it."""
        if len(line.frames) == len(line.metrics) == len(self._workers):
            self.worker_frames, self.worker_metrics = line.frames, line.metrics
        if line.last:
            self._workers_ended.set()

    def _note(self, error: VaultlineError) -> None:
        """Keep the first reason and wake whoever waits on a socket."""
        if self._failure is None:
            self._failure = error
        self._failed.set()
        for listener in self._listeners:
            listener.close()
        self._sender.close()
        self._receiver.close()

    def _reason(self, error: VaultlineError) -> VaultlineError:
        """A broken hop has a cause; the host usually knows it a moment later."""
        if isinstance(error, ConnectionLostError | StreamAbortedError | TransportTimeoutError):
            self._failed.wait(_REASON_S)
            return self._failure or error
        return error

    def _watch_host(self) -> None:
        """Learn of lost workers, and of results that don't come."""
        while not (self._finished and self._workers_ended.is_set()):
            try:
                line = self._host.poll(_POLL_S)
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
            late = self._awaiting_result and waited_s > self._settings.stall_s
            if late and self._received < self._sent:
                self._note(
                    ResultsStalledError(
                        "no result has come while frames are on their way",
                        got=f"{self._sent - self._received} frames for {waited_s:.1f} s",
                        expected=f"a result within {self._settings.stall_s} s",
                    )
                )
                return


def _array(data: memoryview, spec: TensorSpec) -> Array:
    """A copy of the message's bytes as an array; bfloat16 stays as 16-bit words."""
    dtype = "uint16" if spec.dtype == "bfloat16" else spec.dtype
    return np.frombuffer(data, dtype).reshape(spec.shape).copy()
