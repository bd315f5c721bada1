"""The local engine: workers of this machine, from launch to the last exit, in one thread."""

from __future__ import annotations

import contextlib
import os
import selectors
import time
from pathlib import Path

from vaultline.core.control import FailedLine, LinkLine, ReadyLine, WorkerLine
from vaultline.core.errors import (
    InputError,
    MachineError,
    PeerError,
    RemoteProtocolError,
    VaultlineError,
)
from vaultline.core.hostline import (
    BeatsLine,
    EndpointsLine,
    HostLine,
    LaunchRequest,
    WorkerLostLine,
)
from vaultline.core.serde import canonical_json, from_json
from vaultline.host.gramine import diagnose
from vaultline.host.launcher import Worker, launch, sockets, stop, wire
from vaultline.host.supervisor import Lost, Supervisor
from vaultline.host.wiring import listens_as_asked, next_addresses

_LINE_BYTES_MAX = 64 << 10
_TICK_S = 0.1
_BEATS_S = 0.5
_OWNER_GOES_S = 1.0


class LocalEngine:
    """Runs one deployment: starts workers, wires them up, watches until they end or one is lost."""

    def __init__(self, request: LaunchRequest, *, owner_in: int, owner_out: int) -> None:
        self._request = request
        self._owner_in, self._owner_out = owner_in, owner_out
        self._selector = selectors.DefaultSelector()
        self._workers: list[Worker] = []
        self._partial: dict[int, bytes] = {}
        self._supervisor = Supervisor(request.workers, time.monotonic())
        self._wired = False
        self._owner_gone = self._reported = False

    def run(self) -> int:
        """Until every worker has ended (0), one was lost (4), or the owner has gone (0)."""
        runtime_dir = self._runtime_dir()
        try:
            self._selector.register(self._owner_in, selectors.EVENT_READ, None)
            for number, worker in enumerate(self._request.workers):
                try:
                    started = launch(self._request, worker, runtime_dir)
                except (MachineError, PeerError) as error:
                    self._report(_not_started(number, error))
                    return 4
                self._workers.append(started)
                self._partial[number] = b""
                self._selector.register(started.stdout_fd, selectors.EVENT_READ, number)
            return self._watch()
        finally:
            stop(self._workers)
            self._sweep(runtime_dir)

    def _runtime_dir(self) -> Path:
        """Unix sockets of a run lie in the folder of the owner's own: whichever of the two
        processes is killed, the other one removes them."""
        kind, _, path = self._request.results[0].partition(":")
        return Path(path).parent if kind == "unix" else Path()

    def _sweep(self, runtime_dir: Path) -> None:
        """Remove the workers' sockets, and the owner's own if the owner is no longer there to."""
        if self._request.transport != "unix":
            return
        paths = [
            runtime_dir / name
            for worker in self._request.workers
            for name in sockets(self._request, worker)
        ]
        if self._owner_gone or (self._reported and self._owner_goes()):
            paths += [Path(text.removeprefix("unix:")) for text in self._request.results]
        with contextlib.suppress(OSError):
            for path in paths:
                path.unlink(missing_ok=True)
            runtime_dir.rmdir()  # fails while the owner's socket is in use

    def _owner_goes(self) -> bool:
        """Whether the owner closes its line soon. When it is killed, a worker whose hop breaks may
        tell us first; when it lives, it closes the line as soon as it has heard of a lost worker.
        """
        for key in list(self._selector.get_map().values()):
            if key.data is not None:
                self._selector.unregister(key.fd)
        return bool(self._selector.select(_OWNER_GOES_S))

    def _watch(self) -> int:
        beat_s = time.monotonic()
        while not self._supervisor.finished:
            for key, _ in self._selector.select(_TICK_S):
                self._read(key.fd, key.data)
            if self._owner_gone:
                return 0
            now_s = time.monotonic()
            lost = self._supervisor.lost(now_s)
            if lost is not None:
                self._report(lost)
                return 4
            self._wire()
            if now_s - beat_s >= _BEATS_S:
                self._tell_beats()
                beat_s = now_s
        self._tell_beats(last=True)
        return 0

    def _tell_beats(self, *, last: bool = False) -> None:
        frames, metrics = self._supervisor.frames, self._supervisor.metrics
        self._tell(BeatsLine(frames=frames, metrics=metrics, last=last))

    def _read(self, fd: int, number: int | None) -> None:
        data = _read(fd)
        if number is None:
            # The owner has nothing to say after its request: it closes the line to stop.
            self._owner_gone = not data
            return
        if not data:
            self._selector.unregister(fd)
            self._supervisor.exited(number, self._workers[number].wait())
            return
        *lines, self._partial[number] = (self._partial[number] + data).split(b"\n")
        if len(self._partial[number]) > _LINE_BYTES_MAX:
            self._partial[number] = b""
        for line in lines:
            # What a worker prints beside the protocol (a library's warning) is not for us.
            with contextlib.suppress(InputError):
                heard: WorkerLine = from_json(line, WorkerLine, what="a worker's line")  # type: ignore[arg-type]
                if isinstance(heard, ReadyLine):
                    heard = self._checked(heard)
                self._supervisor.heard(number, heard, time.monotonic())
                if isinstance(heard, LinkLine):
                    self._tell(heard)

    def _checked(self, line: ReadyLine) -> ReadyLine | FailedLine:
        """What a worker of another machine says is passed on to workers of this one."""
        if listens_as_asked(line, self._request.transport):
            return line
        message = "the worker says that it listens where it was not asked to"
        return FailedLine(code=RemoteProtocolError.__name__, message=message)

    def _wire(self) -> None:
        ready = self._supervisor.ready
        if self._wired or ready is None:
            return
        for worker, addresses in zip(
            self._workers, next_addresses(self._request, ready), strict=True
        ):
            wire(worker, addresses)
        self._wired = True
        self._tell(
            EndpointsLine(
                control=tuple(line.control for line in ready),
                data=tuple(line.data for line in ready),
                measurements=tuple(line.measurement for line in ready),
                hardening=tuple(line.hardening for line in ready),
                pids=tuple(worker.pid for worker in self._workers),
            )
        )

    def _report(self, lost: Lost) -> None:
        self._reported = True
        worker = self._request.workers[lost.worker]
        several = self._request.replicas[worker.stage] > 1
        self._tell(
            WorkerLostLine(
                stage=worker.stage,
                replica=worker.replica if several else None,
                name=worker.name,
                code=lost.code,
                message=lost.message,
                refused=lost.refused,
                remedy=lost.remedy or self._remedy(lost),
            )
        )

    def _remedy(self, lost: Lost) -> str | None:
        """What to do about a worker that ended without a word."""
        start = self._request.workers[lost.worker].start
        silent = lost.code == "WorkerDied" and self._supervisor.ready is None
        if silent and start.gramine is not None:
            return diagnose(sgx=start.provider == "gramine")
        return None

    def _tell(self, line: HostLine) -> None:
        with contextlib.suppress(OSError):  # the owner may have gone
            os.write(self._owner_out, canonical_json(line) + b"\n")


def _read(fd: int) -> bytes:
    """What there is; nothing where a line to another machine broke."""
    with contextlib.suppress(OSError):  # a machine that is gone is a timeout, or has no route
        return os.read(fd, 1 << 16)
    return b""


def _not_started(number: int, error: VaultlineError) -> Lost:
    """A worker that this machine can't start, as one that was lost."""
    text = f"{error.message}: {error.got}" if error.got else error.message
    return Lost(worker=number, code=error.code, message=text, remedy=error.remedy)
