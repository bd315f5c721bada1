"""How well a simulation predicts: recorded workloads, run for real and then in virtual time.

The simulated cluster has the facts that were measured when models were prepared, the very same
scheduler and balancer, and what other requests showed on the same servers just before and after,
that arrived in the same way: how far gateway and servers are from each other, and how much servers
that share a machine slow each other. So nothing is fitted to the requests that are predicted.

Workloads are run round by round, since a machine is now slower, now quicker. Each round is compared
with its own simulation; what is told are medians over the rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
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
from vaultline.sim.fidelity import ServiceTime, measured_hop_s, service_times
from vaultline.sim.sharing import measured_sharing
from vaultline.sim.workload import Arrivals, Bursty, Phase, Poisson, Workload, arrivals

#: Names of figures, and of what they compare.
KINDS = {"throughput": "throughput", "mean": "mean_s", "p95": "p95_s"}
AT_ONCE = "all at once"
#: Simulated seconds between what comes before a workload and that.
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


#: Of a workload's requests, of others before it and after it: to see what facts don't say.
_CALIBRATION_SHARE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class FidelityRequest:
    """What to compare.

    Attributes:
        rounds: of every workload.
        requests: of the run in which all come at once, which finds the rate that saturates.
        window_s: of the others.
        shares: of that rate, for Poisson arrivals; bursts: of it within and between bursts.
    """

    models: tuple[str, ...] = MODELS
    policy: str = OURS
    rounds: int = 3
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
class Round:
    """One run of a workload.

    Attributes:
        timing: of its simulation.
        services: measured over expected seconds of runs, by step group.
    """

    measured: Performance
    simulated: Performance
    timing: Timing = field(default_factory=Timing)
    services: Mapping[str, ServiceTime] = field(default_factory=dict)

    def ratio(self, kind: str) -> float:
        """Simulated over measured, of one of ``KINDS``."""
        field = KINDS[kind]
        return float(getattr(self.simulated, field) / getattr(self.measured, field))


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One workload, measured and simulated.

    Attributes:
        counts: whether figures are over it: all requests at once is shown beside them.
    """

    workload: str
    requests: int
    rate_per_s: float
    rounds: Sequence[Round]
    counts: bool = True

    def ratio(self, kind: str) -> float:
        """Simulated over measured, of one of ``KINDS``: the median of the rounds."""
        return statistics.median(each.ratio(kind) for each in self.rounds)


@dataclass(slots=True, kw_only=True)
class FidelityResult:
    """All workloads."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One workload on servers of its own, and what it came to.

    Attributes:
        before: what was sent to warm servers up, and what was sent next.
        others: ends of the latter, and of what was sent after the workload.
        outcomes: ends of the workload.
    """

    servers: Sequence[ServerFacts]
    before: Sequence[Sequence[Request]]
    others: Sequence[Outcome]
    outcomes: Sequence[Outcome]
    logs: Sequence[Sequence[LogEntry]]
    timeline: Timeline


class _Fidelity:
    """One benchmark."""

    def __init__(
        self, request: FidelityRequest, rig: Rig, folder: Path, progress: Progress
    ) -> None:
        self._request, self._rig, self._folder = request, rig, folder
        self._progress = progress
        self._contender = Contender(policy=request.policy)
        self._facts = rig.models_facts(self._contender)
        self._models = weighted_models(request.models, request.zipf)
        self._started = 0

    def measure(self) -> FidelityResult:
        request = self._request
        total = 1 + request.rounds * (len(request.shares) + 1)
        self._progress(AT_ONCE, 0, total)
        together = [
            replace(each, arrived_s=0.0)
            for each in request.workload(Poisson(rate=1.0), request.requests)
        ]
        at_once = self._run(together)
        sources = request.sources(performance(at_once.outcomes).throughput)
        workloads = {name: self._workload(each, request.seed) for name, each in sources.items()}
        rounds: dict[str, list[Round]] = {name: [] for name in sources}
        for turn in range(request.rounds):
            for name, source in sources.items():
                self._progress(name, 1 + sum(map(len, rounds.values())), total)
                before, after = (
                    self._workload(source, request.seed + 1 + 2 * turn + part, _CALIBRATION_SHARE)
                    for part in range(2)
                )
                run = self._run(workloads[name], before, after)
                rounds[name].append(self._round(run, self._timing(run)))
        found = [compared(name, workloads[name], rounds[name]) for name in sources]
        last = self._round(at_once, found[0].rounds[0].timing)
        found.insert(0, compared(AT_ONCE, together, [last], counts=False))
        self._progress("done", total, total)
        return FidelityResult(compared=found)

    def _workload(self, source: Arrivals, seed: int, share: float = 1.0) -> list[Request]:
        """Requests for a window's time, or a share of it."""
        rate = Workload(models=self._models, arrivals=source, count=1).rate
        count = max(2, round(rate * self._request.window_s * share))
        return replace_request(self._request, seed=seed).workload(source, count)

    def _run(
        self,
        requests: Sequence[Request],
        before: Sequence[Request] = (),
        after: Sequence[Request] = (),
    ) -> _Run:
        folder, inputs = self._folder / str(self._started), self._rig.inputs
        self._started += 1
        warm = warm_requests(self._request.models)
        with self._rig.start(self._contender, folder) as serving:
            first = warm_up(serving, self._request.models, inputs)
            ended: list[list[Outcome]] = []
            for part in (before, requests, after):
                sent = OpenLoop(serving.submit, inputs).run(part, patience_s=PATIENCE_S)
                ended.append(outcomes(sent, first))
                first += len(part)
            servers = serving.facts
        logs = _logs(folder)
        return _Run(
            servers=servers,
            before=(warm, before),
            others=[*ended[0], *ended[2]],
            outcomes=ended[1],
            logs=list(logs.values()),
            timeline=read_logs(logs.items()),
        )

    def _timing(self, run: _Run) -> Timing:
        """What the requests before and after the workload showed."""
        seconds = {each.request.number: each.latency_s for each in run.others}
        return Timing(
            report_s=self._request.report_s,
            hop_s=measured_hop_s(seconds, run.logs),
            sharing=measured_sharing(run.timeline, run.logs, seconds.keys(), self._facts),
        )

    def _round(self, run: _Run, timing: Timing) -> Round:
        """A run, and the same in virtual time."""
        return Round(
            measured=performance(run.outcomes),
            simulated=self._simulated(run, timing),
            timing=timing,
            services=service_times(run.timeline, self._facts),
        )

    def _simulated(self, run: _Run, timing: Timing) -> Performance:
        """The workload after what came before it, so that servers hold what they held."""
        chosen = policy(self._request.policy)
        simulation = Simulation(run.servers, self._facts, chosen.chooser(), chosen.local, timing)
        own = [each.request for each in run.outcomes]
        requests: list[Request] = []
        for part in (*run.before, own):
            start_s = requests[-1].arrived_s + _PAUSE_S if requests else 0.0
            requests += [
                replace(each, number=number, arrived_s=start_s + each.arrived_s)
                for number, each in enumerate(part, start=len(requests))
            ]
        first = len(requests) - len(own)
        trace = simulation.run(requests)
        return performance([each for each in trace.outcomes if each.request.number >= first])


def compared(
    name: str, requests: Sequence[Request], rounds: Sequence[Round], *, counts: bool = True
) -> Compared:
    """A workload's rounds, of the same requests."""
    span_s = requests[-1].arrived_s - requests[0].arrived_s
    return Compared(
        workload=name,
        requests=len(requests),
        rate_per_s=(len(requests) - 1) / span_s if span_s else 0.0,
        rounds=rounds,
        counts=counts,
    )


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


def _logs(folder: Path) -> dict[str, list[LogEntry]]:
    """What the hosts of a run wrote, by file."""
    found = {}
    for path in sorted(folder.glob("server-*.jsonl")):
        with path.open("rb") as lines:
            found[path.name] = list(decode(lines))
    return found
