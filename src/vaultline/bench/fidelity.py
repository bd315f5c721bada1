"""How well a simulation predicts: one recorded workload, run for real and in virtual time.

The simulated cluster has the facts that were measured when models were prepared, and the very same
scheduler and balancer. Nothing is fitted to the run that is predicted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import log

from vaultline.core.spread import spread
from vaultline.sched.events import Request
from vaultline.sched.facts import ModelFacts, ServerFacts
from vaultline.sched.policies import policy
from vaultline.serve.load import Sent
from vaultline.sim.cluster import Simulation, Timing


@dataclass(frozen=True, slots=True, kw_only=True)
class Performance:
    """What a workload came to. Throughput: answers over the time from first arrival to last end."""

    throughput: float
    mean_s: float
    p95_s: float


#: Performance's fields, and what their figures are called.
KINDS = {"throughput": "throughput", "mean_s": "mean", "p95_s": "p95"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """One workload, measured and simulated.

    Attributes:
        counts: whether it is one of the workloads that figures are over: the one in which all comes
            at once is shown beside them.
    """

    workload: str
    requests: int
    rate_per_s: float
    measured: Performance
    simulated: Performance
    counts: bool = True

    def ratio(self, kind: str) -> float:
        """Simulated over measured: of ``throughput``, ``mean_s`` or ``p95_s``."""
        return float(getattr(self.simulated, kind) / getattr(self.measured, kind))


@dataclass(slots=True, kw_only=True)
class FidelityResult:
    """All workloads."""

    predicted: list[Predicted] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """Of each kind the ratio that is furthest from 1, over all workloads that count."""
        made: dict[str, float] = {}
        for kind, name in KINDS.items():
            ratios = [each.ratio(kind) for each in self.predicted if each.counts]
            if ratios:
                made[f"fidelity_{name}"] = max(ratios, key=lambda ratio: abs(log(ratio)))
            for each in self.predicted:
                made[f"fidelity_{name}.{each.workload}"] = each.ratio(kind)
        return made


def measured_performance(sent: Sequence[Sent]) -> Performance:
    """Of a real run."""
    ends = [
        (each.ended_s, each.latency_s)
        for each in sent
        if each.answered and each.ended_s is not None and each.latency_s is not None
    ]
    return _performance(sent[0].request.arrived_s, ends)


def simulated_performance(
    requests: Sequence[Request],
    servers: Sequence[ServerFacts],
    models: Mapping[str, ModelFacts],
    policy_name: str,
    timing: Timing,
) -> Performance:
    """Of the same requests in virtual time."""
    chosen = policy(policy_name)
    simulation = Simulation(servers, models, chosen.chooser(), chosen.local, timing)
    outcomes = simulation.run(requests).outcomes
    ends = [(each.ended_s, each.latency_s) for each in outcomes if not each.reason]
    return _performance(requests[0].arrived_s, ends)


def _performance(first_s: float, ends: Sequence[tuple[float, float]]) -> Performance:
    found = spread(latency_s for _, latency_s in ends)
    seconds = max((ended_s for ended_s, _ in ends), default=first_s) - first_s
    return Performance(
        throughput=len(ends) / seconds if seconds > 0 else 0.0,
        mean_s=found.mean_s if found else 0.0,
        p95_s=found.p95_s if found else 0.0,
    )
