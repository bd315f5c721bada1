"""A plan and its rivals in words: tables within 100 columns, and the same as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from msgspec import to_builtins
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vaultline.cli.common import printable, results, table
from vaultline.core.memory import MemoryPlan
from vaultline.core.plan import Objective, Plan, PlannedStage
from vaultline.core.units import format_bytes, format_ms
from vaultline.planner.baselines import BASELINES, Row
from vaultline.planner.explain import Explanation

#: Tables are laid out for this width, also where there is no terminal.
COLUMNS = 100
_LABEL = 12
_ESTIMATED = (
    "est.: estimated. Nobody measured that class of device; its times are another one's, scaled."
)


def show_plan(plan: Plan, explained: Explanation, privacy: str = "") -> None:
    """The stages, what crosses, the predicted times and why the next best plan loses.

    Args:
        privacy: what a privacy policy releases, where there is one.
    """
    console = _console()
    wanted = {
        "latency": "the least latency",
        "throughput": "the highest throughput",
        "chunk": f"the shortest chunk of {frames_text(plan.chunk_frames)}",
    }[plan.objective]
    columns = ("#", "device", "nodes", "ms", "busy", "weights", "memory", "pass", "receives")
    title = f"{plan.model_name}: a plan for {wanted} (predicted)"
    console.print(_folding(table(title, columns, _stage_rows(plan, explained)), "device"))
    back = f"{_size(explained.hop_bytes[-1])}, {format_ms(explained.hop_s[-1])}"
    console.print(f"the owner receives {back}", style="dim")
    for line in _memory_lines(plan):
        console.print(line, style="dim")
    _show_released(plan)
    console.print()
    for label, text in _prediction(plan, explained):
        _say(console, label, text)
    if privacy:
        unused = "" if plan.released else "no untrusted device takes part: "
        _say(console, "privacy", unused + privacy)
    if any(stage.estimated for stage in plan.stages):
        console.print(_ESTIMATED, style="dim")


def _console() -> Console:
    console = results()
    console.width = min(console.width, COLUMNS)
    return console


def _folding(made: Table, name: str) -> Table:
    """Only one column gives way where the table is too wide."""
    for column in made.columns:
        column.no_wrap = column.header != name
    return made


def _say(console: Console, label: str, text: str) -> None:
    """A labelled line, its continuation below its own text."""
    indent = " " * (_LABEL + 1)
    lines = textwrap.wrap(
        printable(text), console.width, initial_indent=indent, subsequent_indent=indent
    )
    said = "\n".join(lines)
    console.print(escape(f"{label:<{_LABEL}}" + said[_LABEL:]), soft_wrap=True)


def frames_text(count: int) -> str:
    """So many frames, in words."""
    return f"{count} frame{'s'[: count != 1]}"


def _size(size_bytes: int) -> str:
    """As ``format_bytes``, without the decimal of large numbers: a table is narrow."""
    number, unit = format_bytes(size_bytes).split()
    return f"{float(number):.0f} {unit}" if float(number) >= 100 else f"{number} {unit}"


def _used(used_bytes: int, most_bytes: int) -> str:
    """How much of how much, with the unit once where it is the same."""
    used, most = _size(used_bytes), _size(most_bytes)
    return f"{used.split()[0] if used.split()[1] == most.split()[1] else used} of {most}"


def _stage_rows(plan: Plan, explained: Explanation) -> Iterable[Sequence[str]]:
    for number, (stage, spelt) in enumerate(zip(plan.stages, explained.stages, strict=True)):
        yield (
            str(number),
            place(stage),
            f"{stage.first}:{stage.last}",
            f"{stage.predicted_s * 1e3:.2f}{' est.' * stage.estimated}",
            f"{spelt.share:.0%}",
            f"{_size(spelt.weight_bytes)} {stage.mode}",
            _used(spelt.need_bytes, spelt.memory_bytes),
            str(stage.frames_per_pass),
            f"{_size(spelt.in_bytes)}, {format_ms(explained.hop_s[number])}",
        )


def _memory_lines(plan: Plan) -> Iterable[str]:
    """Of stages whose weights don't all stay: what stays, and what every pass decrypts."""
    for number, stage in enumerate(plan.stages):
        memory = stage.memory
        if memory is None or stage.mode != "streamed":
            continue
        ahead = ", ahead on another core" if memory.prefetch else ""
        yield (
            f"stage {number} keeps {_size(memory.resident_bytes)} of weights and decrypts "
            f"{_size(memory.streamed_bytes)} a pass of {frames_text(stage.frames_per_pass)}{ahead}"
        )


def place(stage: PlannedStage) -> str:
    """The devices of a stage, as device@host; several take its frames in turn."""
    names = "\n".join(f"{device.name}@{device.host}" for device in stage.devices)
    many = f"{len(stage.devices)} in turn:\n" if len(stage.devices) > 1 else ""
    return many + names + " (untrusted)" * stage.device.untrusted


def _show_released(plan: Plan) -> None:
    """What untrusted devices see, how much it tells, and how much it may."""
    if not plan.released:
        return
    console = _console()
    rows = [
        (
            str(each.stage),
            plan.stages[each.stage].device.name,
            printable(each.tensor),
            each.metric,
            f"{each.leakage:.4g}",
            f"{each.limit:.4g}",
        )
        for each in plan.released
    ]
    columns = ("stage", "device", "tensor", "leakage by", "leaks", "limit")
    console.print()
    console.print(table("released to untrusted devices", columns, rows))


def _prediction(plan: Plan, explained: Explanation) -> Iterable[tuple[str, str]]:
    """Labels and texts of the lines below the table."""
    per_s = 1 / explained.bottleneck_s if explained.bottleneck_s > 0 else float("inf")
    yield "latency", f"{format_ms(explained.latency_s)} for a frame that travels alone"
    yield (
        "throughput",
        f"{per_s:.1f} frames/s, one every {format_ms(explained.bottleneck_s)}: "
        f"limited by {explained.bottleneck}; balance {explained.balance:.0%}",
    )
    yield "chunk", f"{frames_text(plan.chunk_frames)} in {explained.chunk_s:.3f} s"
    for place, rival in enumerate(explained.rivals):
        cuts = ", ".join(map(str, rival.cuts))
        where = f", cut at {cuts}" if cuts else ", uncut"
        value = f"{' then '.join(rival.devices)}{where}: {rival.ratio:.2f}x"
        yield "then" if place else "next best", f"{rival.kind}: {value}; {rival.reason}"


def show_comparison(rows: Sequence[Row], objective: Objective, chunk_frames: int) -> None:
    """Every baseline in a line, then notes, and why some have no plan."""
    console = _console()
    measure = {"latency": "latency", "throughput": "time between frames", "chunk": "chunk time"}
    title = f"by {measure[objective]}: one cost model, the same constraints (predicted)"
    columns = (
        "baseline",
        "to ours",
        frames_text(chunk_frames),
        "latency",
        "frames/s",
        "limit",
        "devices",
    )
    console.print()
    console.print(
        _folding(table(title, columns, [_row_text(row) for row in rows if row.priced]), "devices")
    )
    for row in rows:
        said = f"no plan: {row.reason}" if row.priced is None else row.priced.note
        if said:
            console.print(escape(printable(f"{row.name}: {said}")))
    if any(row.priced is not None and row.priced.estimated for row in rows):
        console.print(_ESTIMATED, style="dim")


def _row_text(row: Row) -> Sequence[str]:
    found = row.priced
    if found is None:
        raise AssertionError("only rows with a price are tabulated")
    per_s = 1 / found.bottleneck_s if found.bottleneck_s > 0 else float("inf")
    return (
        row.name,
        "-" if row.ratio is None else f"{row.ratio:.2f}x",
        f"{found.chunk_s:.3f} s{' est.' * found.estimated}",
        format_ms(found.latency_s),
        f"{per_s:.1f}",
        found.bottleneck.partition(" on ")[0].partition(",")[0],
        " > ".join(
            names[0] if len(names) == 1 else f"({' | '.join(names)})" for names in found.devices
        ),
    )


def plan_document(plan: Plan, explained: Explanation) -> dict[str, Any]:
    """What ``--json`` prints of a plan."""
    return {
        "plan_digest": plan.digest.hex(),
        "explanation": asdict(explained),
        "stages": [
            {
                "devices": [device.name for device in stage.devices],
                "period_s": stage.period_s,
                "estimated": stage.estimated,
                "untrusted": stage.device.untrusted,
                "mode": stage.mode,
                "frames_per_pass": stage.frames_per_pass,
                "memory_bytes": stage.device.memory_bytes,
                "memory": None if stage.memory is None else memory_document(stage.memory),
            }
            for stage in plan.stages
        ],
        "released": plan.released,
    }


def memory_document(memory: MemoryPlan) -> dict[str, Any]:
    """How a stage uses its protected memory: what is held, and what each step of a pass needs."""
    return {
        "resident_bytes": memory.resident_bytes,
        "streamed_bytes": memory.streamed_bytes,
        "workspace_bytes": memory.workspace_bytes,
        "engine_bytes": memory.engine_bytes,
        "io_bytes": memory.io_bytes,
        "prefetch": memory.prefetch,
        "steps": [to_builtins(step) for step in memory.steps],
    }


def comparison_document(rows: Sequence[Row], objective: Objective) -> list[dict[str, Any]]:
    """What ``--json`` prints of a comparison: a price or a reason for each baseline."""
    return [_row_document(row, objective) for row in rows]


def _row_document(row: Row, objective: Objective) -> dict[str, Any]:
    known = BASELINES.get(row.name)
    said: dict[str, Any] = {
        "name": row.name,
        "summary": row.summary,
        "source": known.source if known else "",
        "ratio": row.ratio,
        "reason": row.reason,
    }
    found = row.priced
    if found is None:
        return said
    return said | {
        "value_s": found.value_s(objective),
        "chunk_s": found.chunk_s,
        "latency_s": found.latency_s,
        "bottleneck_s": found.bottleneck_s,
        "frames_per_s": 1 / found.bottleneck_s if found.bottleneck_s > 0 else None,
        "bottleneck": found.bottleneck,
        "devices": found.devices,
        "cuts": found.cuts,
        "estimated": found.estimated,
        "predicted": True,
        "runnable": found.plan is not None,
        "note": found.note,
    }
