"""A worker's process: what comes before its first secret, and what it says when it ends."""

from __future__ import annotations

import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from vaultline.core.control import BeatLine, FailedLine, ReadyLine, WireLine, WorkerConfig
from vaultline.core.errors import RefusedError, RemoteProtocolError, VaultlineError
from vaultline.core.isa import isa_of
from vaultline.core.program import Isa
from vaultline.enclave.evidence import Provider, open_provider
from vaultline.enclave.executor import warm_up
from vaultline.enclave.hardening import TSM_REPORTS, harden
from vaultline.enclave.lines import HostLines
from vaultline.transport.sockets import Address, Listener

if TYPE_CHECKING:
    from vaultline.core.serving import ServerWorkerConfig


@dataclass(frozen=True, slots=True)
class Process:
    """A worker that is locked down and listens.

    Attributes:
        vaults: open files.
        control, data: where the owner and others may connect; ``wires``: the host's later lines.
    """

    isa: Isa
    provider: Provider
    vaults: list[int]
    control: Listener
    data: list[Listener]
    wires: SimpleQueue[WireLine]


def start(
    config: WorkerConfig | ServerWorkerConfig,
    lines: HostLines,
    beat: Callable[[], BeatLine],
    *,
    vaults: Sequence[str],
    data: Sequence[str],
) -> Process:
    """Open what will be needed, give up the rest, and tell the host.

    Args:
        beat: asked at every heartbeat, in a thread.

    Raises:
        VaultlineError: a file can't be read, or an address can't be listened on.
    """
    warm_up()
    isa = local_isa()
    provider = open_provider(config.provider, config.platform_file)
    files = [open_vault(path) for path in vaults]
    control, *others = (Listener(Address.parse(text)) for text in (config.control, *data))
    tcp = control.address.kind == "tcp"
    reports = [TSM_REPORTS] if provider.kind in ("tdx", "snp") and TSM_REPORTS.exists() else []
    # Before any thread starts: what runs already would keep its rights.
    hardening = harden(
        read_paths=reports,  # vaults are open: what the host named need not be opened again
        socket_dirs=[] if tcp else [Path(config.runtime_dir)],
        tcp=tcp,
        # The host's word counts only where it is an enclave that holds the line.
        platform=config.platform if provider.kind in ("sgx", "simulated") else "process",
    )
    wires = lines.wires(on_end=lambda: os._exit(0))

    def beats() -> None:
        while True:
            lines.say(beat())
            time.sleep(config.heartbeat_s)

    threading.Thread(target=beats, name="heartbeat", daemon=True).start()
    ready = ReadyLine(
        control=str(control.address),
        data=tuple(str(listener.address) for listener in others),
        measurement=provider.measurement.hex(),
        hardening=tuple(hardening),
    )
    lines.say(ready)
    return Process(isa, provider, files, control, others, wires)


def open_vault(path: str) -> int:
    """Open the vault file for reading; the descriptor outlives the file system's lockdown.

    Raises:
        RemoteProtocolError: the host named a file that can't be read.
    """
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise RemoteProtocolError("cannot read the vault", got=str(error)) from error


def local_isa() -> Isa:
    """The instruction set that programs for this machine must have been compiled for."""
    info = Path("/proc/cpuinfo").read_text()
    flags = {
        flag for line in info.splitlines() if line.startswith("flags") for flag in line.split()
    }
    return isa_of(platform.machine(), flags)


def report_bug(lines: HostLines, kind: type[BaseException]) -> int:
    """Say only the kind of an exception, in whichever thread, and what to exit with.

    No traceback leaves the enclave: messages of libraries could quote what they worked on.
    """
    lines.say(FailedLine(code="bug", message=f"{kind.__name__} in the worker"))
    return 70


def run(work: Callable[[HostLines], None]) -> None:
    """Work, then end the process: with 0, or with the error's code after saying which it was."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the owner's to handle
    lines = HostLines()
    threading.excepthook = lambda hook: os._exit(report_bug(lines, hook.exc_type))
    code = 0
    try:
        work(lines)
    except VaultlineError as error:
        refused = isinstance(error, RefusedError)
        lines.say(FailedLine(code=error.code, message=error.message, refused=refused))
        code = error.exit_code
    except Exception as error:
        code = report_bug(lines, type(error))
    # Threads may be blocked in system calls; there is nothing left to wait for.
    sys.stderr.flush()
    os._exit(code)
