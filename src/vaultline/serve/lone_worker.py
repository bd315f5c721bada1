"""A serving worker by itself: one model, one core, told what to do by its owner."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from vaultline.attest.challenge import Challenge
from vaultline.attest.evidence import Evidence
from vaultline.channel.keys import Direction
from vaultline.channel.requests import OVERHEAD_BYTES, RequestSealer
from vaultline.core.errors import MachineError, RemoteProtocolError, VaultlineError
from vaultline.core.frame_meta import FrameMeta, write_meta
from vaultline.core.frames import FrameLayout
from vaultline.core.serde import from_msgpack
from vaultline.core.serving import (
    COMMAND_BYTES_MAX,
    DoneReply,
    EvictCommand,
    HostCommand,
    InstallCommand,
    RemoveCommand,
    RunCommand,
    WorkerReply,
)
from vaultline.owner.server_release import release_server, server_grant, server_memory
from vaultline.serve.prepared import Prepared
from vaultline.serve.worker_process import START_S, WorkerProcess, ended
from vaultline.transport.framing import MessageReader, receive_message, send_message
from vaultline.transport.sockets import Address, connect, hang_up

#: A run takes less than this.
_REPLY_S = 600.0
_FLOATS = ("float16", "float32", "float64")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTrust:
    """What starts a simulated enclave and what accepts its evidence."""

    platform_file: Path
    appraise: Callable[[Evidence, Challenge], object]


class LoneWorker:
    """A worker that has been granted one model. A context manager.

    Its one core is model 0's; nothing runs but what is told here.
    """

    def __init__(
        self, prepared: Prepared, trust: WorkerTrust, *, core: int, memory_bytes: int
    ) -> None:
        """Start and grant it.

        Args:
            core: of this machine.

        Raises:
            InfeasibleError: too little memory for the model.
            RefusedError: its evidence is not accepted, or the keys are of another sealing.
            MachineError: it does not start.
        """
        self._served = prepared.served
        memory = server_memory([self._served], cores=1, memory_bytes=memory_bytes)
        grant = server_grant(
            [(self._served, prepared.keys)], memory, cores=1, memory_bytes=memory_bytes
        )
        self._sealer = RequestSealer(grant.secret, epoch=grant.epoch, direction=Direction.FORWARD)
        self._reader: MessageReader[WorkerReply] = MessageReader(
            self._decode, bytes_max=COMMAND_BYTES_MAX
        )
        self._message = _noise_message(self._served.input_layout)
        self._next = 0
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vaultline-"))
            self._process = WorkerProcess(
                "measured", [prepared.vault], trust.platform_file, Path(folder), cores=(core,)
            )
            stack.callback(self._process.kill)
            ready = self._process.ready
            release_server(Address.parse(ready.control), grant, trust.appraise).wait_loaded()
            self._sock = connect(Address.parse(ready.data[0]), timeout_s=START_S)
            stack.callback(hang_up, self._sock)
            self._stack = stack.pop_all()

    # What it is told. Everything takes seconds, as its host sees it.

    def install(self) -> float:
        """Open the sections and make the sessions."""
        return self._timed(InstallCommand(core=0, model=0))

    def remove(self) -> None:
        """Forget the model."""
        self._tell(RemoveCommand(model=0))

    def evict(self, group: int) -> None:
        """Forget the weights of a group."""
        self._tell(EvictCommand(model=0, group=group))

    def new_requests(self, count: int) -> list[int]:
        """Numbers that no request has had."""
        numbers = list(range(self._next, self._next + count))
        self._next += count
        return numbers

    def run(self, group: int, requests: Sequence[int], *, keep: bool = False) -> float:
        """Run a group; what group 0 takes is noise."""
        command = RunCommand(core=0, model=0, group=group, requests=tuple(requests), keep=keep)
        sealed = [self._sealed(number) for number in requests] if group == 0 else []
        last = group == len(self._served.groups) - 1
        return self._timed(command, sealed, answers=len(requests) if last else 0)

    def _sealed(self, number: int) -> bytearray:
        write_meta(
            self._served.input_layout,
            memoryview(self._message),
            FrameMeta(index=number, timestamp_s=0.0, sent_ns=0),
        )
        sealed = bytearray(len(self._message) + OVERHEAD_BYTES)
        self._sealer.seal_into(0, number, memoryview(self._message), memoryview(sealed))
        return sealed

    def _timed(
        self, command: HostCommand, sealed: Sequence[bytearray] = (), *, answers: int = 0
    ) -> float:
        before_s = time.perf_counter()
        self._tell(command, sealed)
        try:
            reply, followed = receive_message(self._sock, self._reader, timeout_s=_REPLY_S)
        except VaultlineError as error:
            raise self._lost() from error
        spent_s = time.perf_counter() - before_s
        if not isinstance(reply, DoneReply):
            raise MachineError("the worker could not do it", got=f"{reply.code}: {reply.message}")
        if len(followed) != answers:
            raise RemoteProtocolError(
                "a run gave another number of answers",
                got=str(len(followed)),
                expected=str(answers),
            )
        return spent_s

    def _tell(self, command: HostCommand, sealed: Sequence[bytearray] = ()) -> None:
        try:
            send_message(self._sock, command, sealed)
        except VaultlineError as error:
            raise self._lost() from error

    def _decode(self, data: bytearray) -> tuple[WorkerReply, tuple[int, ...]]:
        kind: Any = WorkerReply
        reply: WorkerReply = from_msgpack(
            memoryview(data), kind, what="a worker's reply", bytes_max=COMMAND_BYTES_MAX
        )
        if not isinstance(reply, DoneReply):
            return reply, ()
        size = self._served.output_layout.message_bytes + OVERHEAD_BYTES
        return reply, (size,) * reply.answers

    @property
    def waited_s(self) -> float:
        """For how long its threads could have run and did not, because others ran on their core;
        0 where the kernel does not say."""
        waited_ns = 0
        for path in Path(f"/proc/{self._process.popen.pid}/task").glob("*/schedstat"):
            with suppress(OSError, ValueError, IndexError):  # a thread that has just ended
                waited_ns += int(path.read_text().split()[1])
        return waited_ns / 1e9

    # Its end.

    def _lost(self) -> MachineError:
        """Why it hung up, if it has said so."""
        self._process.popen.kill()
        return ended(self._process.last_line())

    def close(self) -> None:
        """End it. Safe to call twice."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _noise_message(layout: FrameLayout) -> bytearray:
    """A request: uniform in [0, 1) for floats, zeros for the rest (indices, masks)."""
    message, random = bytearray(layout.message_bytes), np.random.default_rng(0)
    for spec, start in zip(layout.specs, layout.offsets, strict=True):
        if spec.dtype in _FLOATS:
            values = random.random(spec.shape).astype(spec.dtype)
            message[start : start + spec.nbytes] = values.tobytes()
    return message
