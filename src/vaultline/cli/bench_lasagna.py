"""``vaultline bench lasagna``: six models on two servers with little memory, under every policy."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from vaultline.bench.lasagna import BASELINE, LasagnaRequest, bench_lasagna
from vaultline.bench.lasagna_results import OURS, LasagnaResult, Offered, Saturated, figures
from vaultline.bench.serving import RigRequest, ServingRig
from vaultline.cli.bench_common import QuickFlag, ZooOption, default_zoo, machine, named, told
from vaultline.cli.common import JsonFlag, print_json, results, table
from vaultline.cli.files import check_picture
from vaultline.cli.running import stoppable
from vaultline.core.limits import MIB
from vaultline.sched.policies import POLICIES

PreparedOption = Annotated[
    Path | None,
    typer.Option("--prepared", help="Where prepared models are kept; prepared beside the zoo."),
]
KeepTimesOption = Annotated[
    bool, typer.Option("--keep-times", help="Don't measure again what prepared models take.")
]
#: Above this share the result is worth little.
_DISTURBED = 0.1
#: Small enough to prepare and serve within minutes; one of them is larger than the memory.
_QUICK = LasagnaRequest(
    models=("squeezenet", "alexnet", "googlenet"),
    policies=("fifo", "round-robin", "model-affinity-batch", OURS),
    paged=("crypto",),
    requests=60,
    rounds=1,
    window_s=5.0,
    patience_s=5.0,
    kill_window_s=5.0,
)


def lasagna(
    policies: Annotated[
        str | None, typer.Option(help="Only these beside vaultline, with commas between them.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of all requests at once.")] = 5,
    requests: Annotated[int, typer.Option(min=10, help="Of such a round.")] = 200,
    window: Annotated[float, typer.Option(min=1.0, help="Seconds of an open loop.")] = 25.0,
    open_rounds: Annotated[int, typer.Option(min=1, help="Rounds of open loops.")] = 1,
    memory_mib: Annotated[int, typer.Option(min=1, help="Of each of the two servers.")] = 93,
    models_dir: ZooOption = None,
    prepared: PreparedOption = None,
    log_dir: Annotated[
        Path | None, typer.Option(help="Folder for every server's events and actions.")
    ] = None,
    keep_times: KeepTimesOption = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the result into this PNG.")] = None,
    quick: QuickFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Throughput and latency of six models on two bounded servers, for every policy."""
    check_picture(plot)
    asked = LasagnaRequest(
        requests=requests, rounds=rounds, window_s=window, open_rounds=open_rounds
    )
    request = _only(policies, _QUICK if quick else asked)
    zoo = models_dir or default_zoo()
    rig_request = RigRequest(
        models=request.models,
        zoo=zoo,
        prepared=prepared or zoo.parent / "prepared",
        memory_bytes=memory_mib * MIB,
        paged=request.paged if any(POLICIES[name].paged for name in request.policies) else (),
        log_dir=log_dir,
        measure_again=not keep_times,
    )
    with stoppable(), told() as tell, ServingRig(rig_request, tell) as rig:
        found = bench_lasagna(request, rig.start, rig.inputs, tell)
        found.about = rig.about()
    if plot is not None:
        from vaultline.cli.lasagna_pictures import draw_lasagna  # takes a moment to import

        draw_lasagna(found, plot)
    if as_json:
        print_json({"figures": figures(found), "machine": machine(), **document(found, request)})
    else:
        show(found)


def _only(policies: str | None, request: LasagnaRequest) -> LasagnaRequest:
    """With the named policies alone, and ours.

    Raises:
        InputError: an unknown one.
    """
    if policies is None:
        return request
    names = named(policies, POLICIES, "there is no such policy", "--policies")
    return replace(request, policies=tuple(n for n in POLICIES if n in names or n == OURS))


def document(found: LasagnaResult, request: LasagnaRequest) -> dict[str, Any]:
    """The details beside the figures."""
    return {
        "request": asdict(request),
        "about": found.about,
        "batched": found.batched,
        "skipped": found.skipped,
        "repeated": found.repeated,
        "saturated": [_saturated(each) for each in found.saturated],
        "offered": [_offered(each) for each in found.offered],
        "killed": None if found.killed is None else asdict(found.killed),
    }


def _saturated(run: Saturated) -> dict[str, Any]:
    derived = {
        "name": run.contender.name,
        "throughput": run.throughput,
        "tail_free": run.tail_free,
        "busy": run.use.busy,
        "overhead": run.use.overhead,
        "disturbed": run.use.disturbed,
    }
    return {**asdict(run), **derived}


def _offered(run: Offered) -> dict[str, Any]:
    derived = {
        "name": run.contender.name,
        "drain_s": run.drain_s,
        "keeps_up": run.keeps_up,
        "busy": run.use.busy,
        "overhead": run.use.overhead,
    }
    return {**asdict(run), **derived}


def show(found: LasagnaResult) -> None:
    """Tables for a person."""
    console = results()
    made = figures(found)
    rows = []
    for name in found.names():
        runs = [each for each in found.saturated if each.contender.name == name]
        last = runs[-1]
        rows.append(
            (
                name,
                f"{found.throughput(name) or 0.0:.2f}",
                f"{found.tail_free(name) or 0.0:.2f}",
                f"{last.requests / max(last.use.runs, 1):.2f}",
                f"{last.use.busy:.0%}",
                f"{last.use.overhead:.1%}",
                f"{last.use.streamed_bytes / MIB:.0f}",
                f"{last.use.swapped_pages:,}",
                *_latency_cells(found, name),
            )
        )
    columns = (
        "policy",
        "answers/s",
        "tail-free",
        "a run",
        "busy",
        "gateway, hosts",
        "MiB streamed",
        "pages",
        "mean, p95 at 70 % of ours",
        "of the best baseline's",
    )
    title = (
        "all requests at once: answers a second, with and without the tail, and for each run of a "
    )
    title += "step group; then ms in an open loop (*: can't keep up)"
    console.print(table(title, columns, rows))
    if made.get("disturbed", 0.0) > _DISTURBED:
        text = f"DISTURBED: others had {made['disturbed']:.0%} of the time in which servers ran"
        console.print(f"{text}; close other programs and measure again", style="yellow")
    for text in found.repeated:
        console.print(f"failed once: {text}", style="yellow", markup=False)
    for name, why in found.skipped.items():
        console.print(f"{name} does not run: {why}")
    _show_gains(made)
    if found.killed is not None:
        killed = found.killed
        console.print(
            f"one of two servers killed under load: {killed.held} requests moved, the last of them "
            f"answered {killed.recovery_s:.2f} s later; {killed.lost} lost, "
            f"{killed.doubled} answered twice"
        )


def _latency_cells(found: LasagnaResult, name: str) -> list[str]:
    cells = []
    for rate_of in (OURS, BASELINE):
        mean_s, p95_s = (found.latency(name, rate_of, which) for which in ("mean_s", "p95_s"))
        late = "" if found.keeps_up(name, rate_of) else " *"
        known = mean_s is not None and p95_s is not None
        cells.append(f"{mean_s * 1e3:.0f}, {p95_s * 1e3:.0f}{late}" if known else "-")  # type: ignore[operator]
    return cells


def _show_gains(made: dict[str, float]) -> None:
    texts = {
        "throughput_vs_fifo": "over first come, first served in paged enclaves",
        "executor_gain": "of these, of the bounded executor",
        "policy_gain": "of these, of the scheduler and the balancer",
        "throughput_vs_best_baseline": "over the best baseline on the same executor",
        "throughput_vs_best_batched_baseline": "over the best of them with dynamic batches",
        "p95_vs_best_baseline": "p95 over the best baseline's, at 70 % of ours",
        f"p95_vs_best_baseline.at_{BASELINE}": "p95 likewise, at 70 % of the best baseline's",
    }
    rows = [(text, f"{made[name]:.2f}") for name, text in texts.items() if name in made]
    results().print(table("vaultline", ("what", "times"), rows))
