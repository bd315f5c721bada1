"""Starts workers, each in the one way that was asked for, and stops them all.

As processes of this machine, on cores of their own; under Gramine (`host.gramine`); or by
connecting to the machine that they run on (`host.remote`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vaultline.core.control import WireLine, WorkerConfig
from vaultline.core.errors import MachineError
from vaultline.core.hostline import LaunchRequest, LaunchWorker, Start
from vaultline.core.serde import Struct, canonical_json
from vaultline.core.serving import ServerWorkerConfig
from vaultline.host.gramine import gramine_command
from vaultline.host.remote import RemoteWorker, connect_worker
from vaultline.host.wiring import data_addresses

STAGE_MODULE, SERVER_MODULE = "vaultline.enclave", "vaultline.enclave.server"
#: The worker needs nothing from the environment but how to find its code; engine telemetry and
#: thread pools that would outgrow its cores are off.
_ENVIRONMENT = {
    "ORT_DISABLE_TELEMETRY": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}
_PASSED_ON = ("PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "PATH")
#: Where Linux shows reports of a confidential VM, in a VM that is one.
TSM_REPORTS = Path("/sys/kernel/config/tsm/report")


class NotConfidentialError(MachineError):
    """This machine is no confidential VM, or shows no reports of it."""


class Worker(Protocol):
    """A started worker, here or elsewhere."""

    @property
    def stdout_fd(self) -> int:
        """Where its lines come from."""

    @property
    def pid(self) -> int:
        """Its process on this machine, or 0."""

    def say(self, line: Struct) -> None:
        """Send it a line; a dead worker is the supervisor's to notice."""

    def wait(self, timeout_s: float | None = None) -> int:
        """Its exit code, once its lines have ended: 0 where nobody tells.

        Raises:
            subprocess.TimeoutExpired: it lives on.
        """

    def stop(self) -> None:
        """End it by force, without waiting."""

    def close(self) -> None:
        """Reap it and close its line."""


@dataclass(frozen=True, slots=True)
class Process:
    """A worker that is a process of this machine."""

    popen: subprocess.Popen[bytes]

    @property
    def stdout_fd(self) -> int:
        """Where its lines come from."""
        if self.popen.stdout is None:
            raise MachineError("a worker without standard output")
        return self.popen.stdout.fileno()

    @property
    def pid(self) -> int:
        """The process."""
        return self.popen.pid

    def say(self, line: Struct) -> None:
        """Write a line to its standard input."""
        if self.popen.stdin is not None:
            with contextlib.suppress(OSError):
                self.popen.stdin.write(canonical_json(line) + b"\n")
                self.popen.stdin.flush()

    def wait(self, timeout_s: float | None = None) -> int:
        """Its exit code; negative: the signal that killed it."""
        return self.popen.wait(timeout_s)

    def stop(self) -> None:
        """Kill it if it still runs."""
        if self.popen.poll() is None:
            with contextlib.suppress(OSError):
                self.popen.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Reap it and close both pipes."""
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


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
    return _start_command([sys.executable, "-P", "-m", module], cores, netns=netns)


def _start_command(
    command: Sequence[str],
    cores: Sequence[int],
    *,
    netns: str | None = None,
    folder: Path | None = None,
) -> subprocess.Popen[bytes]:
    environment = {key: os.environ[key] for key in _PASSED_ON if key in os.environ}
    prefix = ("ip", "netns", "exec", netns) if netns else ()
    try:
        popen = subprocess.Popen(
            [*prefix, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment | _ENVIRONMENT,
            cwd=folder,
        )
    except OSError as error:
        raise MachineError("cannot start a worker", got=str(error)) from error
    if cores:
        # A core that this machine doesn't have is no reason to fail: affinity is only speed.
        with contextlib.suppress(OSError):
            os.sched_setaffinity(popen.pid, cores)
    return popen


def start_worker(
    module: str,
    start: Start,
    config: WorkerConfig | ServerWorkerConfig,
    cores: Sequence[int],
    *,
    vaults: Sequence[str],
    netns: str | None = None,
) -> Worker:
    """Start a worker in the way that was asked for, and tell it its configuration.

    Args:
        vaults: the files that it will open.

    Raises:
        MachineError: this machine lacks what that takes: a subclass says what, and the remedy.
        PeerError: nobody answers where a connection should start it.
    """
    worker: Process | RemoteWorker
    if start.at is not None:
        worker = connect_worker(start.at)
    elif start.gramine is not None:
        folder = Path(start.gramine)
        command = gramine_command(folder, module, vaults, sgx=start.provider == "gramine")
        worker = Process(_start_command(command, cores, netns=netns, folder=folder))
    else:
        if start.provider in ("tdx", "snp"):
            check_confidential(TSM_REPORTS)
        worker = Process(start_module(module, cores, netns=netns))
    worker.say(config)
    return worker


def check_confidential(reports: Path) -> None:
    """Refuse to start a worker that could never give evidence.

    Raises:
        NotConfidentialError: the kernel shows no reports, or only to others.
    """
    remedy = (
        "start workers inside the VM: `launch:` of the host in the cluster file; inside, load "
        "tdx_guest or sev-guest, mount configfs, and be root (docs/deploy/confidential-vm.md)"
    )
    if not reports.is_dir():
        raise NotConfidentialError(
            "this machine is no confidential VM, or its kernel shows no reports",
            got=f"no folder {reports}",
            remedy=remedy,
        )
    if not os.access(reports, os.W_OK):
        raise NotConfidentialError(
            "reports of this VM may not be asked for", got=f"no access to {reports}", remedy=remedy
        )


def launch(request: LaunchRequest, worker: LaunchWorker, runtime_dir: Path) -> Worker:
    """Start one worker of a pipeline.

    Raises:
        MachineError, PeerError: as `start_worker`.
    """
    addresses = [
        f"unix:{runtime_dir}/{name}" if request.transport == "unix" else f"tcp:{worker.bind}:0"
        for name in sockets(request, worker)
    ]
    config = WorkerConfig(
        name=worker.name,
        platform=worker.start.platform,
        provider=worker.start.provider,
        platform_file=worker.start.platform_file,
        vault=worker.vault,
        control=addresses[0],
        data=tuple(addresses[1:]),
        runtime_dir=str(runtime_dir),
    )
    return start_worker(
        STAGE_MODULE,
        worker.start,
        config,
        worker.cores,
        vaults=(worker.vault,),
        netns=worker.netns,
    )


def wire(worker: Worker, addresses: tuple[str, ...]) -> None:
    """Tell a worker where its next hop listens."""
    worker.say(WireLine(next=addresses))


def stop(workers: Iterable[Worker]) -> None:
    """Kill whatever still runs and reap it."""
    workers = list(workers)
    for worker in workers:
        worker.stop()
    for worker in workers:
        worker.close()
