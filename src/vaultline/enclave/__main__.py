"""``python -m vaultline.enclave``: configuration on standard input, lines on standard output."""

from __future__ import annotations

import time
from collections.abc import Sequence

from vaultline.attest.grant import GrantRefused
from vaultline.attest.stage_grant import Grant
from vaultline.core.control import BeatLine, StageMetrics, WorkerConfig
from vaultline.enclave.admission import admit
from vaultline.enclave.lines import HostLines
from vaultline.enclave.links import Links
from vaultline.enclave.pipeline import Pipeline, Progress
from vaultline.enclave.process import run, start
from vaultline.enclave.stage import LoadedStage, load_stage
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
        process = start(config, self._lines, self._beat, vaults=(config.vault,), data=config.data)
        mapped = config.platform == "process"
        self._stage = stage = admit(
            process, Grant, lambda grant, key: load_stage(grant, key, process, mapped=mapped)
        )
        try:
            self._work(stage, process.data, process.wires.get().next)
        finally:
            for listener in process.data:
                listener.close()

    def _work(self, stage: LoadedStage, data: Sequence[Listener], following: Sequence[str]) -> None:
        replica, (before, after) = stage.grant.replica, hops(stage)
        receiver = FanIn(before, replica, [listener.accept for listener in data])
        targets = [Address.parse(text) for text in following]
        socks = [connect(target, timeout_s=_CONNECT_TIMEOUT_S) for target in targets]
        sender = FanOut(after, replica, socks)
        parts = (stage.program, stage.executor, stage.buffers, receiver, sender)
        links, replicas = None, stage.program.settings.replicas
        if stage.grant.receipt_secret:
            links = Links(stage.grant, stage.key.ed25519, replicas, self._lines.say)
        Pipeline(*parts, self._progress, replica, links).run()
        self._lines.say(self._beat())  # what it took in all

    def _beat(self) -> BeatLine:
        """That the process lives, and how long the current pass takes."""
        since_s = self._progress.busy_since_s
        busy_s = 0.0 if since_s is None else time.monotonic() - since_s
        metrics = StageMetrics() if self._stage is None else self._stage.executor.metrics
        return BeatLine(busy_s=busy_s, frames=self._progress.frames, metrics=metrics)


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


def main() -> None:
    """Run one worker; exits 0 after the end of the stream, else with the error's code."""
    run(lambda lines: Worker(lines.config(WorkerConfig), lines).run())


if __name__ == "__main__":
    main()
