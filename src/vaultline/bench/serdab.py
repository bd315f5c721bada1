"""Serdab's table: a chunk of video by placement, predicted and, where two cores allow it, measured.

Each model is profiled once, beside a busy neighbour, and planned for every placement under the
same constraints as the baselines. Plans for enclaves of this machine are run: one enclave, two of
them, and two that stand on machines of their own with a slow link between them. An accelerator is
not at hand, so its times are estimated from the processor's and never measured.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import msgspec
import numpy as np

from vaultline.bench.checking import Checked, CheckRequest, check_plan
from vaultline.bench.hops import hop_rates
from vaultline.bench.links import measure_link, serve_once
from vaultline.bench.live import LivePipeline
from vaultline.bench.namespaces import Network
from vaultline.bench.profiling import ProfileRequest, profile_model
from vaultline.bench.rig import make_rig, make_trust
from vaultline.bench.stage_bench import segment_bench
from vaultline.core.cluster import Cluster, Device, Host, Link
from vaultline.core.leakage import PSNR_DB_MAX, CutLeakage, LeakageReport
from vaultline.core.limits import MIB
from vaultline.core.plan import Plan
from vaultline.core.privacy import (
    ALL,
    PRIVACY_VERSION,
    InputPrivacy,
    ModelPrivacy,
    PrivacyPolicy,
)
from vaultline.core.profile import ModelProfile
from vaultline.core.tensors import TensorSpec
from vaultline.graph.model import load_model
from vaultline.graph.structure import Model
from vaultline.graph.zoo import ZOO, build
from vaultline.owner.disclosure import Disclosure
from vaultline.owner.session import SessionSettings
from vaultline.owner.starting import Place
from vaultline.planner.baselines import compare
from vaultline.planner.plan import plan_request
from vaultline.planner.problem import Release
from vaultline.planner.request import PlanRequest
from vaultline.privacy import RESOLUTION_RULE_PX, planes_of, resolution_px
from vaultline.transport.sockets import Address

#: Of the families that Serdab's authors partition, and the one with the most weights.
TABLE = ("alexnet", "googlenet", "resnet50", "mobilenetv2", "squeezenet", "vgg19")
#: Run over the slow link as well.
LINKED = ("squeezenet", "googlenet", "resnet50")
#: ``worker`` is an untrusted plain worker on the second core: no faster than an enclave, but it can
#: be measured; accelerators proper are estimated.
PLACEMENTS = ("one", "two", "worker", "accelerator", "two+accelerator")
MEASURED = ("one", "two", "worker")
#: Usable protected memory of SGX1.
SGX1_BYTES = 93 * MIB
_HOST_BYTES = 64 << 30
_ACCELERATED = "estimated-accelerator"
#: Before the first timed chunk.
_WARM_FRAMES = 16
_LISTEN_S = 10.0
#: Quick models are timed in more rounds, for about so many seconds.
_ROUNDS_S, _REPEATS_MAX = 1.5, 99
_PROFILES = 2
_CHECK_S, _CHECK_ROUNDS_MAX = 5.0, 25


@dataclass(frozen=True, slots=True, kw_only=True)
class SerdabRequest:
    """What to plan, and what to run.

    Attributes:
        table: models by placement, over chunks of ``frames``.
        checked: models whose plan for two enclaves is run to see how well it was predicted, over
            chunks of ``check_frames``.
        linked: models that are also run over a link of ``link_bits_per_s``; needs root.
        accelerator_factor: an accelerator's time over this processor's: an estimate.
        chunk_s_max: a chunk that is predicted to take longer is run once instead of ``rounds``
            times.
    """

    zoo: Path
    table: tuple[str, ...] = TABLE
    checked: tuple[str, ...] = ZOO
    linked: tuple[str, ...] = LINKED
    frames: int = 1000
    check_frames: int = 100
    rounds: int = 3
    repeats: int = 9
    memory_bytes: int = SGX1_BYTES
    link_bits_per_s: float = 30e6
    accelerator_factor: float = 0.1
    chunk_s_max: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A model in a placement: seconds of a chunk.

    Attributes:
        plan: ours.
        baselines_s: by name, None where it has no plan; with the page cost of each mode for the
            one that pages (``one-enclave.sgx1``, ``one-enclave.crypto``).
        measured_s: of ours, median of the rounds, where it was run.
    """

    model: str
    placement: str
    plan: Plan
    predicted_s: float
    baselines_s: dict[str, float | None]
    measured_s: float | None = None

    @property
    def slower_than_serdab(self) -> bool:
        """Whether the baseline's plan is predicted to be faster than ours."""
        theirs = self.baselines_s.get("serdab")
        return theirs is not None and self.predicted_s > theirs * (1 + 1e-9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """How well a plan was predicted: ``where`` is ``local`` or the link's rate."""

    model: str
    where: str
    checked: Checked


@dataclass(slots=True, kw_only=True)
class SerdabResult:
    """Everything that was planned and run."""

    placed: list[Placed] = field(default_factory=list)
    checks: list[Predicted] = field(default_factory=list)

    def at(self, model: str, placement: str) -> Placed | None:
        """One cell of the table."""
        found = (each for each in self.placed if (each.model, each.placement) == (model, placement))
        return next(found, None)

    def speedup(self, model: str, placement: str) -> tuple[float, bool] | None:
        """Over one bounded enclave, and whether both were measured (else both are predicted)."""
        one, here = self.at(model, "one"), self.at(model, placement)
        if one is None or here is None:
            return None
        if one.measured_s is not None and here.measured_s is not None:
            return one.measured_s / here.measured_s, True
        return one.predicted_s / here.predicted_s, False

    def speedup_paged(self, model: str, placement: str, mode: str) -> float | None:
        """Predicted, over one enclave whose model is paged."""
        here = self.at(model, placement)
        paged_s = None if here is None else here.baselines_s.get(f"one-enclave.{mode}")
        return None if here is None or paged_s is None else paged_s / here.predicted_s


def figures(found: SerdabResult) -> dict[str, float]:
    """The benchmark's figures by name."""
    made: dict[str, float] = {}
    for each in found.placed:
        name = f"{each.model}.{each.placement}"
        speedup = found.speedup(each.model, each.placement)
        if speedup is not None:
            made[f"speedup.{name}"], measured = speedup
            made[f"measured.{name}"] = float(measured)
        for mode in ("sgx1", "crypto"):
            paged = found.speedup_paged(each.model, each.placement, mode)
            if paged is not None:
                made[f"speedup_paged_{mode}.{name}"] = paged
    for where in sorted({check.where for check in found.checks}):
        errors = [check.checked.chunk.error for check in found.checks if check.where == where]
        part = "" if where == "local" else f".{where}"
        made[f"error_within_10pct{part}"] = float(sum(abs(error) <= 0.10 for error in errors))
        made[f"error_max{part}"] = max(map(abs, errors))
        made[f"error_models{part}"] = float(len(errors))
    made["slower_than_serdab"] = float(sum(each.slower_than_serdab for each in found.placed))
    return made


def bench_serdab(request: SerdabRequest, progress: Callable[[str, int, int], None]) -> SerdabResult:
    """Profile, plan and run; ``progress`` is told (what, done, total)."""
    names = list(dict.fromkeys((*request.table, *request.checked, *request.linked)))
    found = SerdabResult()
    hops = hop_rates()
    with tempfile.TemporaryDirectory(prefix="vaultline-bench-") as folder:
        trust = make_trust(Path(folder))
        for number, name in enumerate(names):
            progress(name, number, len(names))
            model = load_model(build(name, request.zoo))
            repeats = _repeats(model, request.repeats)
            taken = [
                profile_model(model, ProfileRequest(repeats=repeats, neighbours=1), hops=hops)
                for _ in range(_PROFILES)
            ]
            # Whatever else runs only adds to the times: the quicker of the profiles saw less of it.
            profile = min(taken, key=lambda each: sum(b.compute_s[0][1] for b in each.blocks))
            profile = msgspec.structs.replace(
                profile, class_scale={_ACCELERATED: request.accelerator_factor}
            )
            _Subject(name, model, profile, request, trust).measure(found)
    progress("done", len(names), len(names))
    return found


def _repeats(model: Model, least: int) -> int:
    """More rounds of quick models: a moment when something else runs must not be all of them."""
    whole = segment_bench(model, 0, model.node_count)
    whole.pass_s(1)
    return max(least, min(_REPEATS_MAX, round(_ROUNDS_S / whole.pass_s(1))))


@dataclass(frozen=True, slots=True)
class _Subject:
    """One model with its profile, in all placements."""

    name: str
    model: Model
    profile: ModelProfile
    request: SerdabRequest
    trust: dict[str, Path]

    def measure(self, found: SerdabResult) -> None:
        if self.name in self.request.table:
            placed = {place: self._placed(place) for place in PLACEMENTS}
            runnable = {place: placed[place].plan for place in MEASURED}
            for place, seconds in self._chunks_s(runnable).items():
                placed[place] = replace(placed[place], measured_s=seconds)
            found.placed.extend(placed.values())
        if self.name in self.request.checked:
            plan = self._plan(here(self.request.memory_bytes, enclaves=2), Release())
            found.checks.append(Predicted(model=self.name, where="local", checked=self._run(plan)))
        if self.name in self.request.linked:
            found.checks.append(self._over_link(found))

    def _placed(self, placement: str) -> Placed:
        enclaves = 2 if placement.startswith("two") else 1
        cluster = here(
            self.request.memory_bytes,
            enclaves=enclaves,
            accelerator=placement.endswith("accelerator"),
            worker=placement == "worker",
        )
        trusted = all(unit.trust == "attested" for unit in cluster.units)
        release = Release() if trusted else released(self.profile)
        return self._compared(placement, cluster, release)

    def _compared(self, placement: str, cluster: Cluster, release: Release) -> Placed:
        request = self._asked(release)
        baselines: dict[str, float | None] = {}
        for mode in ("sgx1", "crypto"):
            for row in compare(self.profile, cluster, request, page_mode=mode):
                seconds = None if row.priced is None else row.priced.chunk_s
                paged = row.name == "one-enclave"
                baselines[f"{row.name}.{mode}" if paged else row.name] = seconds
        plan = self._plan(cluster, release)
        return Placed(
            model=self.name,
            placement=placement,
            plan=plan,
            predicted_s=plan.predicted["chunk_s"],
            baselines_s=baselines,
        )

    def _asked(self, release: Release) -> PlanRequest:
        return PlanRequest(objective="chunk", chunk_frames=self.request.frames, release=release)

    def _plan(self, cluster: Cluster, release: Release) -> Plan:
        return plan_request(self.profile, cluster, self._asked(release))

    def _run(self, plan: Plan, **how: Any) -> Checked:
        frames = self.request.check_frames
        chunk_s = plan.predicted["bottleneck_s"] * frames
        rounds = max(self.request.rounds, min(_CHECK_ROUNDS_MAX, round(_CHECK_S / chunk_s)))
        request = CheckRequest(frames=frames, rounds=rounds, **how)
        return check_plan(self.model, plan, request, self.trust)

    def _chunks_s(self, plans: Mapping[str, Plan]) -> dict[str, float]:
        """Median seconds of a chunk of each plan; they take turns."""
        frames = self.request.frames
        longest_s = max(plan.predicted["chunk_s"] for plan in plans.values())
        rounds = 1 if longest_s > self.request.chunk_s_max else self.request.rounds
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vaultline-")))
            disclosure = disclosed(self.profile)
            live = {}
            for place, plan in plans.items():
                rig = make_rig(self.model, plan, folder, self.trust, disclosure)
                live[place] = stack.enter_context(LivePipeline(rig, self.model.inputs))
                live[place].run(_WARM_FRAMES)
            times = [
                {place: pipeline.chunk_s(frames) for place, pipeline in live.items()}
                for _ in range(rounds)
            ]
        return {place: statistics.median(turn[place] for turn in times) for place in plans}

    def _over_link(self, found: SerdabResult) -> Predicted:
        """Two enclaves that stand for an edge box, the owner's, and the cloud."""
        rate = self.request.link_bits_per_s
        with Network(("edge", "cloud")) as network:
            for place in ("edge", "cloud"):
                network.shape(place, rate)
            cluster = edge_and_cloud(self.request.memory_bytes, *measured_links(network))
            placed = self._compared("edge-cloud", cluster, Release())
            found.placed.append(placed)
            settings = SessionSettings(transport="tcp", result_bind=network.address["edge"])
            places = {
                place: Place(bind=network.address[place], netns=network.netns[place])
                for place in ("edge", "cloud")
            }
            checked = network.call(
                "edge", lambda: self._run(placed.plan, settings=settings, places=places)
            )
        return Predicted(model=self.name, where=f"{rate / 1e6:g}mbit", checked=checked)


def here(
    memory_bytes: int, *, enclaves: int, accelerator: bool = False, worker: bool = False
) -> Cluster:
    """This machine: a core for each simulated enclave and for a plain worker; and an accelerator
    that is only planned."""
    devices = [
        Device(
            name="enclave",
            host="local",
            kind="simulated",
            trust="attested",
            memory_bytes=memory_bytes,
            cores=1,
            count=enclaves,
        )
    ]
    untrusted = [("accelerator", _ACCELERATED)] * accelerator + [("worker", "")] * worker
    devices += [
        Device(
            name=name,
            host="local",
            kind="accelerator",
            trust="none",
            memory_bytes=_HOST_BYTES,
            cores=1,
            speed_class=speed,
        )
        for name, speed in untrusted
    ]
    host = Host(name="local", cores=2, memory_bytes=_HOST_BYTES)
    return Cluster(owner="local", hosts=(host,), devices=tuple(devices), links=())


def edge_and_cloud(memory_bytes: int, there: Link, back: Link) -> Cluster:
    """One enclave on each side of a link; the owner is at the edge."""
    hosts = tuple(Host(name=name, cores=1, memory_bytes=_HOST_BYTES) for name in ("edge", "cloud"))
    devices = tuple(
        Device(
            name=f"{host.name}-enclave",
            host=host.name,
            kind="simulated",
            trust="attested",
            memory_bytes=memory_bytes,
            cores=1,
        )
        for host in hosts
    )
    return Cluster(owner="edge", hosts=hosts, devices=devices, links=(there, back))


def measured_links(network: Network) -> tuple[Link, Link]:
    """Both directions between edge and cloud, measured: a shaped wire also carries headers."""
    listening: SimpleQueue[Address] = SimpleQueue()
    address = Address("tcp", network.address["cloud"], 0)
    serving = threading.Thread(
        target=network.call,
        args=("cloud", lambda: serve_once(address, on_listening=listening.put)),
    )
    serving.start()
    where = listening.get(timeout=_LISTEN_S)
    rate = network.call("edge", lambda: measure_link(where))
    serving.join()
    return (
        Link(source="edge", target="cloud", bytes_per_s=rate.bytes_per_s, latency_s=rate.latency_s),
        Link(
            source="cloud",
            target="edge",
            bytes_per_s=rate.back_bytes_per_s,
            latency_s=rate.latency_s,
        ),
    )


def released(profile: ModelProfile) -> Release:
    """What Serdab's rule releases: tensors of small resolution, and all weights."""
    pixels = tuple(float(_pixels(tensors)) for tensors in profile.crossing)
    return Release(
        cuts=tuple(value <= RESOLUTION_RULE_PX for value in pixels),
        blocks=(True,) * len(profile.blocks),
        leakage=pixels,
        metric="resolution",
        limit=float(RESOLUTION_RULE_PX),
    )


def disclosed(profile: ModelProfile) -> Disclosure:
    """The owner's side of the same rule. Attacks were not run: their scores count as the worst."""
    cuts = tuple(
        CutLeakage(
            position=position,
            tensors=tuple(spec.name for spec in tensors),
            resolution_px=_pixels(tensors),
            similarity=1.0,
            reconstruction=1.0,
            psnr_db=PSNR_DB_MAX,
            revealing="",
        )
        for position, tensors in zip(profile.positions, profile.crossing, strict=True)
    )
    report = LeakageReport(
        model_name=profile.model_name,
        model_digest=profile.model_digest,
        images_digest="0" * 64,
        images=1,
        decoder="ridge",
        recorded_on=profile.recorded_on,
        positions=profile.positions,
        cuts=cuts,
    )
    policy = PrivacyPolicy(
        version=PRIVACY_VERSION,
        input=InputPrivacy(metric="resolution", limit=float(RESOLUTION_RULE_PX)),
        model=ModelPrivacy(disclose=(ALL,)),
    )
    return Disclosure(policy=policy, report=report)


def _pixels(tensors: tuple[TensorSpec, ...]) -> int:
    """The largest spatial side of what crosses a cut; the zoo's inputs are square."""
    stacks = (planes_of(np.zeros(spec.shape, np.float32), 1.0) for spec in tensors)
    return resolution_px([planes for found in stacks for planes in found])
