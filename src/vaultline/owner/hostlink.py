"""The owner's end of the line to the untrusted host process."""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import signal
import subprocess
import sys
import time
from typing import Generic, Literal, TypeVar

from vaultline.core.errors import InputError, MachineError, PeerError
from vaultline.core.hostline import HostLine, LaunchRequest, WorkerLostLine
from vaultline.core.serde import Struct, canonical_json, from_json
from vaultline.transport.sockets import Address

L = TypeVar("L", bound=Struct)

_LINE_BYTES_MAX = 1 << 20
_STOP_S = 3.0


class WorkerLostError(PeerError):
    """A worker died or got stuck; what had been received by then is in the sink."""


class WorkerRefusedError(WorkerLostError):
    """A worker stopped because a check said no: a vault that was altered, say."""

    exit_code = 1


class HostLostError(PeerError):
    """The host process died or stopped talking."""


def lost_error(line: WorkerLostLine) -> WorkerLostError:
    """The error that tells the user which worker was lost and why."""
    kind = WorkerRefusedError if line.refused else WorkerLostError
    which = "" if line.replica is None else f"replica {line.replica} of "
    return kind(
        f"{which}stage {line.stage} was lost: {line.message}",
        got=line.code,
        remedy=line.remedy
        or "every result received before this is in the sink; start the run again",
    )


def endpoint(text: str, transport: Literal["unix", "tcp"]) -> Address:
    """Where something listens, as the host says it: on sockets of the kind that was asked for.

    Raises:
        HostLostError: of another kind. The owner's machine has Unix sockets of its own.
        InputError: no address.
    """
    address = Address.parse(text)
    if address.kind != transport:
        raise HostLostError(
            "the host says that a worker listens where it was not asked to",
            got=text,
            expected=f"{transport}:...",
        )
    return address


class HostProcess(Generic[L]):
    """Starts a host in a session of its own, so that a terminal's signals reach only the owner.

    The host ends, with all of its workers, when this line closes: also when the owner is killed.
    """

    def __init__(self, module: str, request: Struct, lines: type[L]) -> None:
        """``request`` is its first line; ``lines`` is what it says, one of them at a time."""
        self._lines = lines
        try:
            self._popen = subprocess.Popen(
                [sys.executable, "-P", "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise MachineError("cannot start the host process", got=str(error)) from error
        stdin, stdout = self._popen.stdin, self._popen.stdout
        if stdin is None or stdout is None:
            raise MachineError("the host process has no standard input or output")
        self._stdin, self._stdout = stdin, stdout
        self._selector = selectors.DefaultSelector()
        self._selector.register(stdout, selectors.EVENT_READ)
        self._rest = b""
        with contextlib.suppress(OSError):
            stdin.write(canonical_json(request) + b"\n")
            stdin.flush()

    @property
    def pid(self) -> int:
        """The host's process."""
        return self._popen.pid

    def poll(self, timeout_s: float) -> L | None:
        """The host's next line, or None if there was none in time.

        Raises:
            HostLostError: the host closed its line or said something it must not.
        """
        deadline_s = time.monotonic() + timeout_s
        while b"\n" not in self._rest:
            if not self._selector.select(max(0.0, deadline_s - time.monotonic())):
                return None
            data = os.read(self._stdout.fileno(), 1 << 16)
            if not data or len(self._rest) > _LINE_BYTES_MAX:
                raise HostLostError("the host process has gone", got="end of its line")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        try:
            return from_json(line, self._lines, what="a line of the host")
        except InputError as error:
            raise HostLostError("the host said something it must not", got=error.got) from error

    def kill(self) -> None:
        """Stop the host and its workers by force, whatever they are at."""
        if self._popen.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._popen.pid, signal.SIGKILL)
        self.stop()

    def stop(self) -> None:
        """Stop the host and its workers; waits until they are gone. Safe to call twice."""
        with contextlib.suppress(OSError):
            self._stdin.close()
        if self._popen.returncode is not None:
            return
        pidfd = os.pidfd_open(self._popen.pid)
        try:
            select.select([pidfd], [], [], _STOP_S)
        finally:
            os.close(pidfd)
        # Not reaped yet, so the group is still the host's. A worker that is stopped does not hear
        # that its host was killed, and would stay for ever.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()

    def dispose(self) -> None:
        """Close what ``poll`` reads; nobody may be polling any more."""
        self._selector.close()
        self._stdout.close()


class HostLink(HostProcess[HostLine]):
    """The host of a pipeline's workers."""

    def __init__(self, request: LaunchRequest) -> None:
        super().__init__("vaultline.host", request, HostLine)  # type: ignore[arg-type]
