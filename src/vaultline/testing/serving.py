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


def small_models() -> dict[str, ModelFacts]:
    """One that is quick, one of two groups, and a slow one that gains from company."""
    models = (
        model("quick", group(2, run_s=0.003)),
        model("mid", group(6, run_s=0.01, four_s=0.03), group(6, run_s=0.01)),
        model("slow", group(4, run_s=0.04), group(18, run_s=0.03, four_s=0.05)),
    )
    return {each.name: each for each in models}


def _measured(weights_mib: float, load_ms: float, output_mib: float, **ms: float) -> GroupFacts:
    """A group by its milliseconds per frame, streamed, in runs of n frames: ``f1``, ``f4``.."""
    return GroupFacts(
        weight_bytes=int(weights_mib * MIB),
        workspace_bytes=0,
        tile_bytes=0,
        output_bytes=int(output_mib * MIB),
        run_s=tuple(
            (int(name[1:]), (int(name[1:]) * each - load_ms) / 1e3) for name, each in ms.items()
        ),
        load_s=load_ms / 1e3,
    )


def six_models() -> dict[str, ModelFacts]:
    """The six models of the serving benchmark in step groups, the most popular first, as measured
    on one AVX-512 core (runs of the convolutions gain little from company: few frames each)."""
    groups = {
        "alexnet": (
            _measured(9, 0.9, 0.036, f1=8.2, f4=7.5),
            _measured(224, 21, 0.004, f1=25.8, f4=7.7, f16=2.4),
        ),
        "vgg19": (
            _measured(76, 7, 0.1, f1=183),
            _measured(472, 45, 0.004, f1=57, f4=16, f16=5.2),
        ),
        "resnet50": (_measured(97, 10, 0.004, f1=52, f2=50),),
        "googlenet": (_measured(27, 3, 0.004, f1=20.5, f4=18.5),),
        "densenet121": (_measured(30, 4, 0.004, f1=34, f4=32),),
        "squeezenet": (_measured(4.7, 0.6, 0.004, f1=4.5, f4=4.1),),
    }
    return {
        name: ModelFacts(
            name=name,
            groups=each,
            fixed_bytes=int(1.7 * MIB),
            input_bytes=3 * 224 * 224 * 4,
            install_s=0.3,
        )
        for name, each in groups.items()
    }


def edge_server(name: str, models: Sequence[str], *, cores: int = 1) -> ServerFacts:
    """A server of the benchmark: 93 MiB, of which the neediest group's workspace takes 30."""
    return ServerFacts(
        name=name,
        cores=cores,
        memory_bytes=93 * MIB,
        models=tuple(models),
        fixed_bytes=cores * 30 * MIB,
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
