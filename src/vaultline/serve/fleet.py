"""A gateway's servers: started side by side, lost one by one, ended together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vaultline.core.errors import PeerError, VaultlineError
from vaultline.serve.answers import ServerLostError
from vaultline.serve.cluster import ServerSpec
from vaultline.serve.plan import ServingPlan
from vaultline.serve.server_link import Appraise, Listener, ServerLink
from vaultline.serve.status import ServerStatus
from vaultline.transport.sockets import ConnectionLostError


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """When to give up, and how much to hold.

    Attributes:
        bind: address that hosts and workers listen on, for TCP.
        report_s: between a server's reports.
        silence_s: a server that says nothing for so long is lost.
        stall_s: so is one that has requests and ends none of them.
        start_s: for launch, grants and installation of a server.
        held_bytes_max: messages of requests without an end; more are refused.
    """

    bind: str = "127.0.0.1"
    report_s: float = 0.1
    silence_s: float = 3.0
    stall_s: float = 60.0
    start_s: float = 180.0
    held_bytes_max: int = 1 << 30


class Fleet:
    """Servers by name. Nothing here locks: the gateway calls ``lose``, ``alive`` and ``status``
    under its own lock."""

    def __init__(
        self,
        plan: ServingPlan,
        settings: GatewaySettings,
        listener: Listener,
        *,
        platform_file: Path | None,
        transport: Literal["unix", "tcp"],
        log_dir: Path | None,
    ) -> None:
        """``listener`` is told what servers say, on their threads."""
        self._plan, self._settings, self._listener = plan, settings, listener
        self._platform_file, self._transport = platform_file, transport
        self._log_dir = log_dir
        self._links: dict[str, ServerLink] = {}
        self._lost: set[str] = set()
        self._ending: list[threading.Thread] = []

    def __getitem__(self, name: str) -> ServerLink:
        return self._links[name]

    def start(self, folder: Path, appraise: Appraise) -> None:
        """Launch, attest, grant and connect all, and wait until each has its models. Every step is
        taken by all of them before the next, so that they load at the same time.

        Args:
            folder: for sockets.

        Raises:
            VaultlineError: whatever kept one from starting; ``stop`` and ``dispose`` the rest.
        """
        for number, spec in enumerate(self._plan.specs):
            self._links[spec.name] = self._launch(number, spec, folder / str(number))
        deadline_s = time.monotonic() + self._settings.start_s
        steps: list[Callable[[ServerLink], None]] = [
            lambda link: link.wait_ready(deadline_s),
            lambda link: link.release(appraise),
            lambda link: link.wait_loaded(),
            lambda link: link.connect(),
            lambda link: link.wait_reported(deadline_s),
        ]
        for step in steps:
            for link in self._links.values():
                try:
                    step(link)
                except ServerLostError:
                    raise
                except PeerError as error:  # its host may know better why
                    raise link.reason() or error from error

    def _launch(self, number: int, spec: ServerSpec, folder: Path) -> ServerLink:
        folder.mkdir(mode=0o700)
        launch = self._plan.launch(
            number,
            folder,
            platform_file=self._platform_file,
            transport=self._transport,
            bind=self._settings.bind,
            report_s=self._settings.report_s,
            log=None if self._log_dir is None else self._log_dir / f"server-{spec.name}.jsonl",
        )
        grant = self._plan.grant(number)
        return ServerLink(spec, launch, grant, self._plan.models, self._listener)

    def broken(self) -> list[tuple[ServerLink, VaultlineError]]:
        """Those whose connection has ended, and why."""
        return [(link, link.error) for link in self._links.values() if link.error is not None]

    def alive(self) -> list[ServerLink]:
        """Those that are not lost."""
        return [link for name, link in self._links.items() if name not in self._lost]

    def is_lost(self, name: str) -> bool:
        """Whether it has been given up."""
        return name in self._lost

    def lose(
        self, link: ServerLink, error: VaultlineError, told: Callable[[PeerError], None]
    ) -> None:
        """Give one up. What is left of it is stopped on a thread of its own, on which ``told``
        gets the reason that its host has, if that can say.

        A host that hung up may; one that is silent, stuck or lies is not asked.
        """
        self._lost.add(link.name)
        hung_up = isinstance(error, ConnectionLostError)

        def end() -> None:
            reason = link.reason() if hung_up else None
            if reason is not None:
                told(reason)
            link.stop(by_force=not hung_up)

        ending = threading.Thread(target=end, name=f"end-{link.name}", daemon=True)
        self._ending.append(ending)
        ending.start()

    def stop(self) -> None:
        """End all, and wait for that. Safe to call twice."""
        for link in self._links.values():
            link.hang_up()
        for link in self._links.values():
            link.stop()
        for thread in self._ending:
            thread.join()

    def dispose(self) -> None:
        """Close the hosts' lines; nobody may be waiting for a reason any more."""
        for link in self._links.values():
            link.dispose()

    def status(self) -> tuple[ServerStatus, ...]:
        """What each has said last, for which nobody vouches."""
        return tuple(
            ServerStatus(
                name=name,
                cores=link.spec.cores,
                memory_bytes=link.spec.memory_bytes,
                alive=name not in self._lost,
                in_flight=0 if name in self._lost else link.in_flight,
                turn=0 if link.report is None else link.report.turn,
                backlog_s=0.0 if link.report is None else link.report.backlog_s,
                metrics=link.metrics,
            )
            for name, link in self._links.items()
        )
