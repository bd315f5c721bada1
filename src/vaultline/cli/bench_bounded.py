"""``vaultline bench bounded``: models in little protected memory, measured."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from vaultline.bench.bounded import (
    SGX1_BYTES,
    BoundedRequest,
    BoundedResult,
    bench_bounded,
    figures,
)
from vaultline.bench.bounded_ratio import BoundedRun, Timing
from vaultline.bench.bounded_switching import SWITCHED, SwitchingRequest, SwitchingResult
from vaultline.cli.bench_common import QuickFlag, ZooOption, default_zoo, machine, told
from vaultline.cli.common import JsonFlag, print_json, results, table
from vaultline.cli.files import check_target
from vaultline.core.errors import InputError
from vaultline.core.limits import MIB
from vaultline.graph.zoo import ZOO

_PICTURE = "bounded.png"
_QUICK_MODELS = ("squeezenet", "googlenet")
_QUICK_TIMING = Timing(rounds=5, seconds=0.1)
#: Small enough that the quick models don't fit together.
_QUICK_SWITCHING_BYTES = 32 * MIB


def bounded(
    models: Annotated[
        str | None, typer.Option(help="Only these, with commas between them.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 7,
    models_dir: ZooOption = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw time against budget into bounded.png in this folder.")
    ] = None,
    quick: QuickFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Models in little protected memory against the plain engine, paged enclaves, pipelines."""
    if plot is not None:
        check_target(plot / _PICTURE, "the picture")
    request = _request(_names(models, quick=quick), models_dir, rounds, quick=quick)
    with told() as tell:
        found = bench_bounded(request, tell)
    if plot is not None:
        from vaultline.cli.bounded_pictures import draw_bounded  # takes a moment to import

        draw_bounded(found, plot / _PICTURE)
    if as_json:
        print_json({"figures": figures(found), "machine": machine(), **document(found)})
    else:
        show(found)


def _names(models: str | None, *, quick: bool) -> tuple[str, ...]:
    if models is None:
        return _QUICK_MODELS if quick else ZOO
    names = tuple(dict.fromkeys(name.strip() for name in models.split(",")))
    unknown = [name for name in names if name not in ZOO]
    if unknown:
        raise InputError(
            "there is no such model to measure",
            got=", ".join(unknown),
            expected=", ".join(ZOO),
            remedy="name some of these with --models, commas between them",
        )
    return names


def _request(
    models: tuple[str, ...], models_dir: Path | None, rounds: int, *, quick: bool
) -> BoundedRequest:
    zoo, core = models_dir or default_zoo(), min(os.sched_getaffinity(0))
    switched = models if quick else tuple(name for name in SWITCHED if name in models)
    timing = _QUICK_TIMING if quick else Timing(rounds=rounds)
    switching = SwitchingRequest(
        zoo=zoo,
        core=core,
        models=switched,
        timing=timing,
        budget_bytes=_QUICK_SWITCHING_BYTES if quick else SGX1_BYTES,
        coarse=(8 if quick else 4) * MIB,
    )
    return BoundedRequest(
        zoo=zoo,
        models=models,
        timing=timing,
        sweep_points=4 if quick else 9,
        sweep_timing=Timing(rounds=3, seconds=0.05) if quick else Timing(rounds=3, seconds=0.2),
        # All or nothing: fewer models in turn would be another figure.
        switching=switching if quick or switched == SWITCHED else None,
    )


def document(found: BoundedResult) -> dict[str, Any]:
    """The details beside the figures."""
    return {
        "rates": found.rates,
        "runs": [run_document(run) for run in found.runs],
        "not_run": [asdict(each) for each in found.not_run],
        "least": {name: [asdict(each) for each in some] for name, some in found.least.items()},
        "sweep": {name: [run_document(run) for run in some] for name, some in found.sweep.items()},
        "switching": None if found.switching is None else switching_document(found.switching),
    }


def run_document(run: BoundedRun) -> dict[str, Any]:
    """A run with what follows from it."""
    derived = {
        "ratio": run.ratio,
        "ratio_rewritten": run.ratio_rewritten,
        "limit": run.limit,
        "pass_s": run.pass_s,
        "memory_over_budget": run.memory.over_budget,
    }
    return {**asdict(run), **derived}


def switching_document(found: SwitchingResult) -> dict[str, Any]:
    """Models in turn, with what follows."""
    over = found.memory.over_budget
    return {**asdict(found), "ratio": found.ratio, "memory_over_budget": over}


def show(found: BoundedResult) -> None:
    """Tables for a person."""
    console = results()
    columns = (
        "model",
        "MiB",
        "frames",
        "ms a pass",
        "native",
        "rewritten",
        "limit",
        "MiB streamed",
        "MiB at peak",
        "max error",
    )
    rows = [
        (
            run.model,
            str(run.budget_bytes // MIB),
            str(run.frames) + ("" if run.frames == run.asked_frames else f" of {run.asked_frames}"),
            f"{run.pass_s * 1e3:.1f}",
            f"{run.ratio:.3f}",
            f"{run.ratio_rewritten:.3f}",
            f"{run.limit:.3f}",
            f"{run.decrypted_bytes / MIB:.1f}",
            f"{run.memory.peak_bytes / MIB:.1f}",
            f"{run.max_relative_error:.0e}",
        )
        for run in found.runs
    ]
    title = "one core, ratios to the plain engine: untouched, rewritten, and what streaming allows"
    console.print(table(title, columns, rows))
    for each in found.not_run:
        where = f"{each.budget_bytes // MIB} MiB, {each.asked_frames} a pass"
        console.print(f"{each.model} does not run in {where}: {each.why}")
    for name, some in found.least.items():
        for least in some:
            budget = f"{least.budget_bytes / MIB:.2f} MiB"
            console.print(f"{name}, {least.frames} a pass, needs {budget}: {least.why}")
    if found.switching is not None:
        _show_switching(found.switching)


def _show_switching(found: SwitchingResult) -> None:
    console = results()
    rows = [
        (
            share.model,
            f"{share.plan.resident_bytes / MIB:.1f}",
            f"{share.plan.workspace_bytes / MIB:.1f}",
            f"{(share.plan.engine_bytes + share.plan.io_bytes) / MIB:.1f}",
            f"{share.plan.streamed_bytes / MIB:.1f}",
        )
        for share in found.shares
    ]
    columns = ("model", "MiB resident", "workspace", "engine and messages", "streamed")
    title = (
        f"models in turn within {found.budget_bytes // MIB} MiB, {found.frames} frames a pass: "
        f"{found.ratio:.3f} of the plain engines' time, {found.sessions_made} sessions made later, "
        f"{found.memory.peak_bytes / MIB:.1f} MiB at peak"
    )
    console.print(table(title, columns, rows))
