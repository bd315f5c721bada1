"""How long planning takes: random problems of given sizes, and how the time grows with them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from random import Random
from statistics import median

import numpy as np

from vaultline.core.cluster import Cluster, Device, Host, Link
from vaultline.core.limits import GIB, MIB
from vaultline.core.profile import (
    BlockProfile,
    ClassProfile,
    DeviceRates,
    LoopbackRate,
    ModelProfile,
    RecordedOn,
    held_between,
)
from vaultline.core.tensors import TensorSpec
from vaultline.planner import PlanRequest, Settings, plan_request
from vaultline.planner.plan import problem_of
from vaultline.planner.search import search

#: Cuts and devices of the growth plot.
CUTS = (50, 100, 200, 500, 1000)
DEVICES = (2, 4, 6, 8)
#: Two devices of each type.
PER_TYPE = 2
CHUNKS = (100, 1000)
_RECORDED = RecordedOn(host="random", cpu="random", date="", command="vaultline bench planner")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerTime:
    """Processor time of one size of problem: the median of ``runs``, and the longest of them.

    Attributes:
        seconds: tabulating the costs and searching them.
        search_s: of this, the search.
    """

    cuts: int
    devices: int
    types: int
    chunk_frames: int
    runs: int
    seconds: float
    search_s: float
    seconds_max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """Least squares of log time: ``seconds ~ factor * cuts**in_cuts * devices**in_devices``."""

    factor: float
    in_cuts: float
    in_devices: float

    def seconds(self, cuts: int, devices: int) -> float:
        """What the fit says of a size."""
        return float(self.factor * cuts**self.in_cuts * devices**self.in_devices)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerTimes:
    """Times of all sizes, and their growth."""

    points: tuple[PlannerTime, ...]
    growth: Growth


def planner_times(
    *,
    cuts: Sequence[int] = CUTS,
    devices: Sequence[int] = DEVICES,
    chunks: Sequence[int] = CHUNKS,
    per_type: int = PER_TYPE,
    seeds: Sequence[int] = (1, 2, 3),
    progress: Callable[[PlannerTime], None] = lambda point: None,
) -> PlannerTimes:
    """Plan random problems of every size for every chunk, once for each seed.

    Args:
        progress: called with each size when it is done.
    """
    points = []
    for wanted in cuts:
        for count in devices:
            for frames in chunks:
                point = planner_time(
                    cuts=wanted, devices=count, per_type=per_type, chunk_frames=frames, seeds=seeds
                )
                progress(point)
                points.append(point)
    return PlannerTimes(points=tuple(points), growth=fit_growth(points))


def planner_time(
    *, cuts: int, devices: int, per_type: int, chunk_frames: int, seeds: Sequence[int]
) -> PlannerTime:
    """Plan one random problem of this size for each seed."""
    wholes, searches = [], []
    for seed in seeds:
        profile = random_profile(seed, cuts=cuts)
        cluster = random_cluster(seed, devices=devices, per_type=per_type)
        request = PlanRequest(chunk_frames=chunk_frames, settings=Settings())
        started_s = time.process_time()
        problem = problem_of(profile, cluster, request)
        built_s = time.process_time()
        search(problem, request.objective, chunk_frames=chunk_frames)
        ended_s = time.process_time()
        wholes.append(ended_s - started_s)
        searches.append(ended_s - built_s)
    return PlannerTime(
        cuts=cuts,
        devices=devices,
        types=-(-devices // per_type),
        chunk_frames=chunk_frames,
        runs=len(seeds),
        seconds=median(wholes),
        search_s=median(searches),
        seconds_max=max(wholes),
    )


def model_seconds(profile: ModelProfile, cluster: Cluster, *, chunk_frames: int = 1000) -> float:
    """Processor time of one whole plan of a real profile."""
    started_s = time.process_time()
    plan_request(profile, cluster, PlanRequest(chunk_frames=chunk_frames))
    return time.process_time() - started_s


def fit_growth(points: Sequence[PlannerTime]) -> Growth:
    """The exponents of time in cuts and in devices."""
    rows = [[1.0, float(np.log(each.cuts)), float(np.log(each.devices))] for each in points]
    logs = np.log([max(each.seconds, 1e-9) for each in points])
    found, *_ = np.linalg.lstsq(np.array(rows), logs, rcond=None)
    return Growth(
        factor=float(np.exp(found[0])), in_cuts=float(found[1]), in_devices=float(found[2])
    )


def random_profile(seed: int, *, cuts: int) -> ModelProfile:
    """A deep network of so many cut positions, its two ends included.

    As in convolutional networks, activations shrink and weights grow with depth, some tensors
    skip, the times of blocks differ by orders of magnitude, and the last blocks gain from passes
    of several frames. Two classes of devices are measured, the others estimated.
    """
    rng = Random(seed)
    count = cuts - 1
    share = [rng.random() ** 3 for _ in range(count)]
    times = [each / sum(share) * 0.5 for each in share]
    weights = [
        int(rng.random() ** 3 * 4 * (place + 1) / count * 400 * MIB / count)
        for place in range(count)
    ]
    stacking = count - max(1, count // 50)
    crossing = _crossing(rng, count)
    blocks = tuple(
        BlockProfile(
            compute_s=_passes(seconds, stacks=place >= stacking),
            weight_bytes=weight,
            activation_bytes=rng.randrange(1, 2 * MIB),
            step_weight_bytes=weight,
            cut_bytes=weight // 2 + rng.randrange(2 * MIB, 4 * MIB),
            cut_frame_bytes=rng.randrange(1, 2 * MIB),
            cut_steps=rng.randint(4, 6),
            engine_bytes=rng.randint(1, 3) * 9216,
            kernel_bytes=rng.randrange(1, MIB // 4),
            values=rng.randint(3, 12),
            stacked_bytes=rng.randrange(1, MIB) if place >= stacking else 0,
            alone=place >= stacking,
            largest_weight_bytes=-(-weight // 4),
        )
        for place, (seconds, weight) in enumerate(zip(times, weights, strict=True))
    )
    rates = DeviceRates(
        seal_bytes_per_s=2e9,
        open_bytes_per_s=1e9,
        decrypt_bytes_per_s=2e9,
        call_s=5e-5,
        step_s=1.5e-5,
    )
    return ModelProfile(
        model_name=f"random-{cuts}-{seed}",
        model_digest="00" * 32,
        engine_version="random",
        isa="portable",
        recorded_on=_RECORDED,
        positions=tuple(range(cuts)),
        blocks=blocks,
        crossing=crossing,
        held=held_between(crossing),
        rates=rates,
        loopback=LoopbackRate(bytes_per_s=2e9, latency_s=5e-5),
        classes=tuple(
            ClassProfile(
                name=name,
                recorded_on=_RECORDED,
                isa="portable",
                compute_s=tuple(
                    tuple((frames, s * own) for frames, s in block.compute_s)
                    for block in blocks
                    for own in (factor * (0.7 + 0.6 * rng.random()),)
                ),
                rates=rates,
            )
            for name, factor in (("class-1", 0.4), ("class-2", 1.6))
        ),
        class_scale={f"class-{number}": 0.6 + 0.35 * number for number in (0, *range(3, 64))},
    )


def random_cluster(seed: int, *, devices: int, per_type: int) -> Cluster:
    """So many devices on a host for each type, with links of a few different speeds."""
    rng = Random(seed * 1_000_003 + devices)
    hosts = [f"host-{number}" for number in range(-(-devices // per_type))]
    links = []
    for a, b in combinations(hosts, 2):
        rate, latency_s = rng.choice([2.5e7, 1e8, 1e9]), rng.choice([1e-4, 1e-3, 5e-3])
        links += [
            Link(source=source, target=target, bytes_per_s=rate, latency_s=latency_s)
            for source, target in ((a, b), (b, a))
        ]
    return Cluster(
        owner=hosts[0],
        hosts=tuple(Host(name=name, cores=per_type, memory_bytes=64 * GIB) for name in hosts),
        devices=tuple(
            Device(
                name=f"device-{number}",
                host=host,
                kind="simulated",
                trust="attested",
                memory_bytes=rng.choice([93 * MIB, 256 * MIB, 4 * GIB]),
                cores=1,
                count=min(per_type, devices - number * per_type),
                speed_class=f"class-{number}",
            )
            for number, host in enumerate(hosts)
        ),
        links=tuple(links),
    )


def _passes(seconds: float, *, stacks: bool) -> tuple[tuple[int, float], ...]:
    return ((1, seconds), (4, 1.5 * seconds)) if stacks else ((1, seconds),)


def _crossing(rng: Random, blocks: int) -> tuple[tuple[TensorSpec, ...], ...]:
    """Each block's output, and now and then one from a few blocks before."""
    sizes = [
        int((0.05 + (1 - cut / blocks) ** 2) * (0.2 + rng.random()) * 3 * MIB)
        for cut in range(blocks + 1)
    ]
    made = [TensorSpec(name=f"t{cut}", dtype="uint8", shape=(n,)) for cut, n in enumerate(sizes)]
    cuts = []
    for cut in range(blocks + 1):
        skip = 0 < cut < blocks and rng.random() < 0.4
        older = cut - rng.randint(1, min(cut, 4)) if skip else None
        cuts.append((made[cut],) if older is None else (made[cut], made[older]))
    return tuple(cuts)
