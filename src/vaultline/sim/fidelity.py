"""How near a simulation comes to a real run of the same requests, and what makes the difference.

Everything is compared as durations, so the clocks of gateway and servers need not agree.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence

from vaultline.core.errors import InputError
from vaultline.core.serde import Struct
from vaultline.core.spread import Spread
from vaultline.sched.events import Answer, Arrived
from vaultline.sched.facts import ModelFacts, ServerFacts
from vaultline.sched.policies import ServingPolicy
from vaultline.sched.replay import ActionEntry, EventEntry, LogEntry
from vaultline.sched.timeline import Timeline
from vaultline.sim.cluster import Outcome, Timing
from vaultline.sim.results import PolicyResult, policy_result
from vaultline.sim.study import simulated


class Measured(Struct, frozen=True):
    """What is compared, of a real or of a simulated run."""

    throughput_per_s: float
    answered: int
    refused: int
    latency: Spread


class Fidelity(Struct, frozen=True):
    """Simulated over real, 1 where they agree.

    Attributes:
        throughput, mean, p95: ratios.
        models: ratios of mean latencies, of models that both answered.
        hop_s: that was assumed from gateway to server, and back.
    """

    policy: str
    hop_s: float
    real: Measured
    simulated: Measured
    throughput: float
    mean: float
    p95: float
    models: Mapping[str, float]


class ServiceTime(Struct, frozen=True):
    """Measured over expected seconds of the runs of a step group: the median, and in sum."""

    runs: int
    median: float
    total: float


def fidelity(
    policy: ServingPolicy,
    servers: Sequence[ServerFacts],
    models: Mapping[str, ModelFacts],
    real: Sequence[Outcome],
    timing: Timing,
) -> Fidelity:
    """Simulate a real run and compare.

    Args:
        servers: as they were, with what they held from the start.
        real: how each request ended; latencies as the client saw them.
        timing: with ``hop_s`` as measured (:func:`measured_hop_s`).

    Raises:
        InputError: no request of the real run was answered.
    """
    ordered = sorted(real, key=lambda outcome: outcome.request.number)
    requests = [outcome.request for outcome in ordered]
    mine = simulated(policy, servers, models, requests, timing).result
    theirs = policy_result(policy.name, ordered, Timeline())
    here, there = _measured(mine), _measured(theirs)
    means = {each.name: each.latency.mean_s for each in mine.models if each.latency}
    return Fidelity(
        policy=policy.name,
        hop_s=timing.hop_s,
        real=there,
        simulated=here,
        throughput=here.throughput_per_s / there.throughput_per_s,
        mean=here.latency.mean_s / there.latency.mean_s,
        p95=here.latency.p95_s / there.latency.p95_s,
        models={
            each.name: means[each.name] / each.latency.mean_s
            for each in theirs.models
            if each.latency and each.name in means
        },
    )


def measured_hop_s(real: Sequence[Outcome], logs: Sequence[Sequence[LogEntry]]) -> float:
    """What a request spends outside of its server, one way: half the median of what is left of
    its latency without the time from its arrival there to the decision to answer it.

    Raises:
        InputError: none of the requests stands in the logs.
    """
    inside_s: dict[int, float] = {}
    for log in logs:
        inside_s.update(_inside_s(log))
    outside_s = [
        outcome.latency_s - inside_s[outcome.request.number]
        for outcome in real
        if not outcome.reason and outcome.request.number in inside_s
    ]
    if not outside_s:
        raise InputError("the event logs are not of this run: they have none of its requests")
    return max(0.0, statistics.median(outside_s) / 2)


def service_times(timeline: Timeline, models: Mapping[str, ModelFacts]) -> dict[str, ServiceTime]:
    """How long runs took against what facts say, by step group: what a simulation can't know."""
    pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for span, run in timeline.runs:
        group = models[run.model].groups[run.group]
        expected_s = group.seconds(len(run.requests), resident=not run.streamed)
        if not span.failure and expected_s:
            of = f"{run.model}/{run.group}"
            pairs[of].append((span.ended_s - span.started_s, expected_s))
    return {
        of: ServiceTime(
            runs=len(found),
            median=statistics.median(real_s / expected_s for real_s, expected_s in found),
            total=sum(real_s for real_s, _ in found) / sum(expected_s for _, expected_s in found),
        )
        for of, found in sorted(pairs.items())
    }


def _measured(result: PolicyResult) -> Measured:
    if result.latency is None or not result.seconds:
        raise InputError("nothing to compare: no request was answered", got=str(result.refusals))
    return Measured(
        throughput_per_s=result.throughput_per_s,
        answered=result.answered,
        refused=result.refused,
        latency=result.latency,
    )


def _inside_s(log: Sequence[LogEntry]) -> dict[int, float]:
    """Seconds that each answered request was at a server."""
    arrived_s: dict[int, float] = {}
    found: dict[int, float] = {}
    now_s = 0.0
    for entry in log:
        if isinstance(entry, EventEntry):
            now_s = entry.event.now_s
            if isinstance(entry.event, Arrived):
                arrived_s[entry.event.request.number] = now_s
        elif isinstance(entry, ActionEntry) and isinstance(entry.action, Answer):
            number = entry.action.request
            if number in arrived_s:
                found[number] = now_s - arrived_s[number]
    return found
