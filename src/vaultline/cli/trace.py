"""``vaultline trace``: event logs of servers as a trace for Perfetto."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from vaultline.cli.common import JsonFlag, note, print_json, results, table
from vaultline.cli.files import check_target, read_file, write_file
from vaultline.core.serde import Struct
from vaultline.core.units import format_bytes
from vaultline.sched.logs import read_logs
from vaultline.sched.replay import decode
from vaultline.sched.timeline import Timeline
from vaultline.sched.trace import trace_json


class ServerAccount(Struct, frozen=True):
    """What a log says of a server."""

    name: str
    seconds: float
    runs: int
    answered: int
    refused: int
    missed_deadlines: int
    loads: int
    evictions: int
    streamed_bytes: int
    busy_s: float


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("trace", epilog="Example: vaultline trace logs/*.jsonl -o trace.json")(trace)


def trace(
    logs: Annotated[list[Path], typer.Argument(help="Event logs of servers, of one cluster.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The trace to write.")],
    as_json: JsonFlag = False,
) -> None:
    """Make a trace for https://ui.perfetto.dev of what servers have logged.

    The logs are replayed: exit code 2 if the schedulers of this version decide anything else than
    what was logged.
    """
    check_target(out, "the trace")
    data = [(str(path), read_file(path, "the event log")) for path in logs]
    # What a host that was killed had begun to write has no end of line.
    timeline = read_logs((name, decode(text.split(b"\n")[:-1])) for name, text in data)
    write_file(out, trace_json({"": timeline}), "the trace")
    accounts = accounts_of(timeline)
    if as_json:
        print_json({"servers": accounts, "trace": str(out)})
        return
    note(f"open {out} at https://ui.perfetto.dev")
    columns = ("server", "s", "runs", "answered", "refused", "late", "kept", "evicted", "streamed")
    rows = [
        (
            each.name, f"{each.seconds:.1f}", each.runs, each.answered, each.refused,
            each.missed_deadlines, each.loads, each.evictions, format_bytes(each.streamed_bytes),
        )
        for each in accounts
    ]  # fmt: skip
    results().print(table(None, columns, rows))


def accounts_of(timeline: Timeline) -> Sequence[ServerAccount]:
    """Of each server, by name."""
    times: dict[str, list[float]] = {name: [] for name in timeline.servers}
    for sample in timeline.samples:
        times[sample.server].append(sample.now_s)
    return [
        ServerAccount(
            name=name,
            seconds=times[name][-1] - times[name][0],
            runs=totals.runs,
            answered=totals.answered,
            refused=totals.refused,
            missed_deadlines=totals.missed,
            loads=totals.loads,
            evictions=totals.evictions,
            streamed_bytes=totals.streamed_bytes,
            busy_s=totals.busy_s,
        )
        for name, totals in sorted(timeline.totals.items())
    ]
