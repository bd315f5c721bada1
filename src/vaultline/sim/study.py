"""A study: one workload, served by one cluster in virtual time, under several policies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from vaultline.core.cluster import Cluster, Device
from vaultline.core.errors import InfeasibleError, InputError
from vaultline.core.serde import Struct
from vaultline.sched.events import Request
from vaultline.sched.facts import ModelFacts, ServerFacts
from vaultline.sched.policies import ServingPolicy
from vaultline.sched.replicas import ReplicaSettings, spare_bytes
from vaultline.sched.timeline import Timeline
from vaultline.sim.cluster import Outcome, Simulation, Timing
from vaultline.sim.results import SERIES_POINTS, PolicyResult, policy_result

#: With about as many runs or fewer, every change of every server is kept.
EVENTS_SAMPLED = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What came of one policy, with all that is needed for pictures and traces."""

    result: PolicyResult
    outcomes: Sequence[Outcome]
    timeline: Timeline


class SimulationResult(Struct, frozen=True):
    """A workload under several policies.

    Attributes:
        requests, seconds, rate_per_s: of the arrivals, from the first to the last.
        models: how many requests came for each.
        hop_s: from the gateway to a server, and back.
    """

    requests: int
    seconds: float
    rate_per_s: float
    models: Mapping[str, int]
    hop_s: float
    report_s: float
    policies: tuple[PolicyResult, ...]


def simulation_result(
    requests: Sequence[Request], timing: Timing, studies: Sequence[Study]
) -> SimulationResult:
    """Sum up studies of the same requests, of which there is at least one."""
    seconds = requests[-1].arrived_s - requests[0].arrived_s
    return SimulationResult(
        requests=len(requests),
        seconds=seconds,
        rate_per_s=(len(requests) - 1) / seconds if seconds else 0.0,
        models=Counter(request.model for request in requests),
        hop_s=timing.hop_s,
        report_s=timing.report_s,
        policies=tuple(study.result for study in studies),
    )


def servers_of(
    cluster: Cluster, models: Sequence[str], fixed_bytes: Callable[[Device], int]
) -> list[ServerFacts]:
    """A server for each attested device of a cluster, with all models installed.

    Args:
        fixed_bytes: what one holds from its start to its end, besides what is installed.

    Raises:
        InputError: no device is attested.
    """
    devices = [unit for unit in cluster.units if unit.trust == "attested"]
    if not devices:
        raise InputError(
            "the cluster has no attested device", remedy="only attested devices serve models"
        )
    return [
        ServerFacts(
            name=device.name,
            cores=device.cores,
            memory_bytes=device.memory_bytes,
            models=tuple(models),
            fixed_bytes=fixed_bytes(device),
        )
        for device in devices
    ]


def on_some(
    servers: Sequence[ServerFacts], models: Mapping[str, ModelFacts], replicas: int
) -> list[ServerFacts]:
    """The same servers with each model on so many of them, those with most memory to spare.

    Raises:
        InfeasibleError: they have no room for all.
    """
    here: dict[str, list[ModelFacts]] = {server.name: [] for server in servers}
    for model in sorted(models.values(), key=lambda each: -each.fixed_bytes):
        room = [(spare_bytes(each, [*here[each.name], model]), each.name) for each in servers]
        best = sorted((each for each in room if each[0] >= 0), key=lambda each: (-each[0], each[1]))
        if len(best) < min(replicas, len(servers)):
            raise InfeasibleError(
                f"the servers have no room for {replicas} replicas of every model",
                got=f"{len(best)} of {model.name}",
                remedy="give them more memory, or fewer replicas",
            )
        for _, name in best[:replicas]:
            here[name].append(model)
    return [
        replace(server, models=tuple(model.name for model in here[server.name]))
        for server in servers
    ]


def study(
    policy: ServingPolicy,
    servers: Sequence[ServerFacts],
    models: Mapping[str, ModelFacts],
    requests: Sequence[Request],
    timing: Timing,
    progress: Callable[[int], None] | None = None,
    *,
    replicas: ReplicaSettings | None = None,
    losses: Mapping[str, float] | None = None,
) -> Study:
    """Simulate requests under one policy, and watch the servers: large simulations now and then.

    Args:
        models: that may be requested, by name.
        requests: at least one, in the order of their arrival.
        replicas, losses: as for :class:`Simulation`.

    Raises:
        InputError: requests for a model whose facts are not there.
        InfeasibleError: a server can't run one of its models at all.
    """
    missing = {request.model for request in requests} - {*models}
    if missing:
        kind = "for paged memory" if policy.paged else "for bounded memory"
        raise InputError(
            f"policy {policy.name} needs facts of every model, {kind}",
            got=f"none of {', '.join(sorted(missing))}",
            expected=f"some of {', '.join(sorted(models)) or 'none'}",
            remedy="prepare them",
        )
    events = len(requests) * max(len(model.groups) for model in models.values())
    span_s = requests[-1].arrived_s - requests[0].arrived_s
    timeline = Timeline(period_s=span_s / SERIES_POINTS if events > EVENTS_SAMPLED else 0.0)
    simulation = Simulation(
        servers,
        models,
        policy.chooser(),
        policy.local,
        timing,
        timeline.observe,
        replicas=replicas,
        losses=losses,
    )
    for server in simulation.servers.values():
        timeline.watch(server)
    trace = simulation.run(requests, progress)
    for name, lost_s in (losses or {}).items():
        timeline.lost(name, lost_s)
    timeline.close()
    result = policy_result(policy.name, trace.outcomes, timeline, len(trace.changes))
    return Study(result=result, outcomes=trace.outcomes, timeline=timeline)
