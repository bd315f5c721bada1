"""Random planning problems, and a brute-force planner that shares no code with the search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from math import inf
from random import Random
from typing import TypeAlias

from msgspec.structs import replace
from segment_memory import THREAD, SegmentMemory, StepMemory

from vaultline.core.cluster import Cluster, Device, Host, Link
from vaultline.core.frame_meta import hop_buffers_bytes
from vaultline.core.frames import FrameLayout, record_buffer_bytes
from vaultline.core.limits import MIB, RECORD_SLACK_BYTES
from vaultline.core.profile import (
    BlockProfile,
    ClassProfile,
    DeviceRates,
    Held,
    LoopbackRate,
    ModelProfile,
    RecordedOn,
    pass_s,
)
from vaultline.core.tensors import TensorSpec, layout
from vaultline.planner import Release, Settings

GIB = 1 << 30
#: Latency and bottleneck.
Costs: TypeAlias = tuple[float, float]
#: What a stage needs even if nothing crosses.
RECORD_BUFFERS = 2 * RECORD_SLACK_BYTES
#: From nothing for most stages to enough for most models.
BUDGETS = (30_000, 2 * MIB, 5 * MIB, 9 * MIB, 14 * MIB, 24 * MIB, 48 * MIB)


@dataclass(frozen=True, eq=False)
class Case:
    profile: ModelProfile
    cluster: Cluster
    settings: Settings
    release: Release
    stages: int | None


def recorded() -> RecordedOn:
    return RecordedOn(host="test", cpu="test", date="2026-01-01", command="random")


def random_case(
    seed: int, *, blocks_min: int = 1, blocks_max: int = 13, devices_max: int = 5
) -> Case:
    """A problem in which times, links, memory, trust and replicas all matter, and often bind.

    Up to 12 inner cuts and 5 devices.
    """
    rng = Random(seed)
    cluster = _cluster(rng, devices_max)
    count = rng.randint(blocks_min, blocks_max)
    # Small whole numbers make ties; a few extremes make constraints bind.
    blocks = [_block(rng) for _ in range(count)]
    release = Release(
        cuts=tuple(rng.random() < 0.8 for _ in range(count + 1)),
        blocks=tuple(rng.random() < 0.8 for _ in range(count)),
    )
    classes, scale = _classes(rng, blocks)
    return Case(
        profile=ModelProfile(
            model_name="random",
            model_digest="00" * 32,
            engine_version="1",
            isa="portable",
            recorded_on=recorded(),
            positions=tuple(range(0, 3 * count + 1, 3)),
            blocks=tuple(blocks),
            crossing=_crossing(rng, count),
            held=_held(rng, count),
            rates=_rates(rng),
            loopback=LoopbackRate(bytes_per_s=1e5, latency_s=0.001),
            owner_s=rng.choice([0.0, 0.08]),
            classes=classes,
            class_scale=scale,
        ),
        cluster=cluster,
        settings=Settings(
            frames_per_pass_max=rng.randint(1, 4),
            replicas_max=rng.choice([1, 2, 3, 16, 16]),
        ),
        release=release if rng.random() < 0.7 else Release(),
        stages=rng.choice([None, None, None, 1, 2, 3]),
    )


def _block(rng: Random) -> BlockProfile:
    """Weights of which some don't fit one tile; activations that make cuts inside worth it."""
    weights = rng.choice([0, 1000, MIB, 3 * MIB, 6 * MIB])
    alone = rng.random() < 0.3
    parts = rng.choice([1, 2])
    return BlockProfile(
        compute_s=_passes(rng),
        weight_bytes=weights,
        step_weight_bytes=weights + rng.choice([0, 0, 0, MIB]),
        activation_bytes=rng.choice([0, 1000, MIB]),
        cut_bytes=weights // parts + rng.choice([0, MIB // 2]),
        cut_frame_bytes=rng.choice([0, MIB // 4]),
        cut_steps=rng.randint(2, 3),
        largest_weight_bytes=weights // parts,
        engine_bytes=rng.choice([0, 9216]),
        kernel_bytes=rng.choice([0, 0, MIB // 4]),
        values=rng.randint(0, 8),
        stacked_bytes=rng.choice([0, MIB // 8]) if alone else 0,
        alone=alone,
    )


def _held(rng: Random, blocks: int) -> tuple[Held, ...]:
    """What lives between blocks as compiled; in these cases not what crosses the cuts."""
    found = []
    for block in range(blocks - 1):
        for _ in range(rng.choice([0, 1, 1, 2])):
            last = min(blocks - 1, block + rng.choice([1, 1, 1, 2, 4]))
            size = rng.choice([640, 6400, MIB // 2, MIB])
            found.append(Held(nbytes=size, first=block, last=last, relaid=rng.random() < 0.4))
    return tuple(found)


def _crossing(rng: Random, blocks: int) -> tuple[tuple[TensorSpec, ...], ...]:
    """What crosses each cut of a random graph: each block's output, and those of earlier ones
    that somebody later still reads."""
    made = [
        TensorSpec(name=f"t{cut}", dtype="uint8", shape=(rng.choice([10, 50, 200, 1000]),))
        for cut in range(blocks + 1)
    ]
    read_until = [cut + (rng.randint(1, 4) if rng.random() < 0.2 else 0) for cut in range(blocks)]
    return (
        (made[0],),
        *(
            (made[cut], *(made[old] for old in range(cut) if read_until[old] >= cut))
            for cut in range(1, blocks)
        ),
        (made[-1],),
    )


def _rates(rng: Random) -> DeviceRates:
    return DeviceRates(
        seal_bytes_per_s=1e4,
        open_bytes_per_s=2e4,
        decrypt_bytes_per_s=rng.choice([5e7, 5e7, 1e8]),
        call_s=0.002,
        step_s=rng.choice([0.0, 0.001]),
        frame_s=rng.choice([0.0, 0.004]),
    )


def _classes(
    rng: Random, blocks: list[BlockProfile]
) -> tuple[tuple[ClassProfile, ...], dict[str, float]]:
    """Each speed class either measured (not in proportion to the recording host) or estimated."""
    measured, scale = [], {}
    for name, factor in (("slow", 3.0), ("fast", 0.5)):
        if rng.random() < 0.5:
            scale[name] = factor
            continue
        times = []
        for block in blocks:
            own = factor * rng.choice([0.5, 1.0, 1.0, 2.0])
            times.append(tuple((frames, own * seconds) for frames, seconds in block.compute_s))
        measured.append(
            ClassProfile(
                name=name,
                recorded_on=recorded(),
                isa="portable",
                compute_s=tuple(times),
                rates=_rates(rng),
            )
        )
    return tuple(measured), scale


def _passes(rng: Random) -> tuple[tuple[int, float], ...]:
    one_s = rng.choice([0.0, 0.05, 0.1, 0.2, rng.random() / 3])
    if rng.random() < 0.5:
        return ((1, one_s),)
    return ((1, one_s), (4, one_s * rng.choice([1.2, 3.0, 4.0])))


def _cluster(rng: Random, devices_max: int) -> Cluster:
    hosts = [f"h{number}" for number in range(rng.randint(1, 3))]
    devices = []
    remaining = max(rng.randint(1, devices_max), rng.randint(1, devices_max))
    kinds = rng.randint(1, min(3, remaining))
    for number in range(kinds):
        count = (
            remaining if number == kinds - 1 else rng.randint(1, remaining - (kinds - number - 1))
        )
        remaining -= count
        trust = "none" if rng.random() < 0.2 else "attested"
        # One entry on one host, or several on hosts that links may tell apart.
        spread = rng.random() < 0.3
        base = {
            "kind": "accelerator" if trust == "none" else "simulated",
            "trust": trust,
            "memory_bytes": RECORD_BUFFERS + rng.choice(BUDGETS),
            "cores": rng.choice([1, 1, 2]),
            "speed_class": rng.choice(["", "slow", "fast"]),
        }
        if spread:
            devices += [
                Device(name=f"d{number}s{index}", host=rng.choice(hosts), **base)
                for index in range(count)
            ]
        else:
            devices.append(Device(name=f"d{number}", host=rng.choice(hosts), count=count, **base))
    same_links = rng.random() < 0.5
    first = _link(rng, "", "")
    links = [
        Link(
            source=a,
            target=b,
            bytes_per_s=(first if same_links else _link(rng, a, b)).bytes_per_s,
            latency_s=first.latency_s,
        )
        for a in hosts
        for b in hosts
        if a != b
    ]
    return Cluster(
        owner=rng.choice(hosts),
        hosts=tuple(Host(name=name, cores=rng.choice([2, 8]), memory_bytes=GIB) for name in hosts),
        devices=tuple(devices),
        links=tuple(links),
    )


def _link(rng: Random, source: str, target: str) -> Link:
    return Link(
        source=source,
        target=target,
        bytes_per_s=rng.choice([3e3, 1e4, 1e5]),
        latency_s=rng.choice([0.0, 0.01]),
    )


def ways(
    case: Case, device: Device, start: int, end: int, *, alone: bool, neighbours: int
) -> list[tuple[float, float]]:
    """(latency, period) of every way of running blocks [start, end) on a device."""
    profile, settings = case.profile, case.settings
    if device.trust == "none":
        cuts = case.release.cuts or (False,) * len(profile.positions)
        shown = case.release.blocks or (False,) * len(profile.blocks)
        if not all(cuts[start : end + 1]) or not all(shown[start:end]):
            return []
    measured = [each for each in profile.classes if each.name == device.speed_class]
    rates = measured[0].rates if measured else profile.rates
    scale = profile.class_scale.get(device.speed_class, 1.0)
    arrives, leaves = crossing(case, start), crossing(case, end)
    stages_max = len(case.cluster.units)
    messages = [
        FrameLayout(profile.crossing[cut], stages_max).message_bytes for cut in (start, end)
    ]
    # Beyond the first neighbour on each side; the owner has no replicas.
    records = (neighbours - 1) * (
        (record_buffer_bytes(messages[0]) if start > 0 else 0)
        + (record_buffer_bytes(messages[1]) if end < len(profile.blocks) else 0)
    )
    times = measured[0].compute_s if measured else [b.compute_s for b in profile.blocks]

    def seconds(frames: int, worked_s: float, calls: float) -> float:
        """Per frame, in passes of so many."""
        a_pass = worked_s + calls * rates.step_s + rates.call_s
        crypto = arrives / rates.open_bytes_per_s + leaves / rates.seal_bytes_per_s
        return scale * (crypto + rates.frame_s + a_pass / frames) + lost_to_owner(case, device)

    def compute_s(frames: int) -> float:
        return sum(pass_s(each, frames) for each in times[start:end])

    resident, streamed = [], []
    for frames in range(1, (1 if alone else settings.frames_per_pass_max) + 1):
        memory = segment_memory(case, start, end, frames)
        io = hop_buffers_bytes(
            queue_frames=2 * frames,
            frames_per_pass=frames,
            input_bytes=messages[0],
            output_bytes=messages[1],
        )
        spare = device.memory_bytes - io
        spare -= (device.cores - 1) * THREAD
        if memory.weights + memory.resident + records <= spare:
            pair = [seconds(count, compute_s(count), 0) for count in (1, frames)]
            resident.append((pair[1], frames, pair[0]))
        for overlaps in (False, True) if device.cores > 1 else (False,):
            room = spare - memory.streamed - (memory.ahead if overlaps else 0)
            if room < records:
                continue
            # Further neighbours' buffers are not counted against the weights that stay.
            stream_s = min(max(memory.weights - room, 0), memory.weights)
            stream_s /= rates.decrypt_bytes_per_s
            pair = []
            for count in (1, frames):
                computed_s = compute_s(count)
                worked_s = max(computed_s, stream_s) if overlaps else computed_s + stream_s
                calls = memory.stacked_steps + count * (memory.steps - memory.stacked_steps)
                pair.append(seconds(count, worked_s, calls))
            streamed.append((pair[1], frames, pair[0]))
    # Of each mode the quickest pass; a frame alone is a pass of one frame of the same stage.
    quickest = [min(mode) for mode in (resident, streamed) if mode]
    return [(alone_s, period_s) for period_s, _, alone_s in quickest]


def lost_to_owner(case: Case, device: Device) -> float:
    """The owner needs cores too, and takes them from devices where its host has none left."""
    cluster = case.cluster
    cores = {host.name: host.cores for host in cluster.hosts}[cluster.owner]
    taken = sum(unit.cores for unit in cluster.units if unit.host == cluster.owner)
    busy = device.host == cluster.owner and taken >= cores
    return case.profile.owner_s / cores if busy else 0.0


@cache
def crossing(case: Case, cut: int) -> int:
    return layout(case.profile.crossing[cut])[1]


@dataclass(frozen=True, slots=True)
class _Memory:
    """What ``SegmentMemory`` says, worked out once; the engine's share with each workspace."""

    weights: int
    resident: float
    streamed: float
    steps: int
    stacked_steps: int
    ahead: int


@cache
def step_memory(case: Case, frames: int) -> StepMemory:
    return StepMemory(case.profile, frames)


@cache
def segment_memory(case: Case, start: int, end: int, frames: int) -> _Memory:
    found = SegmentMemory(step_memory(case, frames), start, end)
    blocks = case.profile.blocks[start:end]
    streamed, steps = found.streamed()
    return _Memory(
        weights=found.weights,
        resident=found.resident() + found.engine(found.resident_steps()),
        streamed=streamed + found.engine(steps),
        steps=steps,
        stacked_steps=sum(block.cut_steps for block in blocks if block.stacked_bytes),
        ahead=found.ahead(),
    )


def hop_s(case: Case, source: str, target: str, cut: int) -> float:
    link = case.cluster.link(source, target) or case.profile.loopback
    return link.latency_s + crossing(case, cut) / link.bytes_per_s


def interchangeable(case: Case, a: Device, b: Device) -> bool:
    """Whether the cluster looks the same with two devices' names swapped."""
    if replace(a, name="", host="") != replace(b, name="", host=""):
        return False
    places = [unit.host for unit in case.cluster.units]
    at, to = (case.cluster.units.index(each) for each in (a, b))
    swapped = list(places)
    swapped[at], swapped[to] = places[to], places[at]

    def links(hosts: list[str]) -> list[object]:
        """From every device and the owner to every other one."""
        ends = [*hosts, case.cluster.owner]
        return [
            (link.bytes_per_s, link.latency_s)
            for one, source in enumerate(ends)
            for other, target in enumerate(ends)
            if one != other
            for link in [case.cluster.link(source, target) or case.profile.loopback]
        ]

    return links(places) == links(swapped)


def replica_sets(case: Case) -> list[tuple[Device, ...]]:
    """Every set of devices that may run a stage in turn."""
    units = case.cluster.units
    alike = {(a.name, b.name) for a, b in combinations(units, 2) if interchangeable(case, a, b)}
    return [
        chosen
        for size in range(1, len(units) + 1)
        for chosen in combinations(units, size)
        if all((a.name, b.name) in alike for a, b in combinations(chosen, 2))
    ]


def _undominated(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [
        point
        for point in set(points)
        if not any(other != point and other <= point and other[1] <= point[1] for other in points)
    ]


def brute_force(case: Case, objective: str, frames: int) -> float:
    """The best value of an objective over every plan; ``inf`` where there is none.

    Every plan: all segmentations on all assignments of devices, run in all ways, with at most
    1, 2, ... replicas a stage and memory for as many neighbours.
    """
    value_of: Callable[[float, float], float] = {
        "latency": lambda latency, _: latency,
        "throughput": lambda _, bottleneck: bottleneck,
        "chunk": lambda latency, bottleneck: latency + (frames - 1) * bottleneck,
    }[objective]
    sets = replica_sets(case)
    most = min(case.settings.replicas_max, max(map(len, sets)))
    best = inf
    for neighbours in range(1, most + 1):
        allowed = [chosen for chosen in sets if len(chosen) <= neighbours]
        best = _best_of(case, allowed, neighbours, value_of, objective == "latency", best)
    return best


def _best_of(
    case: Case,
    sets: list[tuple[Device, ...]],
    neighbours: int,
    value_of: Callable[[float, float], float],
    alone: bool,
    best: float,
) -> float:
    """The best value below ``best``, or that."""
    owner, last = case.cluster.owner, len(case.profile.blocks)
    named = [(chosen[0], frozenset(each.name for each in chosen)) for chosen in sets]

    @cache
    def options(device: Device, start: int, end: int) -> list[tuple[float, float]]:
        return _undominated(ways(case, device, start, end, alone=alone, neighbours=neighbours))

    hop = cache(lambda source, target, cut: hop_s(case, source, target, cut))

    def grow(start: int, host: str, used: frozenset[str], stages: int, so_far: Costs) -> None:
        nonlocal best
        latency, worst = so_far
        if start == last:
            back = hop(host, owner, last)
            if case.stages in (None, stages):
                best = min(best, value_of(latency + back, max(worst, back)))
            return
        for device, names in named:
            if not used.isdisjoint(names):
                continue
            there = hop(host, device.host, start)
            for end in range(start + 1, last + 1):
                for alone_s, period_s in options(device, start, end):
                    costs = (latency + there + alone_s, max(worst, there, period_s / len(names)))
                    # Costs only grow: what is no better already cannot become so.
                    if value_of(*costs) < best:
                        grow(end, device.host, used | names, stages + 1, costs)

    grow(0, owner, frozenset(), 0, (0.0, 0.0))
    return best


def fronts(case: Case, *, alone: bool) -> list[tuple[float, float]]:
    """Latency and bottleneck of plans that no other plan beats in both, for models too long to try
    all plans: from cut to cut, keeping every such pair for each way of having used devices."""
    groups: list[list[Device]] = []
    for unit in case.cluster.units:
        home = next((each for each in groups if interchangeable(case, each[0], unit)), None)
        if home is None:
            groups.append([unit])
        else:
            home.append(unit)
    most = min(case.settings.replicas_max, max(map(len, groups)))
    found: list[tuple[float, float]] = []
    for neighbours in range(1, most + 1):
        found += _front(case, groups, neighbours, alone=alone)
    return _undominated(found)


def _front(
    case: Case, groups: list[list[Device]], neighbours: int, *, alone: bool
) -> list[tuple[float, float]]:
    owner, last = case.cluster.owner, len(case.profile.blocks)

    @cache
    def options(number: int, start: int, end: int) -> list[tuple[float, float]]:
        device = groups[number][0]
        return _undominated(ways(case, device, start, end, alone=alone, neighbours=neighbours))

    # Per cut: by (devices used of each group, last group, stages), the pairs that reach it.
    State: TypeAlias = tuple[tuple[int, ...], int, int]
    reached: list[dict[State, list[Costs]]] = [{} for _ in range(last + 1)]
    reached[0][(0,) * len(groups), -1, 0] = [(0.0, 0.0)]
    for start in range(last):
        for (used, before, stages), pairs in reached[start].items():
            kept = _undominated(pairs)
            for number, group in enumerate(groups):
                free = len(group) - used[number]
                if not free or stages == (case.stages or last):
                    continue
                # Within a group, the hop goes to another of its devices.
                source = groups[before][0].host if before >= 0 else owner
                there = hop_s(case, source, group[1 if before == number else 0].host, start)
                for end in range(start + 1, last + 1):
                    ran = options(number, start, end)
                    for replicas in range(1, min(free, neighbours) + 1):
                        taken = tuple(n + replicas * (k == number) for k, n in enumerate(used))
                        reached[end].setdefault((taken, number, stages + 1), []).extend(
                            (latency + there + alone_s, max(worst, there, period_s / replicas))
                            for latency, worst in kept
                            for alone_s, period_s in ran
                        )
    ended = []
    for (_, before, stages), pairs in reached[last].items():
        if case.stages in (None, stages):
            back = hop_s(case, groups[before][0].host, owner, last)
            ended += [(latency + back, max(worst, back)) for latency, worst in pairs]
    return _undominated(ended)
