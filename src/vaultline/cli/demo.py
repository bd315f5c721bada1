"""``vaultline demo``: a video of handwritten digits through two simulated enclaves."""

from __future__ import annotations

import datetime
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import vaultline
from vaultline.bench.native import NativeModel, top_index
from vaultline.bench.profiling import ProfileRequest, profile_model
from vaultline.bench.rig import POLICY_FILE, Rig, local_cluster, make_rig
from vaultline.channel.records import OVERHEAD_BYTES
from vaultline.cli.common import JsonFlag, note, print_json, results, table
from vaultline.cli.files import read_file
from vaultline.cli.run import FrameBar
from vaultline.cli.running import RunRequest, RunSummary, Trust, run_video, stoppable
from vaultline.core.errors import InputError
from vaultline.core.frames import FrameLayout
from vaultline.core.limits import MIB, RECORD_FRAGMENT_BYTES
from vaultline.core.plan import Plan, write_plan
from vaultline.core.profile import ModelProfile, write_profile
from vaultline.core.serde import Struct, from_json
from vaultline.core.units import format_bytes
from vaultline.graph.model import load_model
from vaultline.owner.accelerator import ACCELERATOR_FILE
from vaultline.owner.devroot import DEVROOT_FILES
from vaultline.owner.frames import ResultFrame
from vaultline.planner.plan import make_plan
from vaultline.video.preprocess import Preprocessor, load_preprocessing
from vaultline.video.sinks import JsonLinesSink
from vaultline.video.sources import open_source

#: The usable enclave page cache of an SGX1 processor: what the design is made for.
_ENCLAVE_BYTES = 93 * MIB
_CHUNK_FRAMES = 900


class _Labels(Struct, frozen=True):
    frames_per_digit: int
    labels: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Digits:
    """The example's files."""

    model: Path
    video: Path
    preprocess: Path
    labels: tuple[int, ...]


@dataclass(slots=True)
class _Seen:
    """What came back: predictions for accuracy, times for the picture."""

    predictions: list[int]
    timeline: list[dict[str, Any]]

    def add(self, result: ResultFrame) -> None:
        (scores,) = result.outputs.values()
        self.predictions.append(top_index(scores))
        self.timeline.append(
            {
                "frame": result.index,
                "stages": [(times.started_ns, times.finished_ns) for times in result.times],
            }
        )


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("demo", epilog="Example: vaultline demo --out out/demo")(demo)


def demo(
    out: Annotated[Path, typer.Option(help="Where results and pictures go.")] = Path("out/demo"),
    as_json: JsonFlag = False,
) -> None:
    """Profile, plan, seal, attest and run a small network over two simulated enclaves.

    A real video of handwritten digits; accuracy is counted against its labels and against the
    same network in one piece.
    """
    digits = _find_digits()
    out.mkdir(parents=True, exist_ok=True)
    note("profiling the network and planning for two enclaves")
    model = load_model(digits.model)
    profile = profile_model(model, _profile_request())
    plan = make_plan(
        profile,
        local_cluster(2, memory_bytes=_ENCLAVE_BYTES),
        objective="chunk",
        chunk_frames=_CHUNK_FRAMES,
        stages=2,
    )
    (out / "profile.json").write_bytes(write_profile(profile))
    (out / "plan.json").write_bytes(write_plan(plan))
    note("compiling and sealing two stages")
    with stoppable():
        _clear_earlier(out, plan)
        rig = make_rig(model, plan, out)
        seen = _Seen([], [])
        summary = _run(rig, digits, out, seen)
    unsplit = _unsplit(digits, plan)
    figures = _figures(digits, seen, unsplit, summary)
    pictures = _draw(plan, profile, seen, out)
    if as_json:
        print_json(figures | {"summary": asdict(summary), "pictures": pictures})
        return
    _show(plan, figures, summary, out)


def _profile_request() -> ProfileRequest:
    now = datetime.datetime.now(datetime.UTC)
    return ProfileRequest(
        command="vaultline demo", date=now.isoformat(timespec="seconds"), repeats=15
    )


def _clear_earlier(out: Path, plan: Plan) -> None:
    """Remove an earlier demo's root, whose policy names old code, and its vaults; nothing else."""
    folder = out / "trust"
    for name in (*DEVROOT_FILES, ACCELERATOR_FILE, POLICY_FILE):
        (folder / name).unlink(missing_ok=True)
    for old in out.glob(f"{plan.model_name}-*.vault"):
        old.unlink()


def _find_digits() -> _Digits:
    folder = Path(vaultline.__file__).parents[2] / "examples" / "digits"
    if not (folder / "digits.onnx").is_file():
        raise InputError(
            "the example is not there",
            got=str(folder),
            expected="examples/digits of the repository",
            remedy="run the demo from a clone of the repository: make demo",
        )
    labels = from_json(read_file(folder / "labels.json", "the labels"), _Labels, what="the labels")
    return _Digits(
        model=folder / "digits.onnx",
        video=folder / "digits.mp4",
        preprocess=folder / "digits.preprocess.yaml",
        labels=labels.labels,
    )


def _run(rig: Rig, digits: _Digits, out: Path, seen: _Seen) -> RunSummary:
    plan = rig.plan
    trust = Trust(
        policy=rig.trust["policy"],
        collateral=rig.trust["collateral"],
        platform=rig.trust["platform"],
        allow_simulated=True,
    )
    request = RunRequest(plan=plan, vault=rig.vault, keys=rig.keys, trust=trust)
    preprocessor = Preprocessor(load_preprocessing(digits.preprocess), plan.stages[0].inputs[0])
    with (
        open_source(str(digits.video)) as source,
        JsonLinesSink(out / "results.jsonl", topk=3) as sink,
    ):
        bar = FrameBar(plan, source.frame_count)

        def on_result(result: ResultFrame) -> None:
            seen.add(result)
            bar.advance(result)

        with bar.progress:
            return run_video(request, source, preprocessor, sink, on_result)


def _unsplit(digits: _Digits, plan: Plan) -> list[int]:
    """Predictions of the network in one piece, in the engine alone, on the same frames."""
    note("running the network in one piece, for comparison")
    native = NativeModel(digits.model)
    preprocessor = Preprocessor(load_preprocessing(digits.preprocess), plan.stages[0].inputs[0])
    with open_source(str(digits.video)) as source:
        return [top_index(native.run([preprocessor(frame.image)])[0]) for frame in source]


def _figures(
    digits: _Digits, seen: _Seen, unsplit: list[int], summary: RunSummary
) -> dict[str, Any]:
    def accuracy(predictions: list[int]) -> float:
        right = sum(a == b for a, b in zip(predictions, digits.labels, strict=False))
        return right / len(digits.labels)

    return {
        "accuracy": accuracy(seen.predictions),
        "accuracy_unsplit": accuracy(unsplit),
        "same_predictions": seen.predictions == unsplit,
        "frames_in": summary.frames_in,
        "frames_out": summary.frames_out,
        "fps": summary.fps,
    }


def _draw(plan: Plan, profile: ModelProfile, seen: _Seen, out: Path) -> list[str]:
    from vaultline.cli.pictures import draw_timeline  # takes a moment to import
    from vaultline.cli.plan_picture import draw_plan

    draw_plan(plan, profile, out / "plan.png")
    # From the middle of the run, where the pipeline is full.
    middle = seen.timeline[len(seen.timeline) // 2 :]
    devices = [[device.name for device in stage.devices] for stage in plan.stages]
    draw_timeline(middle, out / "timeline.png", devices)
    return [str(out / "plan.png"), str(out / "timeline.png")]


def _show(plan: Plan, figures: dict[str, Any], summary: RunSummary, out: Path) -> None:
    console = results()
    console.print(
        f"accuracy {figures['accuracy']:.2%} (in one piece: {figures['accuracy_unsplit']:.2%}); "
        f"{figures['frames_in']} frames in, {figures['frames_out']} out, "
        f"{figures['fps']:.0f} frames/s\n"
    )
    rows = [
        (
            f"{row['stage']} on {row['device']}",
            f"{row['nodes'][0]}:{row['nodes'][1]}",
            f"{row['open_s'] * 1e3:.3f}",
            f"{row['compute_s'] * 1e3:.3f}",
            f"{row['seal_s'] * 1e3:.3f}",
        )
        for row in summary.stages
    ]
    columns = ("stage", "nodes", "open ms", "compute ms", "seal ms")
    console.print(table("time per frame (median)", columns, rows))
    console.print()
    console.print(table("what each place saw", ("place", "saw"), _places(plan, figures)))
    console.print(f"\nenclaves: {summary.attested}")
    console.print(
        f"results and pictures are in {out}: results.jsonl, plan.png, timeline.png", markup=False
    )
    console.print(_NEXT, soft_wrap=True)


def _places(plan: Plan, figures: dict[str, Any]) -> list[tuple[str, str]]:
    """By place, what was there in the clear; the host's bytes follow from the hops' sizes."""
    stages, frames = len(plan.stages), figures["frames_out"]
    hops = [plan.stages[0].inputs, *(stage.outputs for stage in plan.stages)]
    sealed = 0
    for specs in hops:
        message = FrameLayout(specs, stages).message_bytes
        records = -(-message // RECORD_FRAGMENT_BYTES)
        sealed += frames * (message + records * OVERHEAD_BYTES) + OVERHEAD_BYTES
    rows = [("owner", f"{frames} frames and their results")]
    for number, stage in enumerate(plan.stages):
        tensors = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in stage.inputs)
        rows.append((f"enclave {number}", f"its weights, and {tensors}"))
    rows.append(("host", f"{format_bytes(sealed)} of sealed records, sizes and times; no key"))
    return rows


_NEXT = """
Next, your own model and camera:
  vaultline policy dev --out trust
  vaultline profile model.onnx -o model.profile.json
  vaultline plan model.profile.json --cluster examples/clusters/one-box.yaml -o plan.json
  vaultline seal model.onnx --plan plan.json -o model.vault
  vaultline run --plan plan.json --vault model.vault --key owner.key --policy trust/policy.yaml \\
      --allow-simulated --source rtsp://camera/stream --sink results.jsonl"""
