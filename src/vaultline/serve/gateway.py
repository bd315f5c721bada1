"""The owner's gateway: servers launched, attested and granted; requests in, answers out.

Every request that was taken ends once: with its answer, or with an error that says why. What a
lost server held goes to others.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vaultline.core.errors import InputError, LocalProtocolError, PeerError, VaultlineError
from vaultline.core.frame_meta import FrameMeta, write_meta
from vaultline.core.frames import StageTimes
from vaultline.host.eventlog import EventLog
from vaultline.owner.served import ServedModel
from vaultline.sched.balancer import Balancer
from vaultline.sched.events import Request
from vaultline.sched.replay import LogEntry, decode
from vaultline.sched.replicas import ReplicaControl, ReplicaSettings
from vaultline.sched.wire import (
    DrainMessage,
    InstallMessage,
    RefusedRequestMessage,
    RemoveMessage,
    ReportedMessage,
    ServerMetrics,
)
from vaultline.serve.answers import (
    Answer,
    Array,
    Counters,
    DrainingError,
    GatewayClosedError,
    Loss,
    OverloadedError,
    RefusedByServerError,
    ServerLostError,
    ServersLostError,
)
from vaultline.serve.cluster import ServerSpec
from vaultline.serve.dispatch import Dispatcher, Pending
from vaultline.serve.plan import ServingPlan, write_request
from vaultline.serve.prepared import Prepared
from vaultline.serve.server_link import Appraise, ServerLink
from vaultline.serve.status import GatewayStatus, ServerStatus
from vaultline.transport.sockets import ConnectionLostError

_TICK_S = 0.1
#: Between decisions about replicas.
_CONTROL_S = 1.0
#: A gateway that looks so late was stopped itself, and has not heard what was said meanwhile.
_STOPPED_S = 1.0
BALANCER_LOG = "balancer.jsonl"


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
        self._platform_file, self._appraise = platform_file, appraise
        self._transport, self._log_dir = transport, log_dir
        self._settings = settings or GatewaySettings()
        self._layouts = [model.served.input_layout for model in self._plan.models]
        self._log: EventLog | None = None
        self._lock = threading.Lock()
        chooser = self._plan.policy.chooser()
        balancer = Balancer(self.facts, self._plan.model_facts, chooser)
        self._dispatcher = Dispatcher(balancer, self._to_log if log_dir else None)
        self._control = None if replicas is None else ReplicaControl(balancer, replicas)
        self._links: dict[str, ServerLink] = {}
        self._lost: set[str] = set()
        self._next = itertools.count()
        self._counts = dict.fromkeys(("submitted", "answered", "refused", "failed", "late"), 0)
        self._decisions, self._decision_s = 0, 0.0
        self._draining = self._entered = self._serving = False
        self._told_drain = False
        self._drained = threading.Event()
        self._closing = threading.Event()
        self._ending: list[threading.Thread] = []
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
        for number, spec in enumerate(self._plan.specs):
            self._links[spec.name] = self._launch(number, spec, Path(folder) / str(number))
        deadline_s = time.monotonic() + self._settings.start_s
        links = list(self._links.values())
        steps: list[Callable[[ServerLink], None]] = [
            lambda link: link.wait_ready(deadline_s),
            lambda link: link.release(self._appraise),
            lambda link: link.wait_loaded(),
            lambda link: link.connect(),
            lambda link: link.wait_reported(deadline_s),
        ]
        for step in steps:
            for link in links:
                try:
                    step(link)
                except ServerLostError:
                    raise
                except PeerError as error:  # its host may know better why
                    raise link.reason() or error from error
        with self._lock:
            self._serving = True
        watcher = threading.Thread(target=self._watch, name="servers", daemon=True)
        watcher.start()
        self._stack.callback(watcher.join)
        for link in links:  # what was lost while the last ones started
            if link.error is not None:
                self._lose(link, link.error)

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
        return ServerLink(spec, launch, self._plan.grant(number), self._plan.models, self)

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
            self._draining = True
            pending = self._dispatcher.take_all()
        for each in pending:
            each.future.set_exception(GatewayClosedError("the gateway was closed meanwhile"))
        for link in self._links.values():
            link.hang_up()
        for link in self._links.values():
            link.stop()
        for thread in self._ending:
            thread.join()
        self._stack.close()
        for link in self._links.values():
            link.dispose()
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
        number = self._number_of(model, deadline_s)
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
            if self._control is not None:
                self._control.arrived(model, now_s)
            before_s = time.perf_counter()
            server = self._dispatcher.submit(pending, now_s)
            self._decision_s += time.perf_counter() - before_s
            self._decisions += 1
            if server is None:
                raise ServersLostError("no server has the model", got=model)
            self._counts["submitted"] += 1
            self._links[server].send(pending)
        return future

    def _number_of(self, model: str, deadline_s: float | None) -> int:
        numbers = self._plan.numbers
        if model not in numbers:
            raise InputError(
                "no such model is served", got=model, expected=", ".join(sorted(numbers))
            )
        if deadline_s is not None and not 0 <= deadline_s < 1e9:
            raise InputError("a deadline lies ahead", got=f"{deadline_s} s from now")
        return numbers[model]

    def _check_open(self, message_bytes: int) -> None:
        if self._draining or not self._serving:
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
        pending = self._end(link, number, "answered", now_s)
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
        now_s = time.monotonic()
        if message.elsewhere:
            with self._lock:
                moved = self._dispatcher.returned(link.name, message.number, now_s)
                if moved is not None:
                    self._links[moved.server].send(moved)
                    return
        pending = self._end(link, message.number, "refused", now_s)
        if pending is not None:
            pending.future.set_exception(
                RefusedByServerError(
                    f"server {link.name} refused a request for {pending.request.model}",
                    server=link.name,
                    reason=message.reason,
                )
            )

    def _end(self, link: ServerLink, number: int, how: str, now_s: float) -> Pending | None:
        with self._lock:
            pending = self._dispatcher.ended(link.name, number, now_s)
            self._counts["late" if pending is None else how] += 1
        return pending

    def reported(self, link: ServerLink, message: ReportedMessage) -> None:
        """Tell the balancer."""
        with self._lock:
            if link.name not in self._lost:
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
            if link.name in self._lost:
                return
            self._lost.add(link.name)
            loss = Loss(
                server=link.name,
                code=error.code,
                message=error.message,
                heard_s=link.heard_s,
                lost_s=time.monotonic(),
            )
            moved, unplaced = self._dispatcher.lost(loss)
            for pending in moved:
                self._links[pending.server].send(pending)
            self._counts["failed"] += len(unplaced)
            ending = threading.Thread(
                target=self._stop_lost, args=(link, error), name=f"end-{link.name}", daemon=True
            )
            self._ending.append(ending)
            ending.start()
        link.hang_up()
        for pending in unplaced:
            pending.future.set_exception(
                ServersLostError(f"server {link.name} was lost and no other has the model")
            )

    def _stop_lost(self, link: ServerLink, error: VaultlineError) -> None:
        """A host that hung up may say why; one that is silent, stuck or lies is not asked."""
        hung_up = isinstance(error, ConnectionLostError)
        reason = link.reason() if hung_up else None
        if reason is not None:
            with self._lock:
                self._dispatcher.name_loss(link.name, reason.got or reason.code, reason.message)
        link.stop(by_force=not hung_up)

    def _watch(self) -> None:
        """Find servers that are silent or don't get on, and see a drain through."""
        settings, looked_s = self._settings, time.monotonic()
        decided_s = looked_s
        while not self._closing.wait(_TICK_S):
            now_s = time.monotonic()
            if now_s - looked_s > _STOPPED_S:  # it was us who slept
                for link in self._alive():
                    link.heard_s = now_s
            looked_s = now_s
            for link in self._alive():
                silent_s, stalled_s = link.silent_s(now_s), link.stalled_s(now_s)
                if silent_s > settings.silence_s and not link.drained:
                    text = f"server {link.name} has been silent for {silent_s:.1f} s"
                    self._lose(link, ServerLostError(text))
                elif stalled_s > settings.stall_s:
                    text = f"server {link.name} has ended no request for {stalled_s:.1f} s"
                    self._lose(link, ServerLostError(text))
            if self._draining:
                self._see_drained()
            elif self._control is not None and now_s - decided_s >= _CONTROL_S:
                decided_s = now_s
                self._change_replicas(self._control, now_s)
            with self._lock:
                if self._log is not None:
                    self._log.flush()

    def _change_replicas(self, control: ReplicaControl, now_s: float) -> None:
        with self._lock:
            for change in control.decide(now_s):
                name, model = change.server, change.model
                if self._dispatcher.placed(name, model, there=change.there):
                    kind = InstallMessage if change.there else RemoveMessage
                    self._links[name].send(kind(model=model))

    def _alive(self) -> list[ServerLink]:
        with self._lock:
            return [link for name, link in self._links.items() if name not in self._lost]

    # Draining.

    def begin_drain(self) -> None:
        """Take no more requests; those that are here are finished. Signal handlers may call it."""
        self._draining = True

    def drain(self, timeout_s: float) -> bool:
        """Take no more requests, and wait until those that are here have ended and every server
        says so; False if that takes longer. Not for signal handlers, which call ``begin_drain``.
        """
        self.begin_drain()
        return self._drained.wait(timeout_s)

    def wait_drained(self, timeout_s: float) -> bool:
        """After ``begin_drain``."""
        return self._drained.wait(timeout_s)

    def _see_drained(self) -> None:
        """Servers are drained once nothing is on its way: what one of them loses till then can
        still go to another."""
        with self._lock:
            empty = not self._dispatcher.open
        alive = self._alive()
        if empty and not self._told_drain:
            self._told_drain = True
            for link in alive:
                link.send(DrainMessage())
        if self._told_drain and all(link.drained for link in alive):
            self._drained.set()

    # What it knows.

    def counters(self) -> Counters:
        """So far."""
        with self._lock:
            return self._counters()

    def _counters(self) -> Counters:
        return Counters(
            **self._counts,
            moved=self._dispatcher.moved,
            lost_servers=len(self._lost),
            open=len(self._dispatcher.open),
            open_bytes=self._dispatcher.open_bytes,
        )

    def status(self) -> GatewayStatus:
        """All at one instant; of servers what they said last, for which nobody vouches."""
        with self._lock:
            return GatewayStatus(
                servers=tuple(
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
                ),
                counters=self._counters(),
                losses=tuple(self._dispatcher.losses()),
                decisions=self._decisions,
                decision_s=self._decision_s,
            )

    def losses(self) -> list[Loss]:
        """Servers that were lost, and when all that they held had been answered by others."""
        with self._lock:
            return self._dispatcher.losses()

    def servers(self) -> dict[str, bool]:
        """Every server, and whether it is there."""
        with self._lock:
            return {name: name not in self._lost for name in self._links}

    def server_metrics(self) -> dict[str, ServerMetrics]:
        """What every server said last; nobody vouches for it."""
        with self._lock:
            return {name: link.metrics for name, link in self._links.items()}

    def events(self) -> list[LogEntry]:
        """What the balancer was told and what it decided, from the log; nothing without
        ``log_dir``."""
        if self._log_dir is None:
            return []
        with self._lock:
            if self._log is not None:
                self._log.flush()
        with (self._log_dir / BALANCER_LOG).open("rb") as lines:
            return list(decode(lines))

    def server_pids(self, name: str) -> tuple[int, ...]:
        """A server's processes: its host, then its worker."""
        return self._links[name].pids

    def kill_server(self, name: str, *, worker: bool = False, how: int = signal.SIGKILL) -> None:
        """For tests: send a signal to a server's host, or to its worker."""
        os.kill(self.server_pids(name)[1 if worker else 0], how)

    def _to_log(self, entry: LogEntry) -> None:
        if self._log is not None:
            self._log.write(entry)
