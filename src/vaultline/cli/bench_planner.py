"""``vaultline bench serdab`` and ``vaultline bench planner``: the planner, measured."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from vaultline.bench.planner_bench import PlannerRequest, bench_planner
from vaultline.bench.planning import CUTS
from vaultline.bench.serdab import (
    LINKED,
    PLACEMENTS,
    TABLE,
    SerdabRequest,
    SerdabResult,
    bench_serdab,
    figures,
)
from vaultline.cli.bench_common import QuickFlag, ZooOption, default_zoo, machine, told
from vaultline.cli.checking import check_document
from vaultline.cli.common import JsonFlag, print_json, results, table
from vaultline.cli.files import check_picture
from vaultline.graph.zoo import ZOO

_QUICK_TABLE = ("squeezenet", "mobilenetv2")
PlotOption = Annotated[Path | None, typer.Option(help="Draw the result into this PNG.")]


def planner(
    seeds: Annotated[int, typer.Option(min=1, help="Random problems of each size.")] = 3,
    models_dir: ZooOption = None,
    plot: PlotOption = None,
    quick: QuickFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Processor time of planning: random problems of growing size, and the ten models."""
    check_picture(plot)
    with told() as tell:
        found = bench_planner(
            PlannerRequest(
                zoo=models_dir or default_zoo(),
                cuts=CUTS[:3] if quick else CUTS,
                seeds=tuple(range(1, 1 + (1 if quick else seeds))),
                models=_QUICK_TABLE if quick else ZOO,
            ),
            tell,
        )
    if plot is not None:
        from vaultline.cli.bench_pictures import draw_growth  # takes a moment to import

        draw_growth(found.times, plot)
    if as_json:
        print_json({"figures": found.figures, "machine": machine(), **asdict(found)})
        return
    rows = [
        (
            str(each.cuts),
            f"{each.devices} of {each.types}",
            str(each.chunk_frames),
            f"{each.seconds:.3f}",
            f"{each.seconds_max:.3f}",
        )
        for each in found.times.points
    ]
    console = results()
    columns = ("cuts", "devices of types", "frames", "median s", "longest s")
    console.print(table("processor seconds to plan a chunk", columns, rows))
    growth = found.times.growth
    console.print(
        f"fit: {growth.factor:.2g} s x cuts^{growth.in_cuts:.2f} x devices^{growth.in_devices:.2f}"
    )
    models = [(name, f"{seconds:.3f}") for name, seconds in found.models_s.items()]
    console.print(table("ten models, four devices", ("model", "s"), models))


def serdab(
    model: Annotated[
        list[str] | None, typer.Option("--model", help="Only this model. Repeatable.")
    ] = None,
    frames: Annotated[int, typer.Option(min=16, help="Frames of a chunk in the table.")] = 1000,
    check_frames: Annotated[
        int, typer.Option(min=16, help="Frames of a chunk that checks a prediction.")
    ] = 100,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 3,
    accelerator_factor: Annotated[
        float,
        typer.Option(min=0.001, max=1000.0, help="An accelerator's time over a core's: estimated."),
    ] = 0.1,
    no_link: Annotated[
        bool, typer.Option("--no-link", help="Leave out the 30 Mbit/s link, which needs root.")
    ] = False,
    models_dir: ZooOption = None,
    plot: PlotOption = None,
    quick: QuickFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """A chunk of video by placement, against one enclave; and how well chunks were predicted."""
    check_picture(plot)
    only = tuple(model) if model else None
    table_models, checked = (_QUICK_TABLE, _QUICK_TABLE) if quick else (TABLE, ZOO)
    linked = () if no_link else LINKED[:1] if quick else LINKED
    request = SerdabRequest(
        zoo=models_dir or default_zoo(),
        table=_only(table_models, only),
        checked=_only(checked, only),
        linked=_only(linked, only),
        frames=min(frames, 200) if quick else frames,
        check_frames=check_frames,
        rounds=2 if quick else rounds,
        accelerator_factor=accelerator_factor,
        repeats=5 if quick else 9,
    )
    with told() as tell:
        found = bench_serdab(request, tell)
    if plot is not None:
        from vaultline.cli.bench_pictures import draw_serdab  # takes a moment to import

        draw_serdab(found, plot)
    if as_json:
        print_json({"figures": figures(found), "machine": machine(), **_document(found)})
    else:
        _show(found, request)


def _only(models: tuple[str, ...], wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    return models if wanted is None else tuple(name for name in models if name in wanted)


def _document(found: SerdabResult) -> dict[str, Any]:
    return {
        "placed": [asdict(each) for each in found.placed],
        "checks": [
            {
                "model": each.model,
                "where": each.where,
                "plan": each.checked.plan,
                **check_document(each.checked),
            }
            for each in found.checks
        ],
    }


def _show(found: SerdabResult, request: SerdabRequest) -> None:
    console = results()
    rows = []
    for name in request.table:
        cells = []
        for placement in PLACEMENTS[1:]:
            speedup = found.speedup(name, placement)
            paged = found.speedup_paged(name, placement, "sgx1")
            if speedup is None:
                cells.append("")
                continue
            marked = f"{speedup[0]:.2f}" + ("" if speedup[1] else "*")
            cells.append(marked + ("" if paged is None else f" ({paged:.1f}*)"))
        rows.append((name, *cells))
    title = (
        f"speed-up of {request.frames} frames over one bounded enclave "
        "(in brackets: over one paged SGX1 enclave; *: predicted)"
    )
    console.print(table(title, ("model", *PLACEMENTS[1:]), rows))
    checks = [
        (
            each.model,
            each.where,
            f"{each.checked.chunk.predicted_s:.3f}",
            f"{each.checked.chunk.measured_s:.3f}",
            f"{each.checked.chunk.error:+.1%}",
        )
        for each in found.checks
    ]
    columns = ("model", "where", "predicted s", "measured s", "error")
    console.print(table(f"chunks of {request.check_frames} frames", columns, checks))
    slower = sum(each.slower_than_serdab for each in found.placed)
    console.print(f"plans slower than the serdab baseline's: {slower} of {len(found.placed)}")
