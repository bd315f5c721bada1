"""``vaultline plan``: the best partition of a profiled model over a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vaultline.cli.checking import check_document, run_check, show_check
from vaultline.cli.common import JsonFlag, note, print_json, results
from vaultline.cli.files import (
    check_picture,
    check_target,
    load_cluster,
    load_profile,
    parse_shapes,
    write_file,
)
from vaultline.cli.plan_release import (
    check_parts,
    load_release,
    release_document,
    release_line,
    with_release,
)
from vaultline.cli.plan_report import (
    comparison_document,
    plan_document,
    show_comparison,
    show_plan,
)
from vaultline.cli.profile import ShapeOption
from vaultline.core.errors import InfeasibleError
from vaultline.core.plan import Objective, Plan, write_plan
from vaultline.core.program import PageMode
from vaultline.owner.disclosure import load_disclosure
from vaultline.planner import PlanRequest, Settings, explain, parse_partition, plan_request
from vaultline.planner.baselines import Row, as_asked
from vaultline.planner.baselines import compare as compare_baselines


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
    replicas_max: Annotated[
        int, typer.Option(min=1, help="Most devices that may run one stage in turn.")
    ] = Settings().replicas_max,
    privacy: Annotated[
        Path | None, typer.Option(help="Privacy policy (YAML): what untrusted devices may see.")
    ] = None,
    leakage: Annotated[
        Path | None, typer.Option(help="Leakage report that the policy's limit is held against.")
    ] = None,
    input_shape: ShapeOption = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Tabulate what others would do beside it.")
    ] = False,
    page_cost: Annotated[
        PageMode,
        typer.Option(help="A swapped page in the comparison: cipher work measured here, or SGX1."),
    ] = "crypto",
    plot: Annotated[Path | None, typer.Option(help="Draw the plan (.png or .svg).")] = None,
    check: Annotated[
        Path | None,
        typer.Option(help="Run the plan on this machine with this model (ONNX), and compare."),
    ] = None,
    check_rounds: Annotated[int, typer.Option(min=1, help="Chunks that a check runs.")] = 3,
    plot_compare: Annotated[
        Path | None, typer.Option(help="Draw the comparison (.png or .svg).")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Find the exact best contiguous partition of a model over a cluster's devices.

    The search is exact over the cuts of the model's own topological order; other orders are not
    searched.
    """
    _check_targets(out, plot, plot_compare)
    measured = load_profile(profile)
    machines = load_cluster(cluster)
    for warning in machines.warnings():
        note(f"warning: {warning}")
    release = load_release(measured, privacy, leakage)
    request = PlanRequest(
        objective=objective,
        chunk_frames=chunk_frames,
        devices=tuple(device) if device else None,
        stages=stages,
        partition=None if partition is None else parse_partition(partition),
        input_shapes=parse_shapes(input_shape or []),
        settings=Settings(replicas_max=replicas_max),
        release=release,
    )
    if request.partition is not None:
        check_parts(request.partition, release, measured, machines)
    rows: tuple[Row, ...] = ()
    if compare or plot_compare is not None:
        rows = compare_baselines(measured, machines, request, page_mode=page_cost)
    try:
        found = plan_request(measured, machines, request)
    except InfeasibleError as error:
        if rows and not as_json:
            show_comparison(rows, objective, chunk_frames)
        raise (error if privacy is None else with_release(error, release, measured)) from None
    rows = as_asked(rows, found, request)
    explained = explain(found, measured, machines, request)
    write_file(out, write_plan(found), "the plan")
    if plot is not None:
        from vaultline.cli.plan_picture import draw_plan  # takes a moment to import

        draw_plan(found, measured, plot)
    if plot_compare is not None:
        from vaultline.cli.plan_picture import draw_comparison

        draw_comparison(rows, found, plot_compare)
    checked = None
    if check is not None:
        checked = run_check(
            found,
            check,
            request.input_shapes,
            rounds=check_rounds,
            disclosure=load_disclosure(privacy, leakage),
        )
    if as_json:
        ran = {"check": check_document(checked)} if checked else {}
        compared = {"comparison": comparison_document(rows, objective)} if rows else {}
        held = {"privacy": release_document(release, measured)} if privacy else {}
        print_json(plan_document(found, explained) | held | compared | ran)
        return
    show_plan(found, explained, release_line(release, measured) if privacy else "")
    if rows:
        show_comparison(rows, objective, chunk_frames)
    if checked is not None:
        show_check(checked)
    _show_written(found, out)


def _check_targets(out: Path, *pictures: Path | None) -> None:
    """Refuse what can't be written before anything is searched."""
    check_target(out, "the plan")
    for path in pictures:
        check_picture(path)


def _show_written(found: Plan, out: Path) -> None:
    results().print(f"wrote {out} (digest {found.digest.hex()[:16]}...)", style="dim", markup=False)
