"""Random planning problems, and a brute-force planner that shares no code with the search."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from random import Random

from vaultline.core.cluster import Cluster, Device, Host, Link
from vaultline.core.frame_meta import hop_buffers_bytes
from vaultline.core.frames import FrameLayout
from vaultline.core.limits import RECORD_SLACK_BYTES
from vaultline.core.profile import (
    BlockProfile,
    DeviceRates,
    LoopbackRate,
    ModelProfile,
    RecordedOn,
)
from vaultline.core.tensors import TensorSpec
from vaultline.planner import Release, Settings

GIB = 1 << 30
#: What a stage needs even if nothing crosses.
RECORD_BUFFERS = 2 * RECORD_SLACK_BYTES


@dataclass(frozen=True)
class Case:
    profile: ModelProfile
    cluster: Cluster
    settings: Settings
    release: Release
    stages: int | None


def recorded() -> RecordedOn:
    return RecordedOn(host="test", cpu="test", date="2026-01-01", command="random")


def make_profile(
    blocks: list[BlockProfile],
    crossing_bytes: list[int],
    rates: DeviceRates,
    class_scale: dict[str, float],
) -> ModelProfile:
    return ModelProfile(
        model_name="random",
        model_digest="00" * 32,
        engine_version="1",
        isa="portable",
        recorded_on=recorded(),
        positions=tuple(range(0, 3 * len(blocks) + 1, 3)),
        blocks=tuple(blocks),
        crossing=tuple(
            (TensorSpec(name=f"t{cut}", dtype="uint8", shape=(nbytes,)),)
            for cut, nbytes in enumerate(crossing_bytes)
        ),
        rates=rates,
        loopback=LoopbackRate(bytes_per_s=1e5, latency_s=0.001),
        class_scale=class_scale,
    )


def random_case(seed: int, *, blocks_max: int = 11, devices_max: int = 5) -> Case:
    """A problem in which times, links, memory and trust all matter, and often bind."""
    rng = Random(seed)
    count = rng.randint(1, blocks_max)
    # Small whole numbers make ties; a few extremes make constraints bind.
    blocks = [
        BlockProfile(
            compute_s=_passes(rng),
            weight_bytes=rng.choice([0, 100, 1000, 4000]),
            activation_bytes=rng.choice([100, 300, 1000]),
            scratch_bytes=rng.choice([0, 300]),
            largest_weight_bytes=rng.choice([0, 100, 600]),
        )
        for _ in range(count)
    ]
    crossing = [rng.choice([10, 50, 200, 1000]) for _ in range(count + 1)]
    rates = DeviceRates(
        seal_bytes_per_s=1e4, open_bytes_per_s=2e4, decrypt_bytes_per_s=5e4, call_s=0.002
    )
    cluster = _cluster(rng, devices_max)
    release = Release(
        cuts=tuple(rng.random() < 0.8 for _ in range(count + 1)),
        blocks=tuple(rng.random() < 0.8 for _ in range(count)),
    )
    return Case(
        profile=make_profile(blocks, crossing, rates, {"slow": 3.0, "fast": 0.5}),
        cluster=cluster,
        settings=Settings(frames_per_pass_max=rng.randint(1, 4), step_bytes=500),
        release=release if rng.random() < 0.7 else Release(),
        stages=rng.choice([None, None, None, 1, 2, 3]),
    )


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
            "memory_bytes": RECORD_BUFFERS + rng.choice([4500, 7000, 11_000, 200_000]),
            "cores": 1,
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
        hosts=tuple(Host(name=name, cores=8, memory_bytes=GIB) for name in hosts),
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
    case: Case, device: Device, start: int, end: int, *, alone: bool
) -> list[tuple[float, float]]:
    """(latency, period) of every way of running blocks [start, end) on a device."""
    profile, settings = case.profile, case.settings
    blocks = profile.blocks[start:end]
    if device.trust == "none":
        cuts = case.release.cuts or (False,) * len(profile.positions)
        shown = case.release.blocks or (False,) * len(profile.blocks)
        if not all(cuts[start : end + 1]) or not all(shown[start:end]):
            return []
    scale = profile.class_scale[device.speed_class] if device.speed_class else 1.0
    arrives = profile.crossing[start][0].nbytes
    leaves = profile.crossing[end][0].nbytes
    weights = sum(block.weight_bytes for block in blocks)
    scratch = max(
        block.scratch_bytes
        + block.activation_bytes
        + (crossing(profile, cut) if cut > start else 0)
        + (crossing(profile, cut + 1) if cut + 1 < end else 0)
        for cut, block in enumerate(blocks, start)
    )
    stages_max = len(case.cluster.units)
    messages = [
        FrameLayout(profile.crossing[cut], stages_max).message_bytes for cut in (start, end)
    ]
    largest = max(block.largest_weight_bytes for block in blocks)
    found = []
    for streamed in (False, True):
        held = 2 * min(weights, max(settings.step_bytes, largest)) if streamed else weights
        streaming = weights if streamed else 0
        kept = stacked_bytes(profile, start, end)
        kept += between_steps_bytes(profile, settings, start, end) if streamed else 0
        periods = []
        for frames in range(1, (1 if alone else settings.frames_per_pass_max) + 1):
            need = held + frames * kept + scratch
            need += hop_buffers_bytes(
                queue_frames=2 * frames,
                frames_per_pass=frames,
                input_bytes=messages[0],
                output_bytes=messages[1],
            )
            if need <= device.memory_bytes:
                a_pass = sum(block.compute_pass_s(frames) for block in blocks)
                a_pass += streaming / profile.rates.decrypt_bytes_per_s + profile.rates.call_s
                crypto = arrives / profile.rates.open_bytes_per_s
                crypto += leaves / profile.rates.seal_bytes_per_s
                periods.append(scale * (crypto + a_pass / frames))
        if periods:
            # A frame alone is a pass of one frame; the busy stage takes the best pass size.
            found += [(periods[0], period) for period in periods]
    return found


def crossing(profile: ModelProfile, cut: int) -> int:
    return profile.crossing[cut][0].nbytes


def stacked_bytes(profile: ModelProfile, start: int, end: int) -> int:
    """What crosses the ends of each run of blocks that stack."""
    total = 0
    for cut in range(start, end + 1):
        before = cut > start and len(profile.blocks[cut - 1].compute_s) > 1
        after = cut < end and len(profile.blocks[cut].compute_s) > 1
        total += crossing(profile, cut) if before != after else 0
    return total


def between_steps_bytes(profile: ModelProfile, settings: Settings, start: int, end: int) -> int:
    """The least that can cross between steps: all ways of grouping blocks into steps."""
    best = None
    for first in range(start, end):
        weights = sum(block.weight_bytes for block in profile.blocks[first:end])
        if weights <= settings.step_bytes or first == end - 1:
            before = 0
            if first > start:
                before = between_steps_bytes(profile, settings, start, first)
                before += crossing(profile, first)
            best = before if best is None else min(best, before)
    assert best is not None
    return best


def hop_s(case: Case, source: str, target: str, cut: int) -> float:
    link = case.cluster.link(source, target) or case.profile.loopback
    return link.latency_s + case.profile.crossing[cut][0].nbytes / link.bytes_per_s


def every_plan(case: Case, *, alone: bool) -> Iterator[tuple[float, float]]:
    """(latency, bottleneck) of all segmentations on all device orders, run in all ways."""
    cluster, last = case.cluster, len(case.profile.blocks)
    units = cluster.units
    known: dict[tuple[str, int, int], list[tuple[float, float]]] = {}

    def options(device: Device, start: int, end: int) -> list[tuple[float, float]]:
        key = (device.name, start, end)
        if key not in known:
            known[key] = _undominated(ways(case, device, start, end, alone=alone))
        return known[key]

    def grow(
        start: int, host: str, used: tuple[Device, ...], latency: float, worst: float
    ) -> Iterator[tuple[float, float]]:
        if start == last:
            back = hop_s(case, host, cluster.owner, last)
            if case.stages in (None, len(used)):
                yield latency + back, max(worst, back)
            return
        for device in units:
            if device not in used:
                hop = hop_s(case, host, device.host, start)
                for end in range(start + 1, last + 1):
                    for alone_s, period_s in options(device, start, end):
                        yield from grow(
                            end,
                            device.host,
                            (*used, device),
                            latency + hop + alone_s,
                            max(worst, hop, period_s),
                        )

    return grow(0, cluster.owner, (), 0.0, 0.0)


def _undominated(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [
        point
        for point in set(points)
        if not any(other != point and other <= point and other[1] <= point[1] for other in points)
    ]


def brute_force(case: Case, objective: str, frames: int) -> float:
    """The best value of an objective over every plan; ``inf`` where there is none."""
    best = inf
    for latency, bottleneck in every_plan(case, alone=objective == "latency"):
        value = {
            "latency": latency,
            "throughput": bottleneck,
            "chunk": latency + (frames - 1) * bottleneck,
        }[objective]
        best = min(best, value)
    return best
