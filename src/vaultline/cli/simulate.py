"""``vaultline simulate``: serve a workload in virtual time, under several policies."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from msgspec.structs import replace
from rich.progress import TaskID

from vaultline.cli.common import JsonFlag, note, print_json, progress, results, table
from vaultline.cli.files import check_picture, check_target, load_cluster, read_file, write_file
from vaultline.core.cluster import Cluster
from vaultline.core.errors import InputError
from vaultline.core.serde import canonical_json, from_json
from vaultline.core.spread import Spread
from vaultline.core.units import format_bytes, parse_seconds
from vaultline.sched.events import Request
from vaultline.sched.facts import ModelFacts
from vaultline.sched.policies import ServingPolicy, policy
from vaultline.sched.replicas import ReplicaSettings
from vaultline.sched.trace import trace_json
from vaultline.serve.stock import Stock, stock_of_facts, stock_of_folder
from vaultline.sim.cluster import Timing
from vaultline.sim.results import PolicyResult
from vaultline.sim.sharing import Sharing
from vaultline.sim.study import SimulationResult, Study, on_some, simulation_result, study
from vaultline.sim.workload import arrivals
from vaultline.sim.workload_file import read_workload, workload_schema

#: Compared with unless others are named: ours, the best baselines on the same executor.
POLICIES = ("vaultline", "lasagna", "model-affinity", "least-loaded", "round-robin")
_MODELS_SHOWN = 8
#: Requests whose progress is told at once.
_TOLD = 100


def register(app: typer.Typer) -> None:
    """Add the verb."""
    example = "vaultline simulate workload.yaml --cluster cluster.yaml --models prepared/"
    app.command("simulate", epilog=f"Example: {example}")(simulate)


def schema_text() -> str:
    """The schema as it is published: indented, keys sorted."""
    return msgspec.json.format(canonical_json(workload_schema()), indent=2).decode() + "\n"


def _print_schema(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(schema_text())
        raise typer.Exit


def simulate(
    workload: Annotated[Path, typer.Argument(help="Which requests arrive when (YAML).")],
    cluster: Annotated[Path, typer.Option(help="The cluster file; attested devices serve.")],
    models: Annotated[
        Path | None, typer.Option(help="Folder of prepared models, whose facts are taken.")
    ] = None,
    facts: Annotated[
        Path | None, typer.Option(help="Facts of models instead, a JSON list.")
    ] = None,
    policies: Annotated[
        list[str] | None,
        typer.Option("--policy", help="A policy; several times to compare."),
    ] = None,
    faster: Annotated[float, typer.Option(help="2: the requests come twice as fast.")] = 1.0,
    hop: Annotated[str, typer.Option(help="From gateway to server, and back.")] = "0s",
    report: Annotated[str, typer.Option(help="Between two reports of a server.")] = "100ms",
    command: Annotated[
        str, typer.Option(help="Of each run besides its work: a command and its reply.")
    ] = "0s",
    replicas: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Each model on so many servers at first, then on as many as its "
            "requests need; all on all if unset.",
        ),
    ] = None,
    lose: Annotated[
        list[str] | None, typer.Option(help="NAME@TIME: that server is lost then; several times.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Picture to write, PNG or SVG.")] = None,
    trace: Annotated[Path | None, typer.Option(help="Trace to write, for ui.perfetto.dev.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Results to write, JSON, with series over time.")
    ] = None,
    schema: Annotated[
        bool,
        typer.Option(
            "--schema",
            callback=_print_schema,
            is_eager=True,
            help="Print the JSON Schema of workload files, for editors.",
        ),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Serve a workload in virtual time: the real schedulers, with measured service times.

    Every policy gets the same requests. Nothing is run: the facts of prepared models say how long
    runs take, and devices are as fast as the machine that measured them.
    """
    check_picture(plot)
    for path, what in ((trace, "the trace"), (out, "the results")):
        if path is not None:
            check_target(path, what)
    chosen = [policy(name) for name in dict.fromkeys(policies or POLICIES)]
    stock = _stock(models, facts)
    requests = list(arrivals(read_workload(workload).faster(faster)))
    if not requests:
        raise InputError(
            "the workload has no requests", got=str(workload), remedy="let it last longer"
        )
    timing = Timing(
        hop_s=_seconds(hop, "--hop"),
        sharing=Sharing(run_s=_seconds(command, "--command")),
        report_s=_seconds(report, "--report", least=1e-3),
    )
    setting = _Setting(
        cluster=load_cluster(cluster),
        stock=stock,
        timing=timing,
        replicas=replicas,
        losses=dict(map(_loss, lose or ())),
    )
    studies = _studies(chosen, setting, requests)
    found = simulation_result(requests, timing, studies)
    if out is not None:
        write_file(out, canonical_json(found), "the results")
    if trace is not None:
        _write_trace(trace, studies)
    if plot is not None:
        from vaultline.cli.simulation_picture import draw_simulation  # takes long to import

        draw_simulation(found, plot)
    if as_json:
        print_json(brief(found))
    else:
        _show(found)


def _seconds(text: str, option: str, least: float = 0.0) -> float:
    seconds = parse_seconds(text)
    if seconds < least:
        raise InputError(f"{option} is too short", got=text, expected=f"at least {least} s")
    return seconds


def _loss(text: str) -> tuple[str, float]:
    name, at, when = text.rpartition("@")
    if not (name and at):
        raise InputError("not a server that is lost", got=text, expected="NAME@TIME, as box-1@20s")
    return name, _seconds(when, "--lose")


def _stock(models: Path | None, facts: Path | None) -> Stock:
    """Of a folder, or of a file of facts."""
    if (models is None) == (facts is None):
        raise InputError(
            "models come from one place",
            got="both" if models else "none",
            expected="--models FOLDER or --facts FILE",
        )
    if models is not None:
        return stock_of_folder(models)
    data = read_file(facts or Path(), "the facts", "see docs/serving.md")
    return stock_of_facts(
        from_json(data, tuple[ModelFacts, ...], what=f"the file of facts {facts}")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Setting:
    """What all policies share."""

    cluster: Cluster
    stock: Stock
    timing: Timing
    replicas: int | None
    losses: Mapping[str, float]

    def study(
        self,
        policy: ServingPolicy,
        requests: Sequence[Request],
        told: Callable[[int], None],
    ) -> Study:
        models, servers = self.stock.models(policy), self.stock.servers(policy, self.cluster)
        names = [server.name for server in servers]
        for name in self.losses:
            if name not in names:
                raise InputError("no server of this name", got=name, expected=", ".join(names))
        if self.replicas is not None:
            servers = on_some(servers, models, self.replicas)
        return study(
            policy,
            servers,
            models,
            requests,
            self.timing,
            told,
            replicas=ReplicaSettings() if self.replicas is not None else None,
            losses=self.losses,
        )


def _studies(
    policies: Sequence[ServingPolicy], setting: _Setting, requests: Sequence[Request]
) -> list[Study]:
    studies = []
    with progress(unit="requests/s") as bar:
        for each in policies:
            task = bar.add_task(each.name, total=len(requests))

            def told(count: int, task: TaskID = task) -> None:
                if count % _TOLD == 0 or count == len(requests):
                    bar.update(task, completed=count)

            studies.append(setting.study(each, requests, told))
    return studies


def _write_trace(path: Path, studies: Sequence[Study]) -> None:
    many = len(studies) > 1
    timelines = {study.result.policy if many else "": study.timeline for study in studies}
    write_file(path, trace_json(timelines), "the trace")
    note(f"open {path} at https://ui.perfetto.dev")


def brief(found: SimulationResult) -> SimulationResult:
    """Without what is only drawn: series and what happened when."""
    policies = []
    for each in found.policies:
        servers = tuple(replace(server, series=None, happened=()) for server in each.servers)
        policies.append(replace(each, series=None, servers=servers))
    return replace(found, policies=tuple(policies))


def _show(found: SimulationResult) -> None:
    console = results()
    ranked = sorted(found.models.items(), key=lambda each: (-each[1], each[0]))
    counts = ", ".join(f"{count} {name}" for name, count in ranked[:_MODELS_SHOWN])
    if len(ranked) > _MODELS_SHOWN:
        counts += f", and {len(ranked) - _MODELS_SHOWN} models more"
    console.print(
        f"{found.requests} requests in {found.seconds:.1f} s, {found.rate_per_s:.1f}/s: {counts}"
    )
    columns = ("policy", "per s", "mean ms", "p50", "p95", "p99", "refused", "late", "busy",
               "per run", "kept", "evicted", "streamed")  # fmt: skip
    console.print(table(None, columns, (_row(each) for each in found.policies)))
    if len(found.policies) == 1:
        rows = [
            (each.name, *_spread_cells(each.latency), each.refused, each.missed)
            for each in found.policies[0].models
        ]
        heads = ("model", "answered", "mean ms", "p50", "p95", "p99", "refused", "late")
        console.print(table("\nby model", heads, rows))


def _row(each: PolicyResult) -> Sequence[object]:
    servers = each.servers
    cores = sum(server.cores for server in servers)
    busy = sum(server.busy_share * server.cores for server in servers) / cores
    runs = sum(server.runs for server in servers)
    shared = sum(server.requests_per_run * server.runs for server in servers)
    return (
        each.policy,
        f"{each.throughput_per_s:.2f}",
        *_spread_cells(each.latency)[1:],
        each.refused,
        each.missed,
        f"{busy:.0%}",
        f"{shared / runs:.2f}" if runs else "-",
        sum(server.loads for server in servers),
        sum(server.evictions for server in servers),
        format_bytes(sum(server.streamed_bytes for server in servers)),
    )


def _spread_cells(found: Spread | None) -> tuple[object, ...]:
    if found is None:
        return (0, "-", "-", "-", "-")
    times = (found.mean_s, found.p50_s, found.p95_s, found.p99_s)
    return (found.count, *(f"{each * 1e3:.1f}" for each in times))
