"""The plain engine in a process of its own, pinned to one core: the other end of the worker."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from vaultline.core.errors import MachineError
from vaultline.core.serde import canonical_json
from vaultline.core.tensors import TensorSpec


class NativeProcess:
    """A native session in a process of its own, pinned to a core: a context manager."""

    def __init__(self, path: Path, core: int, specs: tuple[TensorSpec, ...]) -> None:
        self._popen = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "vaultline.bench.native_worker",
                str(path),
                str(core),
                canonical_json(specs).decode(),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> NativeProcess:
        self._read()
        return self

    def __exit__(self, *_: object) -> None:
        if self._popen.stdin is not None:
            self._popen.stdin.close()
        self._popen.wait()
        if self._popen.stdout is not None:
            self._popen.stdout.close()

    def start(self, frames: int) -> None:
        """Begin to run frames."""
        if self._popen.stdin is not None:
            self._popen.stdin.write(f"{frames}\n")
            self._popen.stdin.flush()

    def seconds(self) -> float:
        """Wait for what was started; how long it took."""
        return float(self._read())

    def frame_s(self) -> float:
        """A rough time of one frame."""
        self.start(3)
        return self.seconds() / 3

    def _read(self) -> str:
        line = "" if self._popen.stdout is None else self._popen.stdout.readline()
        if not line:
            raise MachineError("a native session to compare with has died")
        return line
