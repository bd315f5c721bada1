"""``vaultline bench sim``: how well a simulation predicts, and how it grows with the cluster."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vaultline.bench.fidelity import (
    Compared,
    FidelityRequest,
    FidelityResult,
    Round,
    bench_fidelity,
)
from vaultline.bench.serving import RigRequest, ServingRig
from vaultline.bench.sim_scale import ScaleRow, scale
from vaultline.cli.bench_common import QuickFlag, ZooOption, default_zoo, machine, told
from vaultline.cli.bench_lasagna import KeepTimesOption, PreparedOption
from vaultline.cli.common import JsonFlag, print_json, results, table
from vaultline.cli.files import check_picture
from vaultline.cli.running import stoppable
from vaultline.core.limits import MIB

#: Servers of the simulated clusters; the last one's figures are named after it.
SIZES = (10, 20, 50, 100, 200, 500, 1000)
_MODELS, _REQUESTS = 200, 100_000
#: Requests whose progress is told at once.
_TOLD = 1000
_QUICK = FidelityRequest(models=("squeezenet", "googlenet"), rounds=1, requests=60, window_s=5.0)
_QUICK_SIZES, _QUICK_REQUESTS = (10, 30, 100), 5_000
Part = Literal["all", "fidelity", "scale"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SimResult:
    """Both halves; either may have been left out."""

    fidelity: FidelityResult | None
    scale: Sequence[ScaleRow]


def sim(
    part: Annotated[Part, typer.Option(help="Only one half of it.")] = "all",
    window: Annotated[float, typer.Option(min=1.0, help="Seconds of each real run.")] = 40.0,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is run.")] = 3,
    memory_mib: Annotated[int, typer.Option(min=1, help="Of each of the two servers.")] = 93,
    models_dir: ZooOption = None,
    prepared: PreparedOption = None,
    keep_times: KeepTimesOption = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the result into this PNG.")] = None,
    quick: QuickFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Simulated against measured on three workloads; decisions and time for 10 to 1,000 servers."""
    check_picture(plot)
    request = _QUICK if quick else FidelityRequest(window_s=window, rounds=rounds)
    with stoppable(), told() as tell:
        found = SimResult(
            fidelity=None
            if part == "scale"
            else _fidelity(
                request,
                models_dir or default_zoo(),
                prepared,
                memory_mib * MIB,
                keep_times,
                tell,
            ),
            scale=() if part == "fidelity" else _scale(tell, quick=quick),
        )
    if plot is not None:
        from vaultline.cli.sim_pictures import draw_sim  # takes a moment to import

        draw_sim(found.fidelity, found.scale, plot)
    if as_json:
        print_json({"figures": figures(found), "machine": machine(), **document(found)})
    else:
        show(found)


def _fidelity(
    request: FidelityRequest,
    zoo: Path,
    prepared: Path | None,
    memory_bytes: int,
    keep_times: bool,
    tell: Callable[[str, int, int], None],
) -> FidelityResult:
    rig_request = RigRequest(
        measure_again=not keep_times,
        models=request.models,
        zoo=zoo,
        prepared=prepared or zoo.parent / "prepared",
        memory_bytes=memory_bytes,
    )
    with (
        tempfile.TemporaryDirectory(prefix="vaultline-bench-") as folder,
        ServingRig(rig_request, tell) as rig,
    ):
        return bench_fidelity(request, rig, Path(folder), tell)


def _scale(tell: Callable[[str, int, int], None], *, quick: bool) -> list[ScaleRow]:
    sizes, requests = (_QUICK_SIZES, _QUICK_REQUESTS) if quick else (SIZES, _REQUESTS)

    def told(count: int, done: int) -> None:
        if done % _TOLD == 0:  # telling takes time too, which is measured
            tell(f"{count} simulated servers", done, requests)

    return scale(sizes, _MODELS, requests, progress=told)


def figures(found: SimResult) -> dict[str, float]:
    """The benchmark's figures by name."""
    made = {} if found.fidelity is None else found.fidelity.figures()
    for row in found.scale:
        made[f"decision_us_{row.servers}_servers"] = row.decision_us
        made[f"seconds_{row.servers}_servers"] = row.seconds
        made[f"core_s_{row.servers}_servers"] = row.core_s
    return made


def document(found: SimResult) -> dict[str, Any]:
    """The details beside the figures."""
    compared = None if found.fidelity is None else asdict(found.fidelity)
    return {"fidelity": compared, "scale": list(found.scale)}


def show(found: SimResult) -> None:
    """Tables for a person."""
    if found.fidelity is not None:
        _show_fidelity(found.fidelity)
    if found.scale:
        _show_scale(found.scale)


def _show_fidelity(found: FidelityResult) -> None:
    rows = []
    for each in found.compared:
        rows += [_round_row(each, turn) for turn in each.rounds]
        if len(each.rounds) > 1:
            ratios = [f"{each.ratio(kind):.3f}" for kind in ("throughput", "mean", "p95")]
            rows.append(
                (each.workload, "median", "", ratios[0], "", "", ratios[1], "", "", ratios[2])
            )
    columns = (
        "workload", "requests", "answers/s", "ratio", "mean ms", "simulated", "ratio",
        "p95 ms", "simulated", "ratio",
    )  # fmt: skip
    results().print(table("measured, and simulated over measured", columns, rows))
    _show_sharing(found)


def _round_row(found: Compared, turn: Round) -> tuple[str, ...]:
    real, mine = turn.measured, turn.simulated
    return (
        found.workload,
        str(found.requests),
        f"{real.throughput:.2f}",
        f"{turn.ratio('throughput'):.3f}",
        f"{real.mean_s * 1e3:.1f}",
        f"{mine.mean_s * 1e3:.1f}",
        f"{turn.ratio('mean'):.3f}",
        f"{real.p95_s * 1e3:.1f}",
        f"{mine.p95_s * 1e3:.1f}",
        f"{turn.ratio('p95'):.3f}",
    )


def _show_sharing(found: FidelityResult) -> None:
    """What the simulations went by."""
    rows = []
    for each in found.compared:
        for turn in each.rounds if each.counts else ():
            shared = turn.timing.sharing
            times = (turn.timing.hop_s, shared.run_s, shared.arrival_s, shared.elsewhere_s)
            texts = (f"{seconds * 1e3:.2f}" for seconds in times)
            rows.append((each.workload, f"{shared.pace:.3f}", f"{shared.loss:.1%}", *texts))
    columns = (
        "around", "pace", "loss to neighbours", "hop ms", "a run ms", "an arrival ms",
        "one elsewhere ms",
    )  # fmt: skip
    results().print(table("what other requests showed: runs against the facts", columns, rows))


def _show_scale(found: Sequence[ScaleRow]) -> None:
    rows = [
        (
            str(row.servers),
            str(row.models),
            str(row.requests),
            f"{row.decision_us:.1f}",
            f"{row.seconds:.1f}",
            f"{row.core_s:.1f}",
            f"{row.virtual_s:.1f}",
            f"{row.mean_s * 1e3:.1f}",
            f"{row.p95_s * 1e3:.1f}",
        )
        for row in found
    ]
    columns = (
        "servers", "models", "requests", "us a decision", "s", "core s", "virtual s",
        "mean ms", "p95 ms",
    )  # fmt: skip
    results().print(table("simulated clusters, one core", columns, rows))
