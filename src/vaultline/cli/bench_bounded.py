"""``vaultline bench bounded``: models in little protected memory, measured."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from vaultline.bench.bounded import (
    BUDGETS,
    SGX1_BYTES,
    BoundedRequest,
    BoundedResult,
    bench_bounded,
    figures,
)
from vaultline.bench.bounded_choice import MODEL, PARTS, ChoiceAt
from vaultline.bench.bounded_paged import PagedRun
from vaultline.bench.bounded_pipeline import CHUNK_FRAMES, PipelineRun, PipelineTiming
from vaultline.bench.bounded_process import FRAMES
from vaultline.bench.bounded_ratio import BoundedRun, Timing
from vaultline.bench.bounded_switching import SWITCHED, SwitchingRequest, SwitchingResult
from vaultline.cli.bench_common import QuickFlag, ZooOption, default_zoo, machine, named, told
from vaultline.cli.common import JsonFlag, print_json, results, table
from vaultline.cli.files import check_target
from vaultline.core.limits import MIB
from vaultline.core.paged import SGX1_PAGE_S
from vaultline.graph.zoo import ZOO

_PICTURE = "bounded.png"
_QUICK_MODELS = ("squeezenet", "googlenet")
#: A second enclave that gains less than this doesn't help.
_GAIN_MIN = 1.05
_QUICK_TIMING = Timing(rounds=5, seconds=0.1)
#: Small enough that the quick models don't fit together.
_QUICK_SWITCHING_BYTES = 40 * MIB


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
    return named(models, ZOO, "there is no such model to measure", "--models")


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
    )
    return BoundedRequest(
        zoo=zoo,
        models=models,
        budgets=BUDGETS[:2] if quick else BUDGETS,
        timing=timing,
        sweep_points=3 if quick else 9,
        sweep_timing=Timing(rounds=3, seconds=0.05 if quick else 0.2),
        # All or nothing: fewer models in turn would be another figure.
        switching=switching if quick or switched == SWITCHED else None,
        paged_rounds=2 if quick else 5,
        pipeline=PipelineTiming(rounds=1, seconds=0.5) if quick else PipelineTiming(),
        profile_repeats=3 if quick else 5,
        choice_model=models[0] if quick else MODEL if MODEL in models else None,
        choice_frames=8 if quick else 40,
        choice_parts=(1.1, 0.8) if quick else PARTS,
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
        "published_page_s": SGX1_PAGE_S,
        "paged": [paged_document(found, run) for run in found.paged],
        "pipelines": [pipeline_document(found, run) for run in found.pipelines],
        "choices": [
            {**asdict(each), "fastest": each.fastest, "agrees": each.agrees}
            for each in found.choices
        ],
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


def paged_document(found: BoundedResult, run: PagedRun) -> dict[str, Any]:
    """A paged enclave, with what a bounded one gains over it."""
    derived = {
        "frame_s": run.frame_s,
        "page_s": run.page_s,
        "speedup_bounded": found.speedup(run.model, run.page_mode, 1),
        "speedup_bounded_4_frames": found.speedup(run.model, run.page_mode, FRAMES),
    }
    return {**asdict(run), **derived}


def pipeline_document(found: BoundedResult, run: PipelineRun) -> dict[str, Any]:
    """Real enclaves, with the time of a chunk and what the second of them gains."""
    derived = {
        "enclaves": run.enclaves,
        "chunk_frames": CHUNK_FRAMES,
        "chunk_s": run.chunk_s(),
        "gain_over_one": found.partition_gain(run.model) if run.asked_enclaves > 1 else None,
    }
    return {**asdict(run), **derived}


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
        where = f"{each.budget_bytes // MIB} MiB, {each.how}"
        console.print(f"{each.model} does not run in {where}: {each.why}")
    for name, some in found.least.items():
        for least in some:
            budget = f"{least.budget_bytes / MIB:.2f} MiB"
            console.print(f"{name}, {least.frames} a pass, needs {budget}: {least.why}")
    if found.switching is not None:
        _show_switching(found.switching)
    if found.paged:
        _show_paged(found)
    if found.pipelines:
        _show_pipelines(found)
    if found.choices:
        _show_choices(found.choices)


def _show_paged(found: BoundedResult) -> None:
    rows = [
        (
            run.model,
            run.page_mode,
            f"{run.frame_s * 1e3:.1f}",
            f"{run.pages.swapped:,}",
            "" if run.page_s is None else f"{run.page_s * 1e6:.1f}",
            _times(found.speedup(run.model, run.page_mode, 1)),
            _times(found.speedup(run.model, run.page_mode, FRAMES)),
            _times(found.pipeline_speedup(run.model, run.page_mode)),
        )
        for run in found.paged
    ]
    columns = ("model", "pages as", "ms a frame", "pages", "us a page", "one", "4 a pass", "two")
    title = (
        f"one paged enclave, and how much faster a bounded one is (published for SGX1: "
        f"{SGX1_PAGE_S * 1e6:.0f} us a page), and two on {CHUNK_FRAMES} frames"
    )
    results().print(table(title, columns, rows))


def _show_pipelines(found: BoundedResult) -> None:
    rows = []
    for run in found.pipelines:
        gain = found.partition_gain(run.model) if run.asked_enclaves > 1 else None
        helps = "" if gain is None else "" if gain > _GAIN_MIN else "no help"
        rows.append(
            (
                run.model,
                str(run.enclaves),
                str(len(run.plan.stages)),
                str(run.frames),
                f"{run.chunk_s():.2f}",
                _times(gain),
                helps,
            )
        )
    columns = ("model", "enclaves", "stages", "frames run", "chunk s", "over one", "")
    title = f"bounded enclaves, the planner's choice, on {CHUNK_FRAMES} frames"
    results().print(table(title, columns, rows))


def _show_choices(found: Sequence[ChoiceAt]) -> None:
    rows = []
    for each in found:
        predicted = [_ms(way.predicted_s) for way in each.ways]
        measured = [_ms(way.measured_s) for way in each.ways]
        agrees = "agrees" if each.agrees else "differs"
        budget = str(each.budget_bytes // MIB)
        rows.append((budget, str(each.chosen), *predicted, *measured, agrees))
    counts = [str(way.enclaves) for way in found[0].ways]
    columns = (
        "MiB",
        "chosen",
        *(f"{count}: predicted" for count in counts),
        *(f"{count}: measured" for count in counts),
        "order",
    )
    title = f"{found[0].model} in one, two and three enclaves: ms of one frame"
    results().print(table(title, columns, rows))


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.1f}"


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
