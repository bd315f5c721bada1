"""How well a simulation predicts: recorded workloads, run for real and then in virtual time.

The simulated cluster has the facts that were measured when models were prepared, the very same
scheduler and balancer, and what was found before: what single requests took from the gateway to
their server, and on a core beyond the facts; and how much longer runs take while servers, gateway
and generator share the machine, from a shorter run of other requests. So nothing is fitted to those
that are predicted.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from dataclasses import replace as replace_request
from math import log
from pathlib import Path
from typing import Protocol

from msgspec.structs import replace

from vaultline.bench.lasagna import MODELS, Progress
from vaultline.bench.lasagna_results import OURS, Contender
from vaultline.bench.serving_runs import (
    PATIENCE_S,
    Serving,
    warm_requests,
    warm_up,
    weighted_models,
)
from vaultline.core.errors import MachineError
from vaultline.core.spread import spread
from vaultline.sched.events import Request
from vaultline.sched.facts import ModelFacts, ServerFacts
from vaultline.sched.logs import read_logs
from vaultline.sched.policies import policy
from vaultline.sched.replay import LogEntry, decode
from vaultline.sched.timeline import Timeline
from vaultline.serve.load import Frame, OpenLoop, Sent
from vaultline.sim.cluster import Outcome, Simulation, Timing
from vaultline.sim.fidelity import ServiceTime, expected_s, measured_hop_s, service_times
from vaultline.sim.workload import Arrivals, Bursty, Phase, Poisson, Workload, arrivals

#: Names of figures, and of what they compare.
KINDS = {"throughput": "throughput", "mean": "mean_s", "p95": "p95_s"}
AT_ONCE = "all at once"
#: Single requests of each model, one at a time.
_SINGLE = 3
#: Simulated seconds between what warms servers up and the workload.
_PAUSE_S = 60.0


class LoggedServing(Serving, Protocol):
    """Servers whose events and actions are logged."""

    @property
    def facts(self) -> Sequence[ServerFacts]:
        """What the balancer knows of the servers."""


class Rig(Protocol):
    """Starts servers."""

    @property
    def inputs(self) -> Mapping[str, Sequence[Frame]]:
        """Some frames of each model."""

    def models_facts(self, contender: Contender) -> Mapping[str, ModelFacts]:
        """What a contender's scheduler knows of models."""

    def start(
        self, contender: Contender, log_dir: Path | None = None
    ) -> AbstractContextManager[LoggedServing]:
        """Servers that log into a folder."""


#: Of the saturated rate and of a workload's time: the run that tells how long runs take under load.
_CALIBRATION_SHARE, _CALIBRATION_WINDOW = 0.65, 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class FidelityRequest:
    """What to compare.

    Attributes:
        requests: of the run in which all come at once, which finds the rate that saturates.
        window_s: of the others.
        shares: of that rate, for Poisson arrivals; bursts: of it within and between bursts.
    """

    models: tuple[str, ...] = MODELS
    policy: str = OURS
    requests: int = 150
    window_s: float = 40.0
    shares: tuple[float, ...] = (0.5, 0.8)
    bursts: tuple[float, float] = (1.5, 0.3)
    burst_s: float = 0.6
    calm_s: float = 1.2
    zipf: float = 1.0
    seed: int = 3
    report_s: float = 0.1

    def workload(self, source: Arrivals, count: int) -> list[Request]:
        """Requests by these arrivals, in Zipf's proportions."""
        models = weighted_models(self.models, self.zipf)
        made = Workload(models=models, arrivals=source, seed=self.seed, count=count)
        return list(arrivals(made))

    def sources(self, rate: float) -> dict[str, Arrivals]:
        """Arrivals by name, where servers saturate at a rate."""
        found: dict[str, Arrivals] = {
            f"poisson {share:.0%}": Poisson(rate=share * rate) for share in self.shares
        }
        within, between = self.bursts
        found["bursty"] = Bursty(
            burst=Phase(rate=within * rate, mean_s=self.burst_s),
            calm=Phase(rate=between * rate, mean_s=self.calm_s),
        )
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Performance:
    """What a workload came to; throughput: answers over the time from first arrival to last end."""

    answered: int
    throughput: float
    mean_s: float
    p95_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One workload, measured and simulated.

    Attributes:
        counts: whether figures are over it: all requests at once is shown beside them.
        services: measured over expected seconds of runs, by step group.
    """

    workload: str
    requests: int
    rate_per_s: float
    measured: Performance
    simulated: Performance
    services: Mapping[str, ServiceTime]
    counts: bool = True

    def ratio(self, kind: str) -> float:
        """Simulated over measured, of one of ``KINDS``."""
        field = KINDS[kind]
        return float(getattr(self.simulated, field) / getattr(self.measured, field))


@dataclass(slots=True, kw_only=True)
class FidelityResult:
    """All workloads.

    Attributes:
        hop_s: that a single request took from the gateway to its server, and back.
        run_s: that its runs took on a core beyond what facts say.
        stretch: how many times longer than that runs take under load.
    """

    hop_s: float = 0.0
    run_s: float = 0.0
    stretch: float = 1.0
    compared: list[Compared] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """Of each kind the ratio that is furthest from 1, over all workloads that count."""
        made: dict[str, float] = {}
        for kind in KINDS:
            ratios = [each.ratio(kind) for each in self.compared if each.counts]
            if ratios:
                made[f"fidelity_{kind}"] = max(ratios, key=lambda ratio: abs(log(ratio)))
            for each in self.compared:
                made[f"fidelity_{kind}.{each.workload.replace(' ', '-')}"] = each.ratio(kind)
        return made


def bench_fidelity(
    request: FidelityRequest, rig: Rig, folder: Path, progress: Progress
) -> FidelityResult:
    """Run every workload on servers of its own, and simulate it.

    Args:
        folder: for event logs.
    """
    return _Fidelity(request, rig, folder, progress).measure()


class _Fidelity:
    """One benchmark."""

    def __init__(
        self, request: FidelityRequest, rig: Rig, folder: Path, progress: Progress
    ) -> None:
        self._request, self._rig, self._folder = request, rig, folder
        self._progress = progress
        self._contender = Contender(policy=request.policy)
        self._facts = rig.models_facts(self._contender)
        self.found = FidelityResult()

    def measure(self) -> FidelityResult:
        request = self._request
        total = 2 + len(request.shares)
        self._progress(AT_ONCE, 0, total)
        requests = [
            replace(each, arrived_s=0.0)
            for each in request.workload(Poisson(rate=1.0), request.requests)
        ]
        self._run(AT_ONCE, requests, counts=False)
        rate = self.found.compared[0].measured.throughput
        self._calibrate(_CALIBRATION_SHARE * rate)
        for number, (name, source) in enumerate(request.sources(rate).items()):
            self._progress(name, 1 + number, total)
            mean_rate = Workload(
                models=weighted_models(request.models, request.zipf), arrivals=source, count=1
            ).rate
            count = max(2, round(mean_rate * request.window_s))
            self._run(name, request.workload(source, count))
        self._progress("done", total, total)
        return self.found

    def _run(self, name: str, requests: Sequence[Request], *, counts: bool = True) -> None:
        """One workload on servers of its own; the first run also tells how far they are."""
        folder = self._folder / f"{len(self.found.compared)}"
        inputs = self._rig.inputs
        with self._rig.start(self._contender, folder) as serving:
            sent_before = warm_up(serving, self._request.models, inputs)
            single = [] if self.found.compared else self._single(serving, sent_before)
            first = sent_before + len(single)
            sent = OpenLoop(serving.submit, inputs).run(requests, patience_s=PATIENCE_S)
            servers = serving.facts
        logs = _logs(folder)
        timeline = read_logs(logs.items())
        if single:
            seconds = {each.request.number: each.latency_s for each in single}
            self.found.hop_s = measured_hop_s(seconds, logs.values())
            self.found.run_s = extra_run_s(timeline, self._facts, set(seconds))
        span_s = requests[-1].arrived_s - requests[0].arrived_s
        self.found.compared.append(
            Compared(
                workload=name,
                requests=len(requests),
                rate_per_s=(len(requests) - 1) / span_s if span_s else 0.0,
                measured=performance(outcomes(sent, first)),
                simulated=self._simulated(servers, requests, first),
                services=service_times(timeline, self._facts),
                counts=counts,
            )
        )

    def _calibrate(self, rate: float) -> None:
        """How much longer runs take under load, by requests that are not among those predicted."""
        folder, request = self._folder / "calibration", self._request
        count = max(2, round(rate * request.window_s * _CALIBRATION_WINDOW))
        other = replace_request(request, seed=request.seed + 1)
        with self._rig.start(self._contender, folder) as serving:
            first = warm_up(serving, request.models, self._rig.inputs)
            OpenLoop(serving.submit, self._rig.inputs).run(
                other.workload(Poisson(rate=rate), count), patience_s=PATIENCE_S
            )
        timeline = read_logs(_logs(folder).items())
        self.found.stretch = stretch(timeline, self._facts, first, self.found.run_s)

    def _simulated(
        self, servers: Sequence[ServerFacts], requests: Sequence[Request], first: int
    ) -> Performance:
        """The same in virtual time, servers warmed up before by the same requests."""
        chosen = policy(self._request.policy)
        timing = Timing(
            report_s=self._request.report_s,
            hop_s=self.found.hop_s,
            run_s=self.found.run_s,
            stretch=self.found.stretch,
        )
        simulation = Simulation(servers, self._facts, chosen.chooser(), chosen.local, timing)
        before = [
            Request(number=number, model=each.model, arrived_s=0.0)
            for number, each in enumerate(warm_requests(self._request.models))
        ]
        after = [
            replace(each, number=first + position, arrived_s=_PAUSE_S + each.arrived_s)
            for position, each in enumerate(requests)
        ]
        trace = simulation.run([*before, *after])
        return performance([each for each in trace.outcomes if each.request.number >= first])

    def _single(self, serving: Serving, first: int) -> list[Outcome]:
        """One request at a time."""
        found: list[Outcome] = []
        for name in self._request.models * _SINGLE:
            request = Request(number=first + len(found), model=name, arrived_s=0.0)
            loop = OpenLoop(serving.submit, self._rig.inputs)
            found += outcomes(loop.run([request], patience_s=PATIENCE_S), request.number)
        return found


def outcomes(sent: Sequence[Sent], first: int) -> list[Outcome]:
    """Ends of requests under the numbers that the gateway gave them, in the order of sending.

    Raises:
        MachineError: one has no end.
    """
    found = []
    for position, each in enumerate(sent):
        if each.ended_s is None or each.failed:
            raise MachineError("a request was not answered", got=each.reason or "nothing came")
        request = replace(each.request, number=first + position)
        found.append(Outcome(request=request, server="", ended_s=each.ended_s, reason=each.reason))
    return found


def performance(ended: Sequence[Outcome]) -> Performance:
    """Of requests that have all ended.

    Raises:
        MachineError: none was answered.
    """
    answered = [each for each in ended if not each.reason]
    found = spread(each.latency_s for each in answered)
    if found is None:
        raise MachineError("no request was answered", got=ended[0].reason if ended else "none")
    first_s = min(each.request.arrived_s for each in ended)
    seconds = max(each.ended_s for each in answered) - first_s
    return Performance(
        answered=len(answered),
        throughput=len(answered) / seconds,
        mean_s=found.mean_s,
        p95_s=found.p95_s,
    )


def extra_run_s(
    timeline: Timeline, models: Mapping[str, ModelFacts], numbers: Collection[int]
) -> float:
    """What runs of these requests took beyond the facts, from the decision to their end: the
    median, not below 0."""
    extra = []
    for span, run in timeline.runs:
        if set(run.requests) <= set(numbers):
            extra.append(span.ended_s - span.started_s - expected_s(run, models))
    return max(0.0, statistics.median(extra)) if extra else 0.0


def stretch(
    timeline: Timeline, models: Mapping[str, ModelFacts], first: int, run_s: float
) -> float:
    """How many times longer runs of requests from ``first`` on took in all than the facts say, with
    ``run_s`` for each; not below 1."""
    real_s = facts_s = 0.0
    for span, run in timeline.runs:
        if min(run.requests) >= first and not span.failure:
            real_s += span.ended_s - span.started_s - run_s
            facts_s += expected_s(run, models)
    return max(1.0, real_s / facts_s) if facts_s else 1.0


def _logs(folder: Path) -> dict[str, list[LogEntry]]:
    """What the hosts of a run wrote, by file."""
    found = {}
    for path in sorted(folder.glob("server-*.jsonl")):
        with path.open("rb") as lines:
            found[path.name] = list(decode(lines))
    return found
