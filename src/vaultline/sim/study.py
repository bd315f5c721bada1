"""A study: one workload, served by one cluster in virtual time, under several policies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vaultline.core.cluster import Cluster
from vaultline.core.errors import InputError
from vaultline.core.serde import Struct
from vaultline.core.units import format_bytes
from vaultline.sched.events import Request
from vaultline.sched.facts import ModelFacts, ServerFacts
from vaultline.sched.policies import ServingPolicy
from vaultline.sched.timeline import Timeline
from vaultline.sim.cluster import Outcome, Simulation, Timing
from vaultline.sim.results import SERIES_POINTS, PolicyResult, policy_result

#: With about as many runs or fewer, every change of every server is kept.
EVENTS_SAMPLED = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Stock:
    """Models that a cluster serves.

    Attributes:
        facts: of each, divided into step groups for bounded memory.
        paged: of each, whole, for policies on paged memory.
        workspace_bytes, paged_workspace_bytes: that the neediest group of any takes, on each core;
            0 where the facts of the groups say it.
    """

    facts: Mapping[str, ModelFacts]
    paged: Mapping[str, ModelFacts]
    workspace_bytes: int = 0
    paged_workspace_bytes: int = 0

    def of(self, policy: ServingPolicy) -> tuple[Mapping[str, ModelFacts], int]:
        """Facts of models and bytes of a workspace, as a policy runs them."""
        if policy.paged:
            return self.paged, self.paged_workspace_bytes
        return self.facts, self.workspace_bytes


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


def servers_of(cluster: Cluster, models: Sequence[str], workspace_bytes: int) -> list[ServerFacts]:
    """A server for each attested device of a cluster, with all models installed.

    Raises:
        InputError: no device is attested, or one is smaller than its workspaces.
    """
    found = []
    for unit in cluster.units:
        if unit.trust != "attested":
            continue
        fixed_bytes = unit.cores * workspace_bytes
        if fixed_bytes >= unit.memory_bytes:
            raise InputError(
                f"device {unit.name} has less memory than its cores' workspaces take",
                got=f"{format_bytes(unit.memory_bytes)}, {unit.cores} cores",
                expected=f"more than {format_bytes(workspace_bytes)} a core",
                remedy="give it more memory, or prepare the models for less",
            )
        found.append(
            ServerFacts(
                name=unit.name,
                cores=unit.cores,
                memory_bytes=unit.memory_bytes,
                models=tuple(models),
                fixed_bytes=fixed_bytes,
            )
        )
    if not found:
        raise InputError(
            "the cluster has no attested device", remedy="only attested devices serve models"
        )
    return found


def study(
    policy: ServingPolicy,
    cluster: Cluster,
    stock: Stock,
    requests: Sequence[Request],
    timing: Timing,
    progress: Callable[[int], None] | None = None,
) -> Study:
    """Simulate a workload under one policy.

    Raises:
        InputError: requests for a model whose facts are not there.
        InfeasibleError: a server can't run one of the models at all.
    """
    names = list(dict.fromkeys(request.model for request in requests))
    facts, workspace_bytes = stock.of(policy)
    missing = [name for name in names if name not in facts]
    if missing:
        kind = "in paged memory" if policy.paged else "in step groups"
        raise InputError(
            f"policy {policy.name} needs facts of every model {kind}",
            got=f"none of {', '.join(missing)}",
            remedy="prepare them",
        )
    servers = servers_of(cluster, names, workspace_bytes)
    return simulated(policy, servers, facts, requests, timing, progress)


def simulated(
    policy: ServingPolicy,
    servers: Sequence[ServerFacts],
    models: Mapping[str, ModelFacts],
    requests: Sequence[Request],
    timing: Timing,
    progress: Callable[[int], None] | None = None,
) -> Study:
    """Simulate requests on these servers, and watch them: in large simulations now and then."""
    events = len(requests) * max(len(model.groups) for model in models.values())
    span_s = requests[-1].arrived_s - requests[0].arrived_s
    timeline = Timeline(period_s=span_s / SERIES_POINTS if events > EVENTS_SAMPLED else 0.0)
    simulation = Simulation(
        servers, models, policy.chooser(), policy.local, timing, timeline.observe
    )
    for server in simulation.servers.values():
        timeline.watch(server)
    trace = simulation.run(requests, progress)
    timeline.close()
    result = policy_result(policy.name, trace.outcomes, timeline)
    return Study(result=result, outcomes=trace.outcomes, timeline=timeline)
