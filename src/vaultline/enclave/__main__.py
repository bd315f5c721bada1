"""``python -m vaultline.enclave``: configuration on standard input, lines on standard output."""

from __future__ import annotations

import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from vaultline.attest.grant import GrantRefused
from vaultline.core.control import BeatLine, FailedLine, ReadyLine, StageMetrics, WorkerConfig
from vaultline.core.errors import RefusedError, RemoteProtocolError, VaultlineError
from vaultline.core.isa import isa_of
from vaultline.core.program import Isa
from vaultline.enclave.admission import LoadedStage, admit, open_vault
from vaultline.enclave.evidence import open_provider
from vaultline.enclave.executor import warm_up
from vaultline.enclave.hardening import harden
from vaultline.enclave.lines import HostLines
from vaultline.enclave.measurement import measure
from vaultline.enclave.pipeline import Pipeline, Progress
from vaultline.transport.sockets import Address, Listener, connect
from vaultline.transport.streams import FanIn, FanOut, Hop

#: The next hop listens before the host tells us of it.
_CONNECT_TIMEOUT_S = 10.0


class Worker:
    """One enclave's life, from listening to the end of the stream."""

    def __init__(self, config: WorkerConfig, lines: HostLines) -> None:
        self._config = config
        self._lines = lines
        self._progress = Progress()
        self._stage: LoadedStage | None = None

    def run(self) -> None:
        """Attest, load, work; returns after the end of the stream has been passed on."""
        config = self._config
        measurement = measure()
        warm_up()
        isa = local_isa()
        provider = open_provider(config.provider, read_platform(config.platform_file))
        vault_fd = open_vault(config.vault)
        control = Listener(Address.parse(config.control))
        data = [Listener(Address.parse(text)) for text in config.data]
        tcp = control.address.kind == "tcp"
        # Before any thread starts: what runs already would keep its rights.
        hardening = harden(
            read_paths=[Path(config.vault)],
            socket_dirs=[] if tcp else [Path(config.runtime_dir)],
            tcp=tcp,
            platform=config.platform,
        )
        wires = self._lines.wires(on_end=lambda: os._exit(0))
        threading.Thread(target=self.beat, name="heartbeat", daemon=True).start()
        self._lines.say(
            ReadyLine(
                control=str(control.address),
                data=tuple(str(listener.address) for listener in data),
                measurement=measurement.hex(),
                hardening=tuple(hardening),
            )
        )
        mapped = config.platform == "process"
        stage = admit(control, provider, measurement, vault_fd, isa, mapped=mapped)
        self._stage = stage
        control.close()
        try:
            self._work(stage, data, wires.get().next)
        finally:
            for listener in data:
                listener.close()

    def _work(self, stage: LoadedStage, data: Sequence[Listener], following: Sequence[str]) -> None:
        replica, (before, after) = stage.grant.replica, hops(stage)
        receiver = FanIn(before, replica, [listener.accept for listener in data])
        targets = [Address.parse(text) for text in following]
        socks = [connect(target, timeout_s=_CONNECT_TIMEOUT_S) for target in targets]
        sender = FanOut(after, replica, socks)
        parts = (stage.program, stage.executor, stage.buffers, receiver, sender)
        Pipeline(*parts, self._progress, replica).run()
        self._beat_once()  # what it took in all

    def beat(self) -> None:
        """Tell the host, for ever, that the process lives and how long the current pass takes."""
        while True:
            self._beat_once()
            time.sleep(self._config.heartbeat_s)

    def _beat_once(self) -> None:
        since_s = self._progress.busy_since_s
        busy_s = 0.0 if since_s is None else time.monotonic() - since_s
        metrics = StageMetrics() if self._stage is None else self._stage.executor.metrics
        self._lines.say(BeatLine(busy_s=busy_s, frames=self._progress.frames, metrics=metrics))


def hops(stage: LoadedStage) -> tuple[Hop, Hop]:
    """The hops before and after a stage, all of them from its grant and its vault.

    Raises:
        GrantRefused: for a replica that the sealed stage does not have.
    """
    settings, grant, buffers = stage.program.settings, stage.grant, stage.buffers
    counts = (settings.sources, settings.replicas, settings.targets)
    if not 0 <= grant.replica < settings.replicas:
        raise GrantRefused("the grant is for a replica that the stage does not have")
    secrets = (grant.hop_in_secret, grant.hop_out_secret)
    layouts = (buffers.input_layout, buffers.output_layout)
    before, after = (
        Hop(
            number=settings.stage + k,
            epoch=grant.epoch,
            secret=secrets[k],
            message_bytes=layouts[k].message_bytes,
            sources=counts[k],
            targets=counts[k + 1],
        )
        for k in range(2)
    )
    return before, after


def read_platform(path: str | None) -> bytes | None:
    """The simulated platform's secrets; real platforms have theirs in the processor.

    Raises:
        RemoteProtocolError: the host named a file that can't be read.
    """
    try:
        return None if path is None else Path(path).read_bytes()
    except OSError as error:
        raise RemoteProtocolError("cannot read the platform file", got=str(error)) from error


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


def main() -> None:
    """Run one worker; exits 0 after the end of the stream, else with the error's code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the owner's to handle
    lines = HostLines()
    threading.excepthook = lambda hook: os._exit(report_bug(lines, hook.exc_type))
    code = 0
    try:
        Worker(lines.config(), lines).run()
    except VaultlineError as error:
        refused = isinstance(error, RefusedError)
        lines.say(FailedLine(code=error.code, message=error.message, refused=refused))
        code = error.exit_code
    except Exception as error:
        code = report_bug(lines, type(error))
    # Threads may be blocked in system calls; there is nothing left to wait for.
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
