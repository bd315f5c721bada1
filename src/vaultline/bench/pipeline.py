"""Two enclaves of one core each against the plain engine on the same two cores."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vaultline.bench.live import LivePipeline, period_s, stage_work
from vaultline.bench.native import NativeModel
from vaultline.bench.native_process import NativeProcess
from vaultline.bench.noise import Array
from vaultline.bench.profiling import ProfileRequest, profile_model
from vaultline.bench.rig import local_cluster, make_rig, make_trust
from vaultline.bench.tuning import Measured, tune
from vaultline.core.plan import Plan
from vaultline.graph.model import load_model, save
from vaultline.graph.rewrite import rewrite
from vaultline.graph.structure import Model
from vaultline.graph.zoo import build
from vaultline.owner.frames import ResultFrame
from vaultline.planner.plan import make_plan

#: Those that the geometric mean is about; the others are reported beside them.
HEADLINE = ("resnet50", "googlenet", "densenet121", "mobilenetv2", "vgg19", "alexnet")


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineRequest:
    """What to measure, and for how long."""

    models: tuple[str, ...]
    zoo: Path
    rounds: int = 5
    seconds: float = 2.0
    profile_repeats: int = 9
    tuning_turns: int = 4
    tuning_s: float = 1.5


@dataclass(slots=True)
class Round:
    """Frames per second of each alternative in one round, measured one after the other."""

    one_native: float = 0.0
    two_native: float = 0.0
    two_untouched: float = 0.0
    vaultline: float = 0.0


@dataclass(slots=True, kw_only=True)
class ModelResult:
    """Medians over rounds, and where the time of the pipeline goes (ms per frame)."""

    model: str
    frames: int
    rounds: list[Round]
    max_relative_error: float
    parts: dict[str, float] = field(default_factory=dict)
    stages: list[dict[str, Any]] = field(default_factory=list)

    def median(self, name: str) -> float:
        """Median frames per second of an alternative."""
        return float(statistics.median(getattr(turn, name) for turn in self.rounds))

    def ratio(self, below: str) -> float:
        """Median over rounds of Vaultline's rate over another's in the same round."""
        ratios = [turn.vaultline / getattr(turn, below) for turn in self.rounds]
        return float(statistics.median(ratios))


def bench_pipeline(
    request: PipelineRequest, progress: Callable[[str, int, int], None]
) -> list[ModelResult]:
    """Measure every model; ``progress`` is told (what, done, total)."""
    found = []
    with tempfile.TemporaryDirectory(prefix="vaultline-bench-") as folder:
        trust = make_trust(Path(folder) / "trust")
        for number, name in enumerate(request.models):
            progress(name, number, len(request.models))
            own = Path(folder) / name
            own.mkdir()
            found.append(_bench_model(name, request, own, trust))
    progress("done", len(request.models), len(request.models))
    return found


def figures(found: Sequence[ModelResult]) -> dict[str, float]:
    """The benchmark's figures by name."""
    ratios = {result.model: result.ratio("two_native") for result in found}
    headline = [ratios[name] for name in HEADLINE if name in ratios]
    made = {f"ratio.{name}": ratio for name, ratio in ratios.items()}
    for result in found:
        made[f"ratio_untouched.{result.model}"] = result.ratio("two_untouched")
        made[f"fps.{result.model}"] = result.median("vaultline")
    made["ratio_min"] = min(ratios.values())
    if headline:
        made["ratio_geomean"] = statistics.geometric_mean(headline)
        made["ratio_geomean_models"] = float(len(headline))
    return made


def _bench_model(
    name: str, request: PipelineRequest, folder: Path, trust: dict[str, Path]
) -> ModelResult:
    path = build(name, request.zoo)
    model = load_model(path)
    rewritten = folder / "rewritten.onnx"
    save(rewrite(model), rewritten)
    plan = _tuned_plan(model, request, folder, trust)
    rig = make_rig(model, plan, folder, trust)
    with ExitStack() as stack:
        specs = model.inputs
        cores = sorted(os.sched_getaffinity(0))[:2]
        native = [stack.enter_context(NativeProcess(rewritten, core, specs)) for core in cores]
        untouched = [stack.enter_context(NativeProcess(path, core, specs)) for core in cores]
        pipeline = stack.enter_context(LivePipeline(rig, specs))
        frames = max(12, round(request.seconds / native[0].frame_s()))
        rounds = []
        for _ in range(request.rounds):
            one, two = _rate(native[:1], frames), _rate(native, frames)
            plain = _rate(untouched, frames)
            timed = pipeline.full(2 * frames)
            rounds.append(Round(one, two, plain, 1.0 / period_s(timed)))
        parts, stages = _parts(timed, plan)
        error = _error(NativeModel(path), pipeline)
    return ModelResult(
        model=name,
        frames=frames,
        rounds=rounds,
        max_relative_error=error,
        parts=parts,
        stages=stages,
    )


def _tuned_plan(
    model: Model, request: PipelineRequest, folder: Path, trust: dict[str, Path]
) -> Plan:
    """The planner's choice for throughput, memory unlimited, corrected by running it."""
    profile = profile_model(model, ProfileRequest(repeats=request.profile_repeats, neighbours=1))

    def measure(plan: Plan) -> Measured:
        rig = make_rig(model, plan, folder, trust)
        with LivePipeline(rig, model.inputs) as pipeline:
            frames = max(12, round(request.tuning_s / plan.predicted["bottleneck_s"]))
            timed = pipeline.full(frames)
        rig.vault.unlink()
        work = [stage_work(timed, number) for number in range(len(plan.stages))]
        return Measured(
            plan=plan,
            fps=1.0 / period_s(timed),
            compute_s=tuple(each.compute_ms / 1e3 for each in work),
        )

    cluster = local_cluster(2)
    return tune(
        profile,
        lambda found: make_plan(found, cluster, objective="throughput", stages=2),
        measure,
        turns=request.tuning_turns,
    ).plan


def _rate(natives: Sequence[NativeProcess], frames: int) -> float:
    """Frames per second of sessions that run at the same time, each so many frames."""
    for native in natives:
        native.start(frames)
    return sum(frames / seconds for seconds in [native.seconds() for native in natives])


def _parts(
    timed: Sequence[ResultFrame], plan: Plan
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Where the time of a round went, in milliseconds per frame."""
    stages: list[dict[str, Any]] = [
        {
            "nodes": [stage.first, stage.last],
            **asdict(stage_work(timed, number)),
            "predicted_ms": stage.predicted_s * 1e3,
        }
        for number, stage in enumerate(plan.stages)
    ]
    busy = [stage["compute_ms"] for stage in stages]
    return {
        "period_ms": period_s(timed) * 1e3,
        "compute_ms": sum(busy),
        "imbalance_ms": max(busy) - sum(busy) / len(busy),
        "encryption_ms": sum(stage["open_ms"] + stage["seal_ms"] for stage in stages),
        "socket_ms": sum(stage["socket_ms"] for stage in stages),
    }, stages


def _error(native: NativeModel, pipeline: LivePipeline) -> float:
    """Largest difference from the untouched model, relative to its largest output."""
    worst = 0.0
    for result in pipeline.run(len(pipeline.inputs)):
        frame = pipeline.inputs[result.index % len(pipeline.inputs)]
        for name, expected in zip(native.outputs, native.run(frame), strict=True):
            worst = max(worst, _relative(result.outputs[name], expected))
    return worst


def _relative(got: Array, expected: Array) -> float:
    scale = float(np.abs(expected).max()) or 1.0
    return float(np.abs(got - expected).max()) / scale
