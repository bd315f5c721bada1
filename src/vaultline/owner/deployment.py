"""A plan's workers for one run: launched by the host, attested, granted and connected to."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from vaultline.attest.challenge import Challenge
from vaultline.attest.evidence import Evidence
from vaultline.attest.refusals import KindRefused
from vaultline.core.errors import PeerError, VaultlineError
from vaultline.core.frames import FrameLayout
from vaultline.core.hostline import (
    EndpointsLine,
    HostLine,
    LaunchRequest,
    LaunchWorker,
    WorkerLostLine,
)
from vaultline.core.plan import Plan
from vaultline.owner.hostlink import HostLink, HostLostError, endpoint, lost_error
from vaultline.owner.release import Epoch, RefusedByPeerError, Release, StageSecrets, release
from vaultline.transport.sockets import Address, Listener, connect, hang_up
from vaultline.transport.streams import FanIn, FanOut, Hop

#: For the host's word, beyond what the slowest worker may take to start.
_LAUNCH_S = 30.0
_CONNECT_S = 10.0
#: How long to wait for the host's word on which worker was lost, once a hop has broken.
REASON_S = 2.0

Appraise = Callable[[Evidence, Challenge], object]


class Deployment:
    """Workers, their host, and the owner's two ends of the pipeline. Opened once; no threads.

    Attributes:
        epoch: of this run, with its id.
        releases: of keys, one to each worker.
        endpoints: where the host says that workers are.
        sender, receiver: of the first hop and of the last one, once it is open.
    """

    sender: FanOut
    receiver: FanIn
    endpoints: EndpointsLine

    def __init__(
        self,
        plan: Plan,
        secrets: Sequence[StageSecrets],
        workers: Sequence[LaunchWorker],
        appraise: Appraise,
        *,
        transport: Literal["unix", "tcp"],
        result_bind: str,
    ) -> None:
        self._plan, self._secrets, self._workers = plan, tuple(secrets), tuple(workers)
        self._appraise = appraise
        self._transport, self._result_bind = transport, result_bind
        self._stack = contextlib.ExitStack()
        self._listeners: list[Listener] = []
        self.epoch = Epoch(
            deployment=os.urandom(16), number=time.time_ns() // 1000, plan_digest=plan.digest
        )
        self.releases: tuple[Release, ...] = ()

    def open(self, sent: FrameLayout, returned: FrameLayout) -> None:
        """Launch, attest, grant and connect. Whatever comes of it, ``close`` it.

        Args:
            sent, returned: of the messages of the first hop and of the last one.

        Raises:
            VaultlineError: whatever kept the deployment from starting.
        """
        own_dir = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="vaultline-owner-"))
        for replica in range(len(self._plan.stages[-1].devices)):
            listener = Listener(self._result_address(Path(own_dir), replica))
            self._stack.callback(listener.close)
            self._listeners.append(listener)
        self._host = HostLink(
            LaunchRequest(
                workers=self._workers,
                transport=self._transport,
                results=tuple(str(listener.address) for listener in self._listeners),
            )
        )
        self._stack.callback(self._host.dispose)
        self._stack.callback(self._host.stop)
        self.endpoints = self._wait_endpoints()
        try:
            self._grant_all(self.endpoints)
            socks = self._connect_first(self.endpoints)
        except RefusedByPeerError:
            raise
        except PeerError as error:
            raise self._host_reason() or error from error
        before, after = self._hops(sent, returned)
        self.sender = FanOut(before, 0, socks)
        self.receiver = FanIn(after, 0, [listener.accept for listener in self._listeners])
        self._stack.callback(self.receiver.close)

    @property
    def host_pid(self) -> int:
        """The untrusted host's process."""
        return self._host.pid

    def poll(self, timeout_s: float) -> HostLine | None:
        """The host's next line, or None if there was none in time.

        Raises:
            HostLostError: the host closed its line or said something it must not.
        """
        return self._host.poll(timeout_s)

    def interrupt(self) -> None:
        """Wake whoever waits on a socket of the pipeline; nothing more comes or goes."""
        for listener in self._listeners:
            listener.close()
        self.sender.close()
        self.receiver.close()

    def stop_host(self) -> None:
        """End the host and its workers, which ends its line too. Safe to call twice."""
        self._host.stop()

    def close(self) -> None:
        """Stop everything that was started; nobody may be polling any more. Safe to call twice."""
        self._stack.close()

    def _result_address(self, own_dir: Path, replica: int) -> Address:
        if self._transport == "unix":
            return Address("unix", str(own_dir / f"result{replica}"))
        return Address("tcp", self._result_bind, 0)

    def _wait_endpoints(self) -> EndpointsLine:
        start_s_max = max(worker.start.start_s_max for worker in self._workers) + _LAUNCH_S
        deadline_s = time.monotonic() + start_s_max
        while (rest_s := deadline_s - time.monotonic()) > 0:
            line = self._host.poll(rest_s)
            if isinstance(line, EndpointsLine):
                return line
            if isinstance(line, WorkerLostLine):
                raise lost_error(line)
        raise HostLostError(
            "the host did not start the workers", expected=f"within {start_s_max} s"
        )

    def _grant_all(self, endpoints: EndpointsLine) -> None:
        """All are granted before the first is waited for: loading overlaps."""
        stages = enumerate(self._plan.stages)
        places = [(stage, k) for stage, planned in stages for k in range(len(planned.devices))]
        if {len(endpoints.control), len(endpoints.data)} != {len(places)}:
            raise HostLostError("the host started another number of workers than asked for")
        if not all(endpoints.data):
            raise HostLostError("the host started a worker that takes no frames")
        releases = []
        for (stage, replica), address in zip(places, endpoints.control, strict=True):
            granted = release(
                endpoint(address, self._transport),
                stage,
                self.epoch,
                self._secrets[stage],
                self._appraise_planned,
                replica=replica,
            )
            self._stack.callback(granted.close)
            releases.append(granted)
        for granted in releases:
            granted.wait_loaded()
        self.releases = tuple(releases)

    def _appraise_planned(self, evidence: Evidence, challenge: Challenge) -> object:
        """A policy may accept several kinds; a stage gets the one that the plan says, so that no
        simulated enclave stands in for one in hardware."""
        planned = self._plan.stages[challenge.stage].device.kind
        if evidence.kind != planned:
            raise KindRefused(
                f"stage {challenge.stage} runs in another kind of enclave than planned",
                got=evidence.kind,
                expected=planned,
                remedy="launch the worker on the planned device, or plan for what is there",
            )
        return self._appraise(evidence, challenge)

    def _connect_first(self, endpoints: EndpointsLine) -> list[socket.socket]:
        """To every replica of the first stage."""
        socks = []
        for addresses in endpoints.data[: len(self._plan.stages[0].devices)]:
            sock = connect(endpoint(addresses[0], self._transport), timeout_s=_CONNECT_S)
            self._stack.callback(hang_up, sock)
            socks.append(sock)
        return socks

    def _host_reason(self) -> VaultlineError | None:
        """Why an enclave vanished before the stream began, if the host can say."""
        deadline_s = time.monotonic() + REASON_S
        try:
            while (rest_s := deadline_s - time.monotonic()) > 0:
                line = self._host.poll(rest_s)
                if isinstance(line, WorkerLostLine):
                    return lost_error(line)
        except HostLostError as error:
            return error
        return None

    def _hops(self, sent: FrameLayout, returned: FrameLayout) -> tuple[Hop, Hop]:
        """The owner's own: it is the one source of the first and the one target of the last."""
        first, last = self._plan.stages[0], self._plan.stages[-1]
        before = Hop(
            number=0,
            epoch=self.epoch.number,
            secret=self._secrets[0].hop_in_secret,
            message_bytes=sent.message_bytes,
            targets=len(first.devices),
        )
        after = Hop(
            number=len(self._plan.stages),
            epoch=self.epoch.number,
            secret=self._secrets[-1].hop_out_secret,
            message_bytes=returned.message_bytes,
            sources=len(last.devices),
        )
        return before, after
