"""How simulation and balancing scale with the number of servers.

Made-up models of the sizes that networks have, made-up servers; nothing here is measured but the
time that deciding and simulating take on this machine.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from math import ceil

from vaultline.core.serde import Struct
from vaultline.sched.balancer import Balancer
from vaultline.sched.events import Request
from vaultline.sched.facts import GroupFacts, ModelFacts, ServerFacts
from vaultline.sched.policies import policy
from vaultline.sim.cluster import Simulation, Timing

MIB = 1 << 20
#: Of the core time that full batches would leave: busy, and not overloaded.
_LOAD = 0.6
_ZIPF = 0.9
#: Models that a server has at least, and servers that a model has at least.
_MODELS_PER_SERVER, _SERVERS_PER_MODEL = 8, 2
#: Times that, where few servers have many models each: room for replicas of the popular ones.
_SPREAD = 2
_MEMORY_BYTES = 160 * MIB


class ScaleRow(Struct, frozen=True):
    """One size.

    Attributes:
        decision_us: mean core time of a balancer's decision, the bookkeeping with it.
        seconds: of the whole simulation, which uses one core.
        core_s: of these, in which it had the core.
        virtual_s: that it covers.
        rate_per_s: of arrivals.
    """

    servers: int
    models: int
    requests: int
    decision_us: float
    seconds: float
    core_s: float
    virtual_s: float
    rate_per_s: float
    mean_s: float
    p95_s: float
    refused: int


class _TimedBalancer(Balancer):
    """Knows how long its decisions took."""

    spent_s: float = 0.0
    decided: int = 0

    def submit(self, request: Request, now_s: float) -> str | None:
        """As ever."""
        since_s = time.thread_time()
        name = super().submit(request, now_s)
        self.spent_s += time.thread_time() - since_s
        self.decided += 1
        return name


def scale(
    servers: Sequence[int],
    models: int,
    requests: int,
    *,
    policy_name: str = "vaultline",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[ScaleRow]:
    """Simulate clusters of these sizes, each with the same models, in proportion to their load.

    Args:
        progress: called with a cluster's size and how many of its requests have arrived.
    """
    return [_row(count, models, requests, policy_name, seed, progress) for count in servers]


def _row(
    count: int,
    models: int,
    requests: int,
    policy_name: str,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> ScaleRow:
    facts = made_up_models(models, seed)
    cluster = made_up_servers(count, facts)
    weights = popularity(models)
    names = list(facts)
    cost_s = sum(
        facts[name].batched_s * weight for name, weight in zip(names, weights, strict=True)
    )
    rate = _LOAD * sum(each.cores for each in cluster) / cost_s
    chosen = policy(policy_name)
    simulation = Simulation(
        cluster, facts, chosen.chooser(), chosen.local, Timing(), balancer=_TimedBalancer
    )
    arrivals = list(_arrivals(names, weights, rate, requests, seed))
    since_s, core_since_s = time.perf_counter(), time.thread_time()
    told = (lambda done: progress(count, done)) if progress is not None else None
    trace = simulation.run(arrivals, told)
    seconds, core_s = time.perf_counter() - since_s, time.thread_time() - core_since_s
    balancer = simulation.balancer
    if not isinstance(balancer, _TimedBalancer):
        raise TypeError("the simulation took another balancer")
    latencies = sorted(each.latency_s for each in trace.outcomes if not each.reason)
    return ScaleRow(
        servers=count,
        models=models,
        requests=requests,
        decision_us=1e6 * balancer.spent_s / max(1, balancer.decided),
        seconds=seconds,
        core_s=core_s,
        virtual_s=max(each.ended_s for each in trace.outcomes),
        rate_per_s=rate,
        mean_s=sum(latencies) / max(1, len(latencies)),
        p95_s=latencies[int(0.95 * len(latencies))] if latencies else 0.0,
        refused=len(trace.outcomes) - len(latencies),
    )


def popularity(models: int) -> list[float]:
    """Zipf's law, summing to 1."""
    weights = [1 / (rank + 1) ** _ZIPF for rank in range(models)]
    return [weight / sum(weights) for weight in weights]


def made_up_models(count: int, seed: int) -> dict[str, ModelFacts]:
    """Convolutions of 3 to 80 ms; some with big classifiers, which gain from company."""
    chosen = random.Random(seed)
    found = {}
    for number in range(count):
        run_s, weight_bytes = chosen.uniform(0.003, 0.08), int(chosen.uniform(3, 60) * MIB)
        groups = [_group(weight_bytes, ((1, run_s), (4, 3.6 * run_s)))]
        if number % 3 == 0:
            big = int(chosen.uniform(60, 400) * MIB)
            groups.append(_group(big, ((1, 0.004), (4, 0.008), (16, 0.02))))
        name = f"model{number:03}"
        found[name] = ModelFacts(
            name=name,
            groups=tuple(groups),
            fixed_bytes=MIB,
            input_bytes=600_000,
            install_s=0.3,
        )
    return found


def _group(weight_bytes: int, run_s: tuple[tuple[int, float], ...]) -> GroupFacts:
    return GroupFacts(
        weight_bytes=weight_bytes,
        workspace_bytes=0,
        tile_bytes=0,
        output_bytes=100_000,
        run_s=run_s,
        load_s=weight_bytes / 1e10,
    )


def made_up_servers(count: int, models: Mapping[str, ModelFacts]) -> list[ServerFacts]:
    """Servers of one core; each model is on as many as its load asks for, spread evenly."""
    slots = max(_MODELS_PER_SERVER, ceil(_SPREAD * _SERVERS_PER_MODEL * len(models) / count))
    slots = min(slots, len(models))
    loads = {
        name: weight * models[name].batched_s
        for name, weight in zip(models, popularity(len(models)), strict=True)
    }
    spare = count * slots - min(_SERVERS_PER_MODEL, count) * len(models)
    placed: list[list[str]] = [[] for _ in range(count)]
    turn = 0
    for name in sorted(loads, key=loads.__getitem__):
        share = loads[name] / sum(loads.values())
        replicas = min(count, _SERVERS_PER_MODEL + int(spare * share))
        for _ in range(replicas):
            placed[turn % count].append(name)
            turn += 1
    return [
        ServerFacts(
            name=f"server{number:04}",
            cores=1,
            memory_bytes=_MEMORY_BYTES + slots * MIB,
            models=tuple(dict.fromkeys(names)),
            fixed_bytes=30 * MIB,
        )
        for number, names in enumerate(placed)
    ]


def _arrivals(
    names: Sequence[str], weights: Sequence[float], rate: float, count: int, seed: int
) -> Iterator[Request]:
    chosen = random.Random(seed)
    bounds = list(accumulate(weights))
    now_s = 0.0
    for number in range(count):
        now_s += chosen.expovariate(rate)
        name = chosen.choices(names, cum_weights=bounds)[0]
        yield Request(number=number, model=name, arrived_s=now_s)
