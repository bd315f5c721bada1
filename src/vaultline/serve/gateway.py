"""The owner's gateway: servers launched, attested and granted; requests in, answers out.

Every request that was taken ends once: with its answer, or with an error that says why. What a
lost server held goes to others.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Literal

from vaultline.core.errors import InputError, LocalProtocolError, PeerError, VaultlineError
from vaultline.core.frame_meta import FrameMeta, write_meta
from vaultline.core.frames import StageTimes
from vaultline.host.eventlog import EventLog
from vaultline.owner.arrays import Array
from vaultline.owner.served import ServedModel
from vaultline.sched.balancer import Balancer
from vaultline.sched.events import Request
from vaultline.sched.replay import LogEntry
from vaultline.sched.replicas import Change, ReplicaControl, ReplicaSettings
from vaultline.sched.wire import (
    DrainMessage,
    InstallMessage,
    RefusedRequestMessage,
    RemoveMessage,
    ReportedMessage,
)
from vaultline.serve.answers import (
    Answer,
    DrainingError,
    GatewayClosedError,
    Loss,
    OverloadedError,
    RefusedByServerError,
    ServersLostError,
)
from vaultline.serve.cluster import ServerSpec
from vaultline.serve.dispatch import Dispatcher, Pending
from vaultline.serve.fleet import Fleet, GatewaySettings
from vaultline.serve.oversight import Drained, Order, Oversight, TellDrain
from vaultline.serve.plan import ServingPlan, write_request
from vaultline.serve.prepared import Prepared
from vaultline.serve.server_link import Appraise, ServerLink
from vaultline.serve.status import GatewayStatus

_TICK_S = 0.1
BALANCER_LOG = "balancer.jsonl"


class Gateway:
    """Serves models on servers: a context manager that is entered once. Any thread may submit."""

    def __init__(
        self,
        models: Sequence[Prepared],
        servers: Sequence[ServerSpec],
        policy: str,
        *,
        platform_file: Path | None,
        appraise: Appraise,
        transport: Literal["unix", "tcp"] = "unix",
        log_dir: Path | None = None,
        settings: GatewaySettings | None = None,
        placement: Mapping[str, Sequence[str]] | None = None,
        replicas: ReplicaSettings | None = None,
    ) -> None:
        """Start nothing yet.

        Args:
            policy: a name of ``sched.policies``.
            platform_file: of the simulated platform.
            appraise: accepts evidence or raises, as a session's.
            log_dir: for ``balancer.jsonl`` and each server's ``server-NAME.jsonl``.
            placement: models of each server at the start; by default every server has all.
            replicas: models come and go by these rules; by default they stay where they are.

        Raises:
            InputError: no model, two of one name, an unknown policy.
            InfeasibleError: a server that can't run a model.
        """
        self._plan = ServingPlan(models, servers, policy, placement or {})
        self.facts = self._plan.facts
        self._appraise, self._log_dir = appraise, log_dir
        self._settings = settings or GatewaySettings()
        self._layouts = [model.served.input_layout for model in self._plan.models]
        self._log: EventLog | None = None
        self._lock = threading.Lock()
        chooser = self._plan.policy.chooser()
        balancer = Balancer(self.facts, self._plan.model_facts, chooser)
        self._dispatcher = Dispatcher(balancer, self._to_log if log_dir else None)
        self._oversight = Oversight(
            silence_s=self._settings.silence_s,
            stall_s=self._settings.stall_s,
            control=None if replicas is None else ReplicaControl(balancer, replicas),
        )
        self._fleet = Fleet(
            self._plan,
            self._settings,
            self,
            platform_file=platform_file,
            transport=transport,
            log_dir=log_dir,
        )
        self._next = itertools.count()
        self._decisions, self._decision_s = 0, 0.0
        self._entered = self._serving = False
        self._drained = threading.Event()
        self._closing = threading.Event()
        self._stack = contextlib.ExitStack()

    # Start and end.

    def __enter__(self) -> Gateway:
        """Launch, attest, grant and connect every server, and wait until all have their models.

        Raises:
            LocalProtocolError: entered before.
            VaultlineError: whatever kept a server from starting; nothing is left of any.
        """
        if self._entered:
            raise LocalProtocolError("a gateway serves once; make another one")
        self._entered = True
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> None:
        self._open_log()
        folder = self._stack.enter_context(
            tempfile.TemporaryDirectory(prefix="vaultline-gateway-", ignore_cleanup_errors=True)
        )
        self._fleet.start(Path(folder), self._appraise)
        with self._lock:
            self._serving = True
        watcher = threading.Thread(target=self._watch, name="servers", daemon=True)
        watcher.start()
        self._stack.callback(watcher.join)
        for link, error in self._fleet.broken():  # while the last ones started
            self._lose(link, error)

    def _open_log(self) -> None:
        if self._log_dir is None:
            return
        try:
            self._log_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            got = f"{self._log_dir}: {error.strerror}"
            raise InputError("cannot make a folder for logs", got=got) from error
        self._log = EventLog(self._log_dir / BALANCER_LOG, self._plan.log_header)

    def close(self) -> None:
        """Stop every server; requests without an end get an error. Safe to call twice."""
        self._closing.set()
        with self._lock:
            self._oversight.draining = True
            pending = self._dispatcher.take_all()
        for each in pending:
            each.future.set_exception(GatewayClosedError("the gateway was closed meanwhile"))
        self._fleet.stop()
        self._stack.close()
        self._fleet.dispose()
        with self._lock:
            if self._log is not None:
                self._log.close()

    # Requests.

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """What is served."""
        return tuple(model.served for model in self._plan.models)

    def submit(
        self,
        model: str,
        tensors: Sequence[Array] | Mapping[str, Array],
        *,
        deadline_s: float | None = None,
        priority: int = 0,
    ) -> Future[Answer]:
        """Send a request to whichever server the policy chooses.

        The future ends with the answer, with ``RefusedByServerError`` and its reason, or with
        ``ServersLostError``. Its callbacks run on a thread that answers wait for: keep them short.

        Args:
            tensors: the model's inputs, by name or in its order, of exactly its shapes and types.
            deadline_s: from now; a server refuses what can't be done by then.
            priority: higher ones go first within a model.

        Raises:
            InputError: an unknown model, tensors that don't fit it, or a deadline in the past.
            DrainingError, OverloadedError: no request is taken at all, or no more for now.
            ServersLostError: no server is left.
        """
        number = self._plan.number(model)
        if deadline_s is not None and not 0 <= deadline_s < 1e9:
            raise InputError("a deadline lies ahead", got=f"{deadline_s} s from now")
        layout = self._layouts[number]
        message = memoryview(bytearray(layout.message_bytes))
        write_request(self._plan.models[number].served, message, tensors)
        future: Future[Answer] = Future()
        future.set_running_or_notify_cancel()  # on its way: it can't be cancelled
        with self._lock:
            self._check_open(len(message))
            now_s = time.monotonic()
            request = Request(
                number=next(self._next),
                model=model,
                arrived_s=now_s,
                deadline_s=None if deadline_s is None else now_s + deadline_s,
                priority=priority,
            )
            meta = FrameMeta(index=request.number, timestamp_s=now_s, sent_ns=time.monotonic_ns())
            write_meta(layout, message, meta)
            pending = Pending(request=request, model=number, message=message, future=future)
            self._oversight.arrived(model, now_s)
            before_s = time.perf_counter()
            server = self._dispatcher.submit(pending, now_s)
            self._decision_s += time.perf_counter() - before_s
            self._decisions += 1
            if server is None:
                raise ServersLostError("no server has the model", got=model)
            self._fleet[server].send(pending)
        return future

    def _check_open(self, message_bytes: int) -> None:
        if self._oversight.draining or not self._serving:
            raise DrainingError("the gateway takes no requests: it is shutting down or not open")
        held = self._dispatcher.open_bytes
        if held + message_bytes > self._settings.held_bytes_max:
            raise OverloadedError(
                "too many requests wait for an answer",
                got=f"{len(self._dispatcher.open)} of {held:,} bytes",
                expected=f"at most {self._settings.held_bytes_max:,} bytes",
                remedy="send fewer, or wait for answers",
            )

    # What servers say, on their threads.

    def answered(
        self,
        link: ServerLink,
        number: int,
        outputs: dict[str, Array],
        times: tuple[StageTimes, ...],
    ) -> None:
        """Give an answer to whoever waits for it, once."""
        now_s = time.monotonic()
        with self._lock:
            pending = self._dispatcher.ended(link.name, number, "answered", now_s)
        if pending is not None:
            pending.future.set_result(
                Answer(
                    outputs=outputs,
                    number=number,
                    model=pending.request.model,
                    server=link.name,
                    latency_s=now_s - pending.request.arrived_s,
                    times=times,
                    attempts=pending.attempts,
                )
            )

    def refused(self, link: ServerLink, message: RefusedRequestMessage) -> None:
        """Send it elsewhere, or tell whoever waits why there will be no answer."""
        now_s, number = time.monotonic(), message.number
        with self._lock:
            if message.elsewhere:
                moved = self._dispatcher.returned(link.name, number, now_s)
                if moved is not None:
                    self._fleet[moved.server].send(moved)
                    return
            pending = self._dispatcher.ended(link.name, number, "refused", now_s)
        if pending is not None:
            pending.future.set_exception(
                RefusedByServerError(
                    f"server {link.name} refused a request for {pending.request.model}",
                    server=link.name,
                    reason=message.reason,
                )
            )

    def reported(self, link: ServerLink, message: ReportedMessage) -> None:
        """Tell the balancer."""
        with self._lock:
            if not self._fleet.is_lost(link.name):
                self._dispatcher.reported(message.report, time.monotonic())

    def broken(self, link: ServerLink, error: VaultlineError) -> None:
        """A connection ended, or its server broke the protocol."""
        link.fail(error)
        with self._lock:
            serving = self._serving
        if serving:
            self._lose(link, error)

    def _lose(self, link: ServerLink, error: VaultlineError) -> None:
        """Others take over what a server held; then what is left of it is stopped."""
        if self._closing.is_set():
            return
        with self._lock:
            if self._fleet.is_lost(link.name):
                return
            loss = Loss(
                server=link.name,
                code=error.code,
                message=error.message,
                heard_s=link.heard_s,
                lost_s=time.monotonic(),
            )
            moved, unplaced = self._dispatcher.lost(loss)
            for pending in moved:
                self._fleet[pending.server].send(pending)
            self._fleet.lose(link, error, lambda reason: self._name_loss(link.name, reason))
        link.hang_up()
        for pending in unplaced:
            pending.future.set_exception(
                ServersLostError(f"server {link.name} was lost and no other has the model")
            )

    def _name_loss(self, server: str, reason: PeerError) -> None:
        with self._lock:
            self._dispatcher.name_loss(server, reason.got or reason.code, reason.message)

    # As time passes.

    def _watch(self) -> None:
        """Do what the oversight decides, until the end."""
        while not self._closing.wait(_TICK_S):
            now_s = time.monotonic()
            with self._lock:
                unfit = self._oversight.unfit(self._fleet.alive(), now_s)
            for name, error in unfit.items():
                self._lose(self._fleet[name], error)
            with self._lock:
                alive, idle = self._fleet.alive(), not self._dispatcher.open
                for order in self._oversight.orders(alive, idle=idle, now_s=now_s):
                    self._obey(order, alive)
                if self._log is not None:
                    self._log.flush()

    def _obey(self, order: Order, alive: Sequence[ServerLink]) -> None:
        match order:
            case TellDrain():
                for link in alive:
                    link.send(DrainMessage())
            case Drained():
                self._drained.set()
            case Change(server=server, model=model, there=there):
                if self._dispatcher.placed(server, model, there=there):
                    kind = InstallMessage if there else RemoveMessage
                    self._fleet[server].send(kind(model=model))

    def begin_drain(self) -> None:
        """Take no more requests; those that are here are finished. Signal handlers may call it."""
        self._oversight.draining = True

    def wait_drained(self, timeout_s: float) -> bool:
        """After ``begin_drain``: until all requests have ended and every server says so; False if
        that takes longer. Not for signal handlers."""
        return self._drained.wait(timeout_s)

    # What it knows.

    def status(self) -> GatewayStatus:
        """All at one instant; of servers what they said last, for which nobody vouches."""
        with self._lock:
            return GatewayStatus(
                servers=self._fleet.status(),
                counters=self._dispatcher.counters(),
                losses=self._dispatcher.losses(),
                decisions=self._decisions,
                decision_s=self._decision_s,
            )

    def server_pids(self, name: str) -> tuple[int, ...]:
        """A server's processes: its host, then its worker."""
        return self._fleet[name].pids

    def _to_log(self, entry: LogEntry) -> None:
        if self._log is not None:
            self._log.write(entry)
