"""``vaultline plan``: the best partition of a profiled model over a cluster."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vaultline.cli.common import JsonFlag, note, print_json, results, table
from vaultline.cli.files import check_target, load_cluster, load_profile, parse_shapes, write_file
from vaultline.cli.profile import ShapeOption
from vaultline.core.errors import InputError
from vaultline.core.plan import Objective, Plan, write_plan
from vaultline.core.units import format_bytes
from vaultline.planner import PlanRequest, parse_partition, plan_request
from vaultline.planner.explain import Explanation, explain


def register(app: typer.Typer) -> None:
    """Add the verb."""
    epilog = "Example: vaultline plan model.profile.json --cluster cluster.yaml -o plan.json"
    app.command("plan", epilog=epilog)(plan)


def plan(
    profile: Annotated[Path, typer.Argument(help="The model's profile.")],
    cluster: Annotated[Path, typer.Option(help="The cluster file (YAML).")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Where to write the plan.")],
    objective: Annotated[Objective, typer.Option(help="What to minimise.")] = "chunk",
    chunk_frames: Annotated[int, typer.Option(min=1, help="Frames of a chunk of video.")] = 100,
    stages: Annotated[int | None, typer.Option(min=1, help="Exactly so many stages.")] = None,
    device: Annotated[
        list[str] | None, typer.Option(help="Use only this device. Repeatable.")
    ] = None,
    partition: Annotated[
        str | None, typer.Option(help="Your own cuts: 0:12@edge,12:40@cloud.")
    ] = None,
    input_shape: ShapeOption = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the plan into this PNG.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Find the exact best contiguous partition of a model over a cluster's devices.

    The search is exact over the cuts of the model's own topological order; other orders are not
    searched.
    """
    for target in (out, plot):
        if target is not None:
            check_target(target, "the plan")
    if plot is not None and plot.suffix.lower() != ".png":
        raise InputError("the plot can only be a PNG", got=str(plot), expected="a name in .png")
    measured = load_profile(profile)
    machines = load_cluster(cluster)
    for warning in machines.warnings():
        note(f"warning: {warning}")
    request = PlanRequest(
        objective=objective,
        chunk_frames=chunk_frames,
        devices=tuple(device) if device else None,
        stages=stages,
        partition=None if partition is None else parse_partition(partition),
        input_shapes=parse_shapes(input_shape or []),
    )
    found = plan_request(measured, machines, request)
    explained = explain(found, measured, machines, request)
    write_file(out, write_plan(found), "the plan")
    if plot is not None:
        from vaultline.cli.pictures import draw_plan  # takes a moment to import

        draw_plan(found, measured, plot)
    if as_json:
        print_json({"plan_digest": found.digest.hex(), "explanation": asdict(explained)})
    else:
        show_explanation(found, explained, out)


def show_explanation(found: Plan, explained: Explanation, out: Path) -> None:
    """The plan in a table, and why it is what it is."""
    rows = [
        (
            str(number),
            f"{stage.device}@{stage.host}",
            f"{stage.first}:{stage.last}",
            f"{stage.predicted_s * 1e3:.2f}",
            f"{stage.share:.0%}",
            format_bytes(stage.weight_bytes),
            f"{format_bytes(stage.need_bytes)} of {format_bytes(stage.memory_bytes)}",
            f"{stage.mode}, {stage.frames_per_pass} a pass",
            format_bytes(stage.in_bytes),
            format_bytes(stage.out_bytes),
        )
        for number, stage in enumerate(explained.stages)
    ]
    columns = [
        "stage",
        "device",
        "nodes",
        "ms",
        "busy",
        "weights",
        "memory",
        "weights are",
        "bytes in",
        "bytes out",
    ]
    console = results()
    console.print(table(f"{found.model_name}, best for {explained.objective}", columns, rows))
    console.print(
        f"latency {explained.latency_s * 1e3:.2f} ms, bottleneck "
        f"{explained.bottleneck_s * 1e3:.2f} ms ({explained.bottleneck}), "
        f"{found.chunk_frames} frames in {explained.chunk_s:.3f} s, "
        f"balance {explained.balance:.0%}"
    )
    if explained.runner_up is not None:
        rival = explained.runner_up
        console.print(
            f"next best: {' then '.join(rival.devices)} cut at "
            f"{', '.join(map(str, rival.cuts)) or 'no node'}: {rival.ratio:.2f}x; {rival.reason}"
        )
    console.print(f"wrote {out} (digest {found.digest.hex()[:16]}...)")
