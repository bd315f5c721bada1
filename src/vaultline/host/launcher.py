"""Starts workers as processes of this machine, each on its own cores, and stops them all."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vaultline.core.control import WireLine, WorkerConfig
from vaultline.core.errors import MachineError
from vaultline.core.hostline import LaunchRequest, LaunchWorker
from vaultline.core.serde import canonical_json
from vaultline.host.wiring import data_addresses

#: The worker needs nothing from the environment but how to find its code; engine telemetry and
#: thread pools that would outgrow its cores are off.
_ENVIRONMENT = {
    "ORT_DISABLE_TELEMETRY": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}
_PASSED_ON = ("PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "PATH")


@dataclass(frozen=True, slots=True)
class Process:
    """A started worker."""

    popen: subprocess.Popen[bytes]

    @property
    def stdout_fd(self) -> int:
        """Where its lines come from."""
        if self.popen.stdout is None:
            raise MachineError("a worker without standard output")
        return self.popen.stdout.fileno()

    def wire(self, addresses: tuple[str, ...]) -> None:
        """Tell the worker where its next hop listens."""
        self._write(WireLine(next=addresses))

    def _write(self, line: WireLine | WorkerConfig) -> None:
        if self.popen.stdin is not None:
            with contextlib.suppress(OSError):  # a dead worker is the supervisor's to notice
                self.popen.stdin.write(canonical_json(line) + b"\n")
                self.popen.stdin.flush()


def sockets(request: LaunchRequest, worker: LaunchWorker) -> list[str]:
    """Names of the Unix sockets that a worker listens on: its control, then its data."""
    count = data_addresses(request, worker)
    return [f"{worker.name}.control", *(f"{worker.name}.data{n}" for n in range(count))]


def start_module(
    module: str, cores: Sequence[int], *, netns: str | None = None
) -> subprocess.Popen[bytes]:
    """Start a module as workers are started, on these cores; lines go in and out.

    Raises:
        MachineError: no process can be started.
    """
    environment = {key: os.environ[key] for key in _PASSED_ON if key in os.environ}
    prefix = ("ip", "netns", "exec", netns) if netns else ()
    try:
        popen = subprocess.Popen(
            [*prefix, sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment | _ENVIRONMENT,
        )
    except OSError as error:
        raise MachineError("cannot start a worker", got=str(error)) from error
    if cores:
        # A core that this machine doesn't have is no reason to fail: affinity is only speed.
        with contextlib.suppress(OSError):
            os.sched_setaffinity(popen.pid, cores)
    return popen


def launch(request: LaunchRequest, worker: LaunchWorker, runtime_dir: Path) -> Process:
    """Start one worker.

    Raises:
        MachineError: no process can be started.
    """
    addresses = [
        f"unix:{runtime_dir}/{name}" if request.transport == "unix" else f"tcp:{worker.bind}:0"
        for name in sockets(request, worker)
    ]
    config = WorkerConfig(
        name=worker.name,
        platform="process",
        provider=worker.provider,
        platform_file=worker.platform_file,
        vault=worker.vault,
        control=addresses[0],
        data=tuple(addresses[1:]),
        runtime_dir=str(runtime_dir),
    )
    process = Process(start_module("vaultline.enclave", worker.cores, netns=worker.netns))
    process._write(config)
    return process


def stop(processes: list[Process]) -> None:
    """Kill whatever still runs and reap it."""
    for process in processes:
        if process.popen.poll() is None:
            with contextlib.suppress(OSError):
                process.popen.send_signal(signal.SIGKILL)
    for process in processes:
        process.popen.wait()
        for pipe in (process.popen.stdin, process.popen.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
