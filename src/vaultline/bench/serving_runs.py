"""Runs of servers for benchmarks: warmed up, metered, and with one of them killed under load."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from math import inf
from typing import Any, Protocol

from vaultline.bench.lasagna_results import Killed, Use
from vaultline.core.errors import MachineError
from vaultline.core.spread import spread
from vaultline.sched.events import Request
from vaultline.serve.answers import Loss
from vaultline.serve.load import Frame, OpenLoop
from vaultline.serve.status import GatewayStatus
from vaultline.sim.workload import WorkloadModel, zipf_weights

#: How long a run takes is the measurement; beyond this something is wrong.
PATIENCE_S = 300.0
#: Rounds of all models before anything is measured, one for each server and another one.
_WARM_ROUNDS = 3
#: Of a load's requests, before a server is killed.
_KILL_AT = 0.5


class Serving(Protocol):
    """Servers that run, and their gateway in this process."""

    def submit(self, request: Request, frame: Frame) -> Future[Any]:
        """Send a request now."""

    def status(self, *, fresh: bool = True) -> GatewayStatus:
        """As it is now, by reports that were made after this was asked unless they need not be."""

    def cpu_s(self) -> tuple[float, float, float]:
        """Processor time so far: of this process, of all hosts, of all workers."""

    def kill(self, server: str) -> None:
        """End a server's processes at once."""


def weighted_models(names: Sequence[str], zipf: float) -> tuple[WorkloadModel, ...]:
    """Models, the first one most popular."""
    weights = zipf_weights(len(names), zipf)
    return tuple(
        WorkloadModel(name=name, weight=weight) for name, weight in zip(names, weights, strict=True)
    )


def warm_requests(models: Sequence[str]) -> list[Request]:
    """Each model a few times."""
    return [
        Request(number=-1 - place, model=name, arrived_s=0.0)
        for place, name in enumerate([*models] * _WARM_ROUNDS)
    ]


def warm_up(serving: Serving, models: Sequence[str], inputs: Mapping[str, Sequence[Frame]]) -> int:
    """Send each model a few requests, so that all servers have run it; says how many.

    Raises:
        MachineError: a server does not answer.
    """
    requests = warm_requests(models)
    sent = OpenLoop(serving.submit, inputs).run(requests, patience_s=PATIENCE_S)
    bad = [each for each in sent if not each.answered]
    if bad:
        raise MachineError(
            "a server does not answer", got=bad[0].reason or "nothing", remedy="see its log"
        )
    return len(sent)


def killed_under_load(
    policy: str,
    serving: Serving,
    requests: Sequence[Request],
    inputs: Mapping[str, Sequence[Frame]],
) -> Killed:
    """Send requests, kill the server with most of them half way, and wait for all answers."""
    trigger = _KillHalfWay(serving, len(requests))
    loop = OpenLoop(trigger.submit, inputs)
    before_s = time.monotonic()
    sent = loop.run(requests, patience_s=PATIENCE_S)
    killed_s = trigger.killed_s - before_s
    after = serving.status()
    answered = [each for each in sent if each.answered]
    early = [each for each in answered if (each.ended_s or 0.0) < killed_s]
    late = [each for each in answered if each.request.arrived_s > killed_s]
    span_s = requests[-1].arrived_s - requests[0].arrived_s
    return Killed(
        policy=policy,
        requests=len(sent),
        answered=len(answered),
        lost=len(sent) - len(answered),
        doubled=loop.repeated,
        held=sum(loss.moved for loss in after.losses),
        killed_s=killed_s,
        noticed_s=max((loss.lost_s for loss in after.losses), default=inf) - trigger.killed_s,
        recovery_s=max(map(_recovered_s, after.losses), default=inf) - trigger.killed_s,
        answers_s=tuple(sorted(each.ended_s or 0.0 for each in answered)),
        rate_per_s=(len(sent) - 1) / span_s,
        before=spread(each.latency_s or 0.0 for each in early),
        after=spread(each.latency_s or 0.0 for each in late),
    )


def _recovered_s(loss: Loss) -> float:
    return inf if loss.recovered_s is None else loss.recovered_s


class _KillHalfWay:
    """Passes requests on; before the one in the middle it kills the server that holds most."""

    def __init__(self, serving: Serving, count: int) -> None:
        self._serving, self._at = serving, int(count * _KILL_AT)
        self._sent = 0
        self.killed_s = 0.0

    def submit(self, request: Request, frame: Frame) -> Future[Any]:
        if self._sent == self._at:
            status = self._serving.status(fresh=False)  # arrivals go on
            victim = max(status.servers, key=lambda server: server.in_flight)
            self.killed_s = time.monotonic()
            self._serving.kill(victim.name)
        self._sent += 1
        return self._serving.submit(request, frame)


class Meter:
    """What servers do from now on."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._before, self._cpu_s = serving.status(), serving.cpu_s()

    def use(self, seconds: float) -> Use:
        """Since it was made.

        Raises:
            MachineError: a server was lost: whatever was measured was measured on fewer.
        """
        after = self._serving.status()
        if after.losses:
            loss = after.losses[0]
            raise MachineError(f"server {loss.server} was lost in a run", got=loss.message)
        cpu_s = [now - then for now, then in zip(self._serving.cpu_s(), self._cpu_s, strict=True)]
        return use_between(self._before, after, seconds, cpu_s)


def use_between(
    before: GatewayStatus, after: GatewayStatus, seconds: float, cpu_s: Sequence[float]
) -> Use:
    """What all servers together did from one status to another."""
    then = {server.name: server.metrics for server in before.servers}
    busy: dict[str, float] = {}
    served: dict[str, float] = {}
    totals = dict.fromkeys(("runs", "loads", "evictions"), 0)
    pages = dict.fromkeys(("streamed_bytes", "swapped_pages"), 0)
    for server in after.servers:
        now, old = server.metrics, then[server.name]
        by_model = {name: s - old.busy_s.get(name, 0.0) for name, s in now.busy_s.items()}
        busy[server.name] = sum(by_model.values())
        for name, spent_s in by_model.items():
            served[name] = served.get(name, 0.0) + spent_s
        for name in totals:
            totals[name] += getattr(now, name) - getattr(old, name)
        for name in pages:
            pages[name] += getattr(now.worker, name) - getattr(old.worker, name)
    return Use(
        seconds=seconds,
        cores=sum(server.cores for server in after.servers),
        busy_s=busy,
        served_s=served,
        gateway_cpu_s=cpu_s[0],
        hosts_cpu_s=cpu_s[1],
        workers_cpu_s=cpu_s[2],
        **totals,
        **pages,
    )
