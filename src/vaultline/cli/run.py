"""``vaultline run``: a video through the sealed stages of a plan."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import TextColumn
from rich.table import Table

from vaultline.attest.linkwire import FRAMES_PER_LINK_MAX
from vaultline.cli.common import JsonFlag, device_names, note, print_json, progress, results, table
from vaultline.cli.files import load_cluster, load_plan, read_text
from vaultline.cli.options import (
    CollateralOption,
    KekOption,
    MetricsOption,
    PlatformOption,
    PrivacyOption,
    SimulatedOption,
)
from vaultline.cli.run_metrics import StageCollector, serving
from vaultline.cli.running import (
    RunRequest,
    RunSummary,
    Trust,
    check_image_model,
    run_video,
    stage_times,
    stoppable,
)
from vaultline.core.errors import InputError
from vaultline.core.limits import MIB
from vaultline.core.plan import Plan
from vaultline.owner.disclosure import load_disclosure
from vaultline.owner.frames import ResultFrame
from vaultline.owner.keyfile import load_kek, read_keyfile
from vaultline.owner.receipts import FRAMES_PER_LINK
from vaultline.owner.session import SessionSettings
from vaultline.owner.starting import Place, Transport, merge_places, parse_place, places_of
from vaultline.video.preprocess import Preprocessor, default_preprocessing, load_preprocessing
from vaultline.video.sinks import JsonLinesSink
from vaultline.video.sources import open_source

EXAMPLE = (
    "Example: vaultline run --plan plan.json --vault model.vault --key owner.key "
    "--policy trust/policy.yaml --allow-simulated --source video.mp4 --sink results.jsonl"
)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("run", epilog=EXAMPLE)(run)


def run(
    plan: Annotated[Path, typer.Option(help="The plan.")],
    vault: Annotated[Path, typer.Option(help="The model, sealed for this plan.")],
    key: Annotated[Path, typer.Option(help="The owner's key file.")],
    policy: Annotated[Path, typer.Option(help="Which evidence is accepted (YAML).")],
    source: Annotated[str, typer.Option(help="Video file, folder of images, or rtsp://.")],
    sink: Annotated[Path, typer.Option(help="Where results go, one JSON line per frame.")],
    kek: KekOption = None,
    collateral: CollateralOption = None,
    platform: PlatformOption = None,
    allow_simulated: SimulatedOption = False,
    privacy: PrivacyOption = None,
    leakage: Annotated[
        Path | None, typer.Option(help="Leakage report; without it no tensor is released.")
    ] = None,
    accelerator_key: Annotated[
        Path | None,
        typer.Option(help="Accelerator's key; accelerator.json beside the policy if unset."),
    ] = None,
    preprocess: Annotated[
        Path | None, typer.Option(help="How frames become the model's input (YAML).")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Names of the outputs' values, one per line.")
    ] = None,
    topk: Annotated[int, typer.Option(min=0, help="Largest values of each output.")] = 5,
    raw: Annotated[Path | None, typer.Option(help="Folder for raw output tensors.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many frames.")] = None,
    cluster: Annotated[
        Path | None,
        typer.Option(
            help="Cluster file: how workers are started on the plan's hosts (`gramine`, `launch`), "
            "and their addresses."
        ),
    ] = None,
    transport: Annotated[
        Transport | None,
        typer.Option(help="Sockets between places; unix unless a worker can't use those."),
    ] = None,
    result_bind: Annotated[
        str, typer.Option(help="Address on which the owner takes results, for tcp.")
    ] = "127.0.0.1",
    place: Annotated[
        list[str] | None,
        typer.Option(help="HOST=ADDRESS[%NETNS]: where a host of the plan listens, for tcp."),
    ] = None,
    stall: Annotated[
        float, typer.Option(min=0.1, help="Seconds to wait for the next result.")
    ] = 60.0,
    receipts: Annotated[
        Path | None,
        typer.Option(help="New folder for what the enclaves sign: see `vaultline receipt`."),
    ] = None,
    frames_per_link: Annotated[
        int, typer.Option(min=1, max=FRAMES_PER_LINK_MAX, help="Frames of one signature.")
    ] = FRAMES_PER_LINK,
    metrics: MetricsOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Attest the enclaves of a plan, release their keys, and send frames through them."""
    planned = load_plan(plan)
    check_image_model(planned)
    keys = read_keyfile(key, load_kek(kek))
    trust = Trust(
        policy=policy,
        collateral=collateral,
        platform=platform,
        allow_simulated=allow_simulated,
        accelerator_key=accelerator_key,
    )
    request = RunRequest(
        plan=planned,
        vault=vault,
        keys=keys,
        trust=trust,
        places=_places(planned, cluster, place or []),
        disclosure=load_disclosure(privacy, leakage),
        transport=transport,
        settings=SessionSettings(result_bind=result_bind, stall_s=stall),
        receipts=receipts,
        frames_per_link=frames_per_link,
    )
    names = None if labels is None else _labels(labels, planned)
    spec = planned.stages[0].inputs[0]
    how = default_preprocessing(spec) if preprocess is None else load_preprocessing(preprocess)
    note(f"preprocessing: {how.describe()}")
    collector = StageCollector(planned)
    with (
        stoppable(),
        nullcontext() if metrics is None else serving(metrics, collector) as served,
        open_source(source, limit=limit) as frames,
    ):
        if served is not None:
            note(f"metrics: {served}")
        preprocessor = Preprocessor(how, spec)
        with JsonLinesSink(sink, topk=topk, raw_dir=raw, labels=names) as lines:
            bar = FrameBar(planned, frames.frame_count)
            with bar.progress:
                summary = run_video(
                    request, frames, preprocessor, lines, bar.advance, collector.watch
                )
    if as_json:
        print_json(asdict(summary))
    else:
        show_summary(summary, sink)


def _labels(path: Path, plan: Plan) -> list[str]:
    """Names of an output's values.

    Raises:
        InputError: unreadable, or there is no output of as many values.
    """
    names = read_text(path, "the labels").splitlines()
    sizes = sorted({prod(spec.shape) for spec in plan.stages[-1].outputs})
    if len(names) not in sizes:
        raise InputError(
            f"{path}: not the labels of this model's outputs",
            got=f"{len(names)} lines",
            expected=f"{' or '.join(map(str, sizes))}: the name of a value on each line",
        )
    return names


def _places(plan: Plan, cluster: Path | None, stated: list[str]) -> dict[str, Place]:
    """Of the plan's hosts, by the cluster file; addresses rather by --place."""
    hosts = {device.host for stage in plan.stages for device in stage.devices}
    known = {} if cluster is None else places_of(load_cluster(cluster))
    known = {host: place for host, place in known.items() if host in hosts}
    return merge_places(known, dict(parse_place(text) for text in stated))


class FrameBar:
    """Frames, frames per second and each stage's compute time, live on a terminal."""

    def __init__(self, plan: Plan, frames: int | None) -> None:
        self._names = [device_names(stage) for stage in plan.stages]
        self.progress = progress(TextColumn("{task.fields[stages]}"))
        self._task = self.progress.add_task("running", total=frames, stages="")

    def advance(self, result: ResultFrame) -> None:
        """One more result."""
        times = stage_times(result)
        text = "  ".join(
            f"{name} {row.compute_s * 1e3:.1f} ms"
            for name, row in zip(self._names, times, strict=True)
        )
        self.progress.update(self._task, advance=1, stages=text)


def memory_table(summary: RunSummary) -> Table:
    """What each worker used of its protected memory, and what for."""
    kinds = ("resident", "tile", "activation", "io", "engine")
    rows = [
        (
            f"{row['stage']} ({row['device']})",
            *(f"{row['peak_bytes'].get(kind, 0) / MIB:.1f}" for kind in kinds),
            f"{row['held_bytes'] / MIB:.1f}",
            f"{row['budget_bytes'] / MIB:.1f}",
        )
        for row in summary.memory
    ]
    columns = ("stage", "weights kept", "streamed", "activations", "i/o", "engine", "held", "of")
    return table("protected memory, MiB (at most)", columns, rows)


def show_summary(summary: RunSummary, sink: Path) -> None:
    """The run in a table."""
    console = results()
    rows = [
        (
            f"{row['stage']} ({row['device']})",
            f"{row['nodes'][0]}:{row['nodes'][1]}",
            f"{row['open_s'] * 1e3:.3f}",
            f"{row['wait_s'] * 1e3:.3f}",
            f"{row['compute_s'] * 1e3:.3f}",
            f"{row['seal_s'] * 1e3:.3f}",
        )
        for row in summary.stages
    ]
    columns = ("stage", "nodes", "open ms", "wait ms", "compute ms", "seal ms")
    title = (
        f"{summary.frames_out} frames, {summary.fps:.1f} frames/s, "
        f"{summary.latency_s * 1e3:.1f} ms latency (median)"
    )
    console.print(table(title, columns, rows))
    if summary.memory:
        console.print(memory_table(summary))
    console.print(f"enclaves: {summary.attested}", style="yellow" if summary.unsafe else None)
    if summary.unverified:
        stages = ", ".join(map(str, summary.unverified))
        devices = ", ".join(summary.untrusted_devices)
        console.print(
            f"UNVERIFIED: stage {stages} ran on {devices}: nothing vouches for these results",
            style="yellow",
        )
    console.print(f"results: {sink}", markup=False)
    if summary.receipt:
        console.print(f"receipt: {summary.receipt}, {summary.links} links", markup=False)
        if summary.links_refused:
            text = f"{summary.links_refused} links that the host brought are not by our enclaves"
            console.print(text, style="yellow")
