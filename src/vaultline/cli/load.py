"""``vaultline load``: requests of a workload to a gateway, in an open loop."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vaultline.bench.noise import frames_of
from vaultline.cli.common import JsonFlag, print_json, progress, results, table
from vaultline.cli.files import check_target
from vaultline.core.errors import InputError
from vaultline.core.spread import Spread
from vaultline.sched.events import Request
from vaultline.serve.answers import Answer
from vaultline.serve.client import Client
from vaultline.serve.load import Frame, LoadSummary, OpenLoop, summarize
from vaultline.sim.recordings import record
from vaultline.sim.workload import arrivals
from vaultline.sim.workload_file import read_workload

#: Of each model, made before the first is sent: requests take them in turn.
_FRAMES = 4
#: Requests whose progress is told at once: the generator has other things to do.
_TOLD = 10
EXIT_PEER = 4


def register(app: typer.Typer) -> None:
    """Add the verb."""
    example = "vaultline load workload.yaml --to unix:/run/user/1000/vaultline/gateway"
    app.command("load", epilog=f"Example: {example}")(load)


def load(
    workload: Annotated[Path, typer.Argument(help="Which requests arrive when (YAML).")],
    to: Annotated[str, typer.Option(help="The gateway: unix:PATH or tcp:HOST:PORT.")],
    credential: Annotated[
        Path | None, typer.Option(help="For TCP: the file with the gateway's credential.")
    ] = None,
    connect: Annotated[
        float, typer.Option(min=0.0, help="Seconds to wait for the gateway to be there.")
    ] = 10.0,
    faster: Annotated[float, typer.Option(help="2: the requests come twice as fast.")] = 1.0,
    patience: Annotated[
        float, typer.Option(min=0.0, help="Seconds to wait for answers after the last request.")
    ] = 60.0,
    seed: Annotated[int, typer.Option(help="Of the inputs, which are random.")] = 0,
    record_to: Annotated[
        Path | None,
        typer.Option("--record", help="Write the requests, as CSV or JSON lines, to repeat them."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Send requests when they are due, whoever still waits, and sum up how long answers took.

    Latencies count from when a request was due, so that they can't be hidden by a generator that is
    late; how late it was is told. Exit code 4 if requests were lost or not answered in time.
    """
    if record_to is not None:
        check_target(record_to, "the recording")
    requests = list(arrivals(read_workload(workload).faster(faster)))
    if not requests:
        raise InputError(
            "the workload has no requests", got=str(workload), remedy="let it last longer"
        )
    if record_to is not None:
        record(requests, record_to)
    with Client(to, credential, timeout_s=connect) as client:
        summary = _sent(client, requests, patience, seed)
    if as_json:
        print_json({"workload": str(workload), "to": to, **asdict(summary)})
    else:
        show(summary)
    if summary.failed or summary.unanswered:
        raise typer.Exit(EXIT_PEER)


def _sent(client: Client, requests: Sequence[Request], patience_s: float, seed: int) -> LoadSummary:
    models = {model.name: model for model in client.models()}
    if unknown := {request.model for request in requests} - {*models}:
        raise InputError(
            "the workload asks for a model that is not served",
            got=", ".join(sorted(unknown)),
            expected="some of " + ", ".join(sorted(models)),
            remedy="name what is served in the workload file, or serve these as well",
        )
    inputs = {
        name: frames_of(model.inputs, _FRAMES, seed)
        for name, model in models.items()
        if any(request.model == name for request in requests)
    }

    def submit(request: Request, frame: Frame) -> Future[Answer]:
        specs, deadline_s = models[request.model].inputs, request.deadline_s
        return client.submit(
            request.model,
            {spec.name: tensor for spec, tensor in zip(specs, frame, strict=True)},
            deadline_s=None if deadline_s is None else deadline_s - request.arrived_s,
            priority=request.priority,
        )

    with progress(unit="answers/s") as bar:
        task = bar.add_task("sending", total=len(requests))

        def told(count: int) -> None:
            if count % _TOLD == 0 or count == len(requests):
                bar.update(task, completed=count)

        loop = OpenLoop(submit, inputs)
        return summarize(loop.run(requests, patience_s=patience_s, progress=told))


def show(summary: LoadSummary) -> None:
    """Tables for a person."""
    console = results()
    spreads = {**summary.models, "all": summary.all}
    rows = [_row(name, found) for name, found in spreads.items() if found]
    columns = ("model", "answers", "mean", "p50", "p90", "p95", "p99", "most")
    console.print(table("latency, ms", columns, rows))
    offered = f" of {summary.offered_per_s:.1f} offered" if summary.offered_per_s else ""
    console.print(
        f"{summary.answered} of {summary.sent} answered, {summary.achieved_per_s:.1f} a second"
        f"{offered}; {summary.refused} refused, {summary.failed} failed, "
        f"{summary.unanswered} unanswered, {summary.missed} after their deadline"
    )
    for reason, count in sorted(summary.reasons.items(), key=lambda each: -each[1]):
        console.print(f"  {count} x {reason}", markup=False)
    late = summary.late
    if late is not None:
        p99, most = f"{late.p99_s * 1e3:.2f}", f"{late.max_s * 1e3:.1f}"
        console.print(f"the generator was {p99} ms late (99th percentile), {most} at most")
    if summary.lagging:
        console.print(
            "LAGGING: it offered less than it was asked to; use a slower workload, or another "
            "machine for it",
            style="yellow",
        )


def _row(name: str, found: Spread) -> tuple[str, ...]:
    seconds = (found.mean_s, found.p50_s, found.p90_s, found.p95_s, found.p99_s, found.max_s)
    return name, str(found.count), *(f"{each * 1e3:.1f}" for each in seconds)
