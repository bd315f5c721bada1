"""A plan and its rivals in words: tables within 100 columns, and the same as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rich.markup import escape

from vaultline.cli.common import printable, results, table
from vaultline.core.plan import Objective, Plan, PlannedStage
from vaultline.core.profile import ModelProfile
from vaultline.core.units import format_bytes, format_ms
from vaultline.planner.baselines import BASELINES, Row
from vaultline.planner.explain import Explanation
from vaultline.planner.problem import Release

#: Tables are laid out for this width, also where there is no terminal.
COLUMNS = 100
_ESTIMATED = (
    "est.: estimated. Nobody measured that class of device; its times are another one's, scaled."
)


def show_plan(plan: Plan, explained: Explanation) -> None:
    """The stages, what crosses, the predicted times and why the next best plan loses."""
    console = results()
    console.width = min(console.width, COLUMNS)
    frames = f" of {plan.chunk_frames} frames" if plan.objective == "chunk" else ""
    title = f"{plan.model_name}: the best plan for {plan.objective}{frames}"
    columns = ("stage", "device", "nodes", "ms", "busy", "weights", "memory", "a pass", "receives")
    console.print(table(title, columns, _stage_rows(plan, explained)))
    back = f"{format_bytes(explained.hop_bytes[-1])} in {format_ms(explained.hop_s[-1])}"
    console.print(f"the owner receives {back}", style="dim")
    _show_released(plan)
    console.print()
    for label, text in _prediction(plan, explained):
        console.print(f"{label:<12} {escape(printable(text))}")
    if any(stage.estimated for stage in plan.stages):
        console.print(_ESTIMATED, style="dim")


def _stage_rows(plan: Plan, explained: Explanation) -> Iterable[Sequence[str]]:
    for number, (stage, spelt) in enumerate(zip(plan.stages, explained.stages, strict=True)):
        yield (
            str(number),
            place(stage),
            f"{stage.first}:{stage.last}",
            f"{stage.predicted_s * 1e3:.2f}{' est.' * stage.estimated}",
            f"{spelt.share:.0%}",
            f"{format_bytes(spelt.weight_bytes)} {stage.mode}",
            f"{format_bytes(spelt.need_bytes)} of {format_bytes(spelt.memory_bytes)}",
            f"{stage.frames_per_pass} frame{'s'[: stage.frames_per_pass > 1]}",
            f"{format_bytes(spelt.in_bytes)} in {format_ms(explained.hop_s[number])}",
        )


def place(stage: PlannedStage) -> str:
    """The devices of a stage; several take its frames in turn."""
    hosts = list(dict.fromkeys(device.host for device in stage.devices))
    names = ", ".join(device.name for device in stage.devices)
    many = f"{len(stage.devices)} in turn: " if len(stage.devices) > 1 else ""
    untrusted = ", untrusted" if stage.device.untrusted else ""
    return f"{many}{names} ({', '.join(hosts)}{untrusted})"


def _show_released(plan: Plan) -> None:
    """What untrusted devices see, how much it tells, and how much it may."""
    if not plan.released:
        return
    console = results()
    console.width = min(console.width, COLUMNS)
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
    frames = "frame" if plan.chunk_frames == 1 else "frames"
    yield "latency", f"{format_ms(explained.latency_s)} for a frame that travels alone"
    yield (
        "throughput",
        f"{per_s:.1f} frames/s, one every {format_ms(explained.bottleneck_s)}: "
        f"limited by {explained.bottleneck}; balance {explained.balance:.0%}",
    )
    yield "chunk", f"{plan.chunk_frames} {frames} in {explained.chunk_s:.3f} s"
    yield "", "all predicted from the profile; `busy` is the share of the time between frames"
    rival = explained.runner_up
    if rival is None:
        return
    cuts = ", ".join(map(str, rival.cuts))
    where = f", cut after {cuts} nodes" if cuts else ", uncut"
    yield (
        "next best",
        f"{' then '.join(rival.devices)}{where}: {rival.ratio:.2f}x; {rival.reason}",
    )


def release_line(release: Release, profile: ModelProfile) -> str:
    """How much of a model a privacy policy releases."""
    cuts, blocks = sum(release.cuts), sum(release.blocks)
    limit = f"leak at most {release.limit:g} ({release.metric})"
    return (
        f"{cuts} of {len(profile.positions)} cuts {limit}, and the weights of {blocks} of "
        f"{len(profile.blocks)} blocks may be disclosed; nothing else reaches an untrusted device"
    )


def show_comparison(rows: Sequence[Row], objective: Objective, chunk_frames: int) -> None:
    """Every baseline in a line, then notes, and why some have no plan."""
    console = results()
    console.width = min(console.width, COLUMNS)
    measure = {"latency": "latency", "throughput": "time between frames", "chunk": "chunk time"}
    title = f"by {measure[objective]}, all predicted under one cost model and the same constraints"
    columns = (
        "baseline",
        "to ours",
        f"{chunk_frames} frames",
        "latency",
        "frames/s",
        "limited by",
        "devices",
    )
    console.print()
    console.print(table(title, columns, [_row_text(row) for row in rows if row.priced]))
    for row in rows:
        said = row.reason and f"no plan: {row.reason}"
        said = said or (row.priced.note if row.priced is not None else "")
        if said:
            console.print(f"{row.name}: {escape(printable(said))}")
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
        found.bottleneck,
        " > ".join(_stage_devices(names) for names in found.devices),
    )


def _stage_devices(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"({' | '.join(names)})"


def plan_document(plan: Plan, explained: Explanation) -> dict[str, Any]:
    """What ``--json`` prints of a plan."""
    return {
        "plan_digest": plan.digest.hex(),
        "explanation": asdict(explained),
        "estimated": [stage.estimated for stage in plan.stages],
        "released": plan.released,
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
