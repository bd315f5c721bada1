"""Six models on two servers with little protected memory, under every policy.

All policies serve the same recorded requests. First all requests come at once, and the rounds take
turns over the policies; then they come in an open loop, at a share of what Vaultline and of what
the best baseline can do; then one of the servers is killed under load. Every run has servers of its
own, started for it and warmed up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from msgspec import structs

from vaultline.bench.lasagna_results import (
    OURS,
    SHARE,
    Contender,
    LasagnaResult,
    Offered,
    PagedAs,
    Saturated,
)
from vaultline.bench.serving_runs import (
    PATIENCE_S,
    Meter,
    Serving,
    killed_under_load,
    warm_up,
    weighted_models,
)
from vaultline.core.errors import InfeasibleError, MachineError, VaultlineError
from vaultline.core.spread import spread
from vaultline.sched.events import Request
from vaultline.sched.policies import POLICIES
from vaultline.serve.load import Frame, OpenLoop, Sent, summarize
from vaultline.sim.workload import Poisson, Workload, arrivals

#: In the order of their popularity.
MODELS = ("alexnet", "vgg19", "resnet50", "googlenet", "densenet121", "squeezenet")
PAGED: tuple[PagedAs, ...] = ("sgx1", "crypto")
BASELINE = "baseline"
#: Of the throughput at saturation while a server is killed: the one that is left can carry it.
_KILL_SHARE = 0.45
Progress = Callable[[str, int, int], None]
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
        meter = Meter(serving)
        sent = OpenLoop(serving.submit, self._inputs).run(requests, patience_s=PATIENCE_S)
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
        meter = Meter(serving)
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


def _at_least_s(each: Sent, seconds: float) -> float:
    """A request's latency; of one that still waits, how long it has waited."""
    return seconds - each.request.arrived_s if each.latency_s is None else each.latency_s


def _first_reason(sent: Sequence[Sent]) -> str:
    return next((each.reason for each in sent if each.reason), "the rest still wait")
