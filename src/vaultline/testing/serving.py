"""Small models and clusters for tests of schedulers, and seeded workloads."""

from __future__ import annotations

import random
from collections.abc import Sequence

from vaultline.sched.events import Request
from vaultline.sched.facts import GroupFacts, ModelFacts, ServerFacts

MIB = 1 << 20


def group(
    weights_mib: float = 4.0,
    *,
    run_s: float = 0.01,
    four_s: float | None = None,
    workspace_mib: float = 2.0,
    output_mib: float = 0.5,
) -> GroupFacts:
    """A step group; four frames take four times as long unless ``four_s`` says else."""
    return GroupFacts(
        weight_bytes=int(weights_mib * MIB),
        workspace_bytes=int(workspace_mib * MIB),
        tile_bytes=int(min(weights_mib, 1.0) * MIB),
        output_bytes=int(output_mib * MIB),
        run_s=((1, run_s), (4, 4 * run_s if four_s is None else four_s)),
        load_s=weights_mib * 1e-4,
    )


def model(name: str, *groups: GroupFacts, fixed_mib: float = 1.0) -> ModelFacts:
    """A model of these groups, by default of one."""
    return ModelFacts(
        name=name,
        groups=groups or (group(),),
        fixed_bytes=int(fixed_mib * MIB),
        input_bytes=600_000,
    )


def server(name: str, models: Sequence[str], *, cores: int = 1, mib: float = 32) -> ServerFacts:
    """A server with all of these models installed."""
    return ServerFacts(name=name, cores=cores, memory_bytes=int(mib * MIB), models=tuple(models))


def poisson(
    models: Sequence[str], *, rate: float, count: int, seed: int = 0, zipf: float = 1.0
) -> list[Request]:
    """Requests at random times, ``rate`` a second, for models of falling popularity."""
    chosen = random.Random(seed)
    weights = [1 / (rank + 1) ** zipf for rank in range(len(models))]
    now_s, found = 0.0, []
    for number in range(count):
        now_s += chosen.expovariate(rate)
        name = chosen.choices(models, weights)[0]
        found.append(Request(number=number, model=name, arrived_s=now_s))
    return found
