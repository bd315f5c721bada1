"""A serving worker's process without a host: its owner starts it, and hears what it says."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from vaultline.core.control import FailedLine, ReadyLine, WorkerLine
from vaultline.core.errors import MachineError, VaultlineError
from vaultline.core.serde import from_json
from vaultline.core.serving import ServerWorkerConfig
from vaultline.host.launcher import SERVER_MODULE, Process, start_module, stop

#: Loading the engine's code from a cold disk takes seconds.
START_S = 60.0
_EXIT_S = 60.0


class WorkerProcess:
    """A worker with simulated evidence that listens on Unix sockets.

    Attributes:
        popen: the process.
        ready: what it said once it listened.
    """

    def __init__(
        self,
        name: str,
        vaults: Sequence[Path],
        platform_file: Path,
        folder: Path,
        *,
        cores: Sequence[int] = (),
    ) -> None:
        """Start it, and wait until it listens.

        Args:
            folder: for its sockets, with a short path.
            cores: of this machine; any where none is named.

        Raises:
            MachineError: it does not start, and why.
        """
        self._lines: SimpleQueue[ReadyLine | FailedLine | None] = SimpleQueue()
        self._process = Process(start_module(SERVER_MODULE, cores))
        self.popen = self._process.popen
        try:
            self._process.say(
                ServerWorkerConfig(
                    name=name,
                    platform="process",
                    provider="simulated",
                    platform_file=str(platform_file.absolute()),
                    vaults=tuple(str(vault.absolute()) for vault in vaults),
                    control=f"unix:{folder}/control",
                    commands=f"unix:{folder}/commands",
                    runtime_dir=str(folder),
                )
            )
            threading.Thread(target=self._hear, daemon=True).start()
            self.ready = self._wait_ready()
        except BaseException:
            self.kill()
            raise

    def _hear(self) -> None:
        """Its lines, until it ends; beats are read only so that it is never held up."""
        kind: Any = WorkerLine
        with os.fdopen(os.dup(self._process.stdout_fd), "rb") as pipe:
            for line in pipe:
                try:
                    said = from_json(line, kind, what="a worker's line")
                except VaultlineError as error:
                    said = FailedLine(code=error.code, message=error.message)
                if isinstance(said, ReadyLine | FailedLine):
                    self._lines.put(said)
        self._lines.put(None)

    def _wait_ready(self) -> ReadyLine:
        try:
            line = self._lines.get(timeout=START_S)
        except Empty:
            raise MachineError("the worker did not start in time") from None
        if isinstance(line, ReadyLine):
            return line
        raise ended(line)

    def last_line(self) -> FailedLine | None:
        """Wait until it has ended; what it said then, if anything failed."""
        failed = None
        while (line := self._lines.get()) is not None:
            failed = line if isinstance(line, FailedLine) else failed
        self.popen.wait(_EXIT_S)
        self._lines.put(None)
        return failed

    def close(self) -> int:
        """End it by closing its standard input; the exit code. Safe to call twice."""
        if self.popen.stdin is not None:
            self.popen.stdin.close()
        code = self.popen.wait(_EXIT_S)
        self._process.close()
        return code

    def kill(self) -> None:
        """End it by force. Safe to call twice."""
        stop([self._process])


def ended(line: FailedLine | None) -> MachineError:
    """A worker's end as an error, by its last line."""
    got = "no reason" if line is None else f"{line.code}: {line.message}"
    return MachineError("the worker has ended", got=got)
