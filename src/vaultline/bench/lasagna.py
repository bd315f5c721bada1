"""Six models on two servers with little protected memory, under every policy.

All policies serve the same recorded requests. First all requests come at once, and the rounds take
turns over the policies; then they come in an open loop, at a share of what Vaultline and of what
the best baseline can do; then one of the servers is killed under load. Every run has servers of its
own, started for it and warmed up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import inf
from typing import Any, Protocol

from msgspec import structs

from vaultline.bench.lasagna_results import (
    OURS,
    SHARE,
    Contender,
    Killed,
    LasagnaResult,
    Offered,
    PagedAs,
    Saturated,
    Use,
)
from vaultline.core.errors import InfeasibleError, MachineError, VaultlineError
from vaultline.core.spread import spread
from vaultline.sched.events import Request
from vaultline.sched.policies import POLICIES
from vaultline.serve.answers import Loss
from vaultline.serve.load import Frame, OpenLoop, Sent, summarize
from vaultline.serve.status import GatewayStatus
from vaultline.sim.workload import Poisson, Workload, WorkloadModel, arrivals, zipf_weights

#: In the order of their popularity.
MODELS = ("alexnet", "vgg19", "resnet50", "googlenet", "densenet121", "squeezenet")
PAGED: tuple[PagedAs, ...] = ("sgx1", "crypto")
BASELINE = "baseline"
#: Of the throughput at saturation while a server is killed: the one that is left can carry it.
_KILL_SHARE = 0.45
_KILL_AT = 0.5
#: How long it takes is the measurement; beyond this something is wrong.
_SATURATED_PATIENCE_S = 300.0
#: Rounds of all models before anything is measured, one for each server and another one.
_WARM_ROUNDS = 3
Progress = Callable[[str, int, int], None]


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


#: Starts servers under a contender's policy, and stops them.
Start = Callable[[Contender], AbstractContextManager[Serving]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LasagnaRequest:
    """What to measure.

    Attributes:
        requests: of a run in which all come at once.
        rounds: of those; paged_rounds: of contenders whose servers page, which are much slower.
        window_s: of an open loop; open_rounds: of those.
        patience_s: what does not end so soon after the last arrival is given up: the policy can't
            keep up.
        zipf: the exponent of the models' popularity.
        seed: of the first dozen the one whose 200 requests are nearest to those proportions.
    """

    models: tuple[str, ...] = MODELS
    policies: tuple[str, ...] = tuple(POLICIES)
    paged: tuple[PagedAs, ...] = PAGED
    requests: int = 200
    rounds: int = 5
    paged_rounds: int = 1
    window_s: float = 25.0
    open_rounds: int = 1
    patience_s: float = 10.0
    kill_window_s: float = 20.0
    zipf: float = 1.0
    seed: int = 2

    @property
    def contenders(self) -> list[Contender]:
        """Every policy, paged ones once for each way to page."""
        found = []
        for name in self.policies:
            modes: Sequence[PagedAs | None] = self.paged if POLICIES[name].paged else (None,)
            found += [Contender(policy=name, paged=mode) for mode in modes]
        return found

    def workload(self, rate: float, count: int) -> list[Request]:
        """``count`` requests, exactly ``rate`` a second.

        Their models are those of the run in which all come at once, over and over: any other mix
        would saturate servers at another rate.
        """
        models, poisson = weighted_models(self.models, self.zipf), Poisson(rate=1.0)
        most = max(count, self.requests)
        drawn = Workload(models=models, arrivals=poisson, seed=self.seed, count=most)
        requests = list(arrivals(drawn))
        names = [each.model for each in requests[: self.requests]]
        times_s = [each.arrived_s for each in requests[:count]]
        faster = rate * times_s[-1] / count
        return [
            structs.replace(each, model=names[place % len(names)], arrived_s=when_s / faster)
            for place, (each, when_s) in enumerate(zip(requests, times_s, strict=False))
        ]


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
    sent = OpenLoop(serving.submit, inputs).run(requests, patience_s=_SATURATED_PATIENCE_S)
    bad = [each for each in sent if not each.answered]
    if bad:
        raise MachineError(
            "a server does not answer", got=bad[0].reason or "nothing", remedy="see its log"
        )
    return len(sent)


def bench_lasagna(
    request: LasagnaRequest,
    start: Start,
    inputs: Mapping[str, Sequence[Frame]],
    progress: Progress,
) -> LasagnaResult:
    """Measure.

    Args:
        inputs: some frames of each model.
        progress: is told (what, done, total).
    """
    batched = tuple(name for name in request.policies if name.endswith("-batch"))
    found = LasagnaResult(batched=batched)
    _Lasagna(request, start, inputs, progress, found).measure()
    return found


class _Lasagna:
    """One benchmark."""

    def __init__(
        self,
        request: LasagnaRequest,
        start: Start,
        inputs: Mapping[str, Sequence[Frame]],
        progress: Progress,
        found: LasagnaResult,
    ) -> None:
        self._request, self._start, self._inputs = request, start, inputs
        self._progress, self._found = progress, found
        self._done = 0
        count = len(request.contenders)
        paged = sum(each.paged is not None for each in request.contenders)
        self._total = (
            (count - paged) * request.rounds
            + paged * min(request.rounds, request.paged_rounds)
            + 2 * count * request.open_rounds
            + 1
        )

    def measure(self) -> None:
        request, found = self._request, self._found
        for turn in range(request.rounds):
            for contender in self._in_turn(turn):
                if contender.paged is None or turn < request.paged_rounds:
                    self._attempt(contender, "all at once", self._saturate, turn)
        best = found.best_baseline()
        rates = {OURS: found.throughput(OURS)}
        rates[BASELINE] = None if best is None else found.throughput(best)
        for turn in range(request.open_rounds):
            for rate_of, rate in rates.items():
                if rate is None:
                    continue
                for contender in self._in_turn(turn):
                    what = f"at {SHARE * rate:.1f}/s"
                    self._attempt(contender, what, self._offer, turn, rate_of, SHARE * rate)
        ours = rates[OURS]
        if ours is not None:
            contender = Contender(policy=OURS)
            self._attempt(contender, "with a server killed", self._kill, _KILL_SHARE * ours)
        self._progress("done", self._total, self._total)

    def _in_turn(self, turn: int) -> list[Contender]:
        """Forth and back: what changes on the machine meanwhile changes for all."""
        contenders = [each for each in self._request.contenders if each.name not in self._skipped]
        return contenders if turn % 2 == 0 else contenders[::-1]

    @property
    def _skipped(self) -> Mapping[str, str]:
        return self._found.skipped

    def _attempt(
        self, contender: Contender, what: str, measure: Callable[..., None], *arguments: object
    ) -> None:
        """One run, once more if it fails; a baseline that can't be run is said to be so, ours has
        to run."""
        self._progress(f"{contender.name}, {what}", self._done, self._total)
        self._done += 1
        for again in (False, True):
            try:
                with self._start(contender) as serving:
                    warm_up(serving, self._request.models, self._inputs)
                    measure(contender, serving, *arguments)
                return
            except VaultlineError as error:
                if not again and not isinstance(error, InfeasibleError):
                    text = f"{contender.name}, {what}: {error.diagnostics()}"
                    self._found.repeated.append(text)
                elif contender.policy == OURS:
                    raise
                else:
                    self._found.skipped[contender.name] = error.diagnostics()
                    return

    def _saturate(self, contender: Contender, serving: Serving, turn: int) -> None:
        requests = [
            structs.replace(each, arrived_s=0.0)
            for each in self._request.workload(1.0, self._request.requests)
        ]
        meter = _Meter(serving)
        sent = OpenLoop(serving.submit, self._inputs).run(
            requests, patience_s=_SATURATED_PATIENCE_S
        )
        answered = sum(each.answered for each in sent)
        if answered < len(sent):
            raise MachineError(
                "not all requests were answered",
                got=f"{answered} of {len(sent)}; {_first_reason(sent)}",
            )
        seconds = max(each.ended_s or 0.0 for each in sent)
        self._found.saturated.append(
            Saturated(
                contender=contender,
                turn=turn,
                requests=len(sent),
                answered=answered,
                seconds=seconds,
                use=meter.use(seconds),
            )
        )

    def _offer(
        self, contender: Contender, serving: Serving, turn: int, rate_of: str, rate: float
    ) -> None:
        requests = self._request.workload(rate, max(2, round(rate * self._request.window_s)))
        meter = _Meter(serving)
        before_s = time.perf_counter()
        sent = OpenLoop(serving.submit, self._inputs).run(
            requests, patience_s=self._request.patience_s
        )
        seconds = time.perf_counter() - before_s
        latency = spread(_at_least_s(each, seconds) for each in sent)
        if latency is None:
            return
        self._found.offered.append(
            Offered(
                contender=contender,
                turn=turn,
                rate_of=rate_of,
                rate_per_s=rate,
                window_s=requests[-1].arrived_s - requests[0].arrived_s,
                summary=summarize(sent),
                latency=latency,
                use=meter.use(seconds),
            )
        )

    def _kill(self, contender: Contender, serving: Serving, rate: float) -> None:
        requests = self._request.workload(rate, max(2, round(rate * self._request.kill_window_s)))
        self._found.killed = killed_under_load(contender.policy, serving, requests, self._inputs)


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
    sent = loop.run(requests, patience_s=_SATURATED_PATIENCE_S)
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


class _Meter:
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


def _at_least_s(each: Sent, seconds: float) -> float:
    """A request's latency; of one that still waits, how long it has waited."""
    return seconds - each.request.arrived_s if each.latency_s is None else each.latency_s


def _first_reason(sent: Sequence[Sent]) -> str:
    return next((each.reason for each in sent if each.reason), "the rest still wait")
