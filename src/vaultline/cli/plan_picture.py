"""Pictures of a plan: what runs where, and when; and of a plan beside its rivals."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vaultline.cli.common import device_names
from vaultline.cli.memory_picture import MEMORY_IN, draw_memory, planned_stages
from vaultline.cli.pictures import FAINT, INK, PALETTE, STYLE, plain, save, tint
from vaultline.core.errors import InputError
from vaultline.core.plan import Plan, PlannedStage
from vaultline.core.profile import ModelProfile
from vaultline.core.tensors import layout
from vaultline.core.units import format_bytes, format_ms
from vaultline.planner.baselines import Row
from vaultline.planner.timeline import Busy, timeline

_WIDTH_IN = 9.0
#: A largest layer this many times the median one calls for a logarithmic scale.
_SKEW = 20
#: What nothing vouches for is hatched.
_HATCH = "////"
_MIB = float(1 << 20)


def draw_plan(plan: Plan, profile: ModelProfile, path: Path) -> None:
    """Draw the layers by device with their time and memory, the cuts, and the first frames.

    Raises:
        InputError: the plan is of another model than the profile.
    """
    if plan.model_digest != profile.model_digest:
        raise InputError("the plan and the profile are of different models")
    rows = _rows(plan)
    timeline_in = max(1.1, 0.55 + sum(_ROW_IN[what] for what, _, _ in rows))
    shown = planned_stages(plan)
    heights = (0.72, 1.25, 1.25, 0.95, *(MEMORY_IN if shown else ()), timeline_in)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH_IN, sum(heights) + 1.35), dpi=110, layout="constrained")
        figure.get_layout_engine().set(hspace=0.02, h_pad=0.04)  # type: ignore[union-attr, call-arg]
        bands, times, sizes, crossing, *others = figure.subplots(
            len(heights), 1, height_ratios=heights
        )
        _draw_bands(bands, plan)
        _draw_times(times, plan, profile)
        _draw_sizes(sizes, plan, profile)
        _draw_crossing(crossing, plan, profile)
        for axes in (bands, times, sizes):
            axes.sharex(crossing)
            axes.tick_params(labelbottom=False)
        crossing.set_xlim(0, profile.positions[-1])
        crossing.set_xlabel("node of the model, in topological order")
        if shown:
            draw_memory(figure, (others[0], others[1]), plan, shown)
        _draw_frames(others[-1], plan, rows)
        figure.suptitle(_title(plan), fontsize=11)
        save(figure, path)


def _title(plan: Plan) -> str:
    predicted = plan.predicted
    per_s = 1 / predicted["bottleneck_s"] if predicted["bottleneck_s"] > 0 else float("inf")
    estimated = ", partly estimated" if any(stage.estimated for stage in plan.stages) else ""
    return (
        f"{plain(plan.model_name)}: {per_s:.1f} frames/s, latency "
        f"{format_ms(predicted['latency_s'])}, {plan.chunk_frames} frames in "
        f"{predicted['chunk_s']:.2f} s (predicted{estimated})"
    )


def _colour(stage: int) -> str:
    return PALETTE[stage % len(PALETTE)]


def _hatch(stage: PlannedStage) -> str | None:
    return _HATCH if stage.device.untrusted else None


# Over the nodes of the model


def _draw_bands(axes: Axes, plan: Plan) -> None:
    """Who holds which nodes, and how much crosses each end."""
    total = plan.stages[-1].last
    untrusted = any(stage.device.untrusted for stage in plan.stages)
    _say(axes, "who runs which layers, and what crosses" + " (hatched: untrusted)" * untrusted)
    axes.set_axis_off()
    for number, stage in enumerate(plan.stages):
        width = stage.last - stage.first
        axes.barh(
            0.5, width, 1.0, stage.first, color=tint(_colour(number)), edgecolor=_colour(number),
            lw=1.2, hatch=_hatch(stage),
        )  # fmt: skip
        name = plain(device_names(stage))
        room = width / total * 118
        if len(name) <= room:
            axes.text(
                stage.first + width / 2, 0.5, name, ha="center", va="center", fontsize=8.5,
                weight="bold", bbox=_BACKED if stage.device.untrusted else None,
            )  # fmt: skip
    ends = [(0, plan.stages[0].inputs), *((stage.last, stage.outputs) for stage in plan.stages)]
    taken = [-1.0, -1.0]
    for at, tensors in ends:
        text = format_bytes(layout(tensors)[1])
        half = total * (len(text) + 1) / 118 / 2
        middle = min(max(at, half), total - half)
        level = 0 if middle - half >= taken[0] else 1
        if middle - half < taken[level]:
            continue
        taken[level] = middle + half
        axes.text(middle, 1.28 + 0.62 * level, text, ha="center", va="bottom", fontsize=8)
        axes.plot([at, at], [1.0, 1.25 + 0.62 * level], color=INK, lw=0.8)
    axes.set_ylim(0, 2.6 if taken[1] > 0 else 1.9)


_BACKED = {"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.8}


def _draw_times(axes: Axes, plan: Plan, profile: ModelProfile) -> None:
    times_ms = [block.compute_pass_s(1) * 1e3 for block in profile.blocks]
    _bars(axes, plan, profile, times_ms)
    axes.set_ylabel("ms per frame")
    _say(axes, "time of each layer, as profiled")


def _draw_sizes(axes: Axes, plan: Plan, profile: ModelProfile) -> None:
    weights = [block.weight_bytes / _MIB for block in profile.blocks]
    activations = [nbytes / _MIB for nbytes in _activations(profile)]
    _bars(axes, plan, profile, weights)
    lefts, widths = _extents(profile)
    edges = [*lefts, lefts[-1] + widths[-1]]
    axes.stairs(activations, edges, color=INK, lw=1.0)
    largest, usual = max(*weights, *activations), median([*weights, *activations])
    skewed = largest > _SKEW * usual
    if skewed:
        # Fully connected layers would flatten all others to a line.
        axes.set_yscale("symlog", linthresh=1.0)
        axes.set_ylim(0, 4 * max(largest, 1.0))
        axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("MiB")
    _say(axes, "memory of each layer: weights (bars), activations (line)" + ", log scale" * skewed)


def _activations(profile: ModelProfile) -> list[int]:
    """Per block, the tensors of a frame that are alive while it runs."""
    alive = [block.activation_bytes for block in profile.blocks]
    for each in profile.held:
        for block in range(each.first, each.last + 1):
            alive[block] += each.nbytes
    return alive


def _draw_crossing(axes: Axes, plan: Plan, profile: ModelProfile) -> None:
    """What would cross each candidate cut, and the cuts that were chosen."""
    kib = [nbytes / 1024 for nbytes in profile.crossing_bytes]
    axes.plot(profile.positions, kib, color="#777777", lw=0.9, marker=".", ms=3)
    chosen = [stage.first for stage in plan.stages[1:]]
    found = dict(zip(profile.positions, kib, strict=True))
    axes.plot(
        chosen, [found[at] for at in chosen], "o", ms=7, mfc="white", mec=INK, mew=1.6, zorder=3
    )
    _cut_lines(axes, plan)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("KiB")
    axes.grid(axis="y", color=FAINT, lw=0.6)
    _say(axes, "would cross each possible cut" + " (rings: the plan's)" * bool(chosen))


def _say(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=9, pad=3)


def _extents(profile: ModelProfile) -> tuple[list[int], list[int]]:
    positions = profile.positions
    return list(positions[:-1]), [b - a for a, b in pairwise(positions)]


def _bars(axes: Axes, plan: Plan, profile: ModelProfile, heights: Sequence[float]) -> None:
    """One bar per block, in the colour of the stage that holds it; dashed lines at the cuts."""
    lefts, widths = _extents(profile)
    for number, stage in enumerate(plan.stages):
        own = [k for k, left in enumerate(lefts) if stage.first <= left < stage.last]
        axes.bar(
            [lefts[k] for k in own], [heights[k] for k in own], [widths[k] for k in own],
            align="edge", color=_colour(number), edgecolor="white", lw=0.3, hatch=_hatch(stage),
        )  # fmt: skip
    _cut_lines(axes, plan)
    axes.grid(axis="y", color=FAINT, lw=0.6)
    axes.set_axisbelow(True)


def _cut_lines(axes: Axes, plan: Plan) -> None:
    for stage in plan.stages[1:]:
        axes.axvline(stage.first, color=INK, lw=0.9, ls=(0, (4, 3)))


# Over time

#: ("stage", its number, replica) or ("hop", its number, 0).
_Place = tuple[str, int, int]
_ROW_IN = {"stage": 0.36, "hop": 0.2}


def _rows(plan: Plan) -> list[_Place]:
    """A row for each hop and each device, in the order in which a frame passes them."""
    rows: list[_Place] = []
    for number, stage in enumerate(plan.stages):
        rows.append(("hop", number, 0))
        rows += [("stage", number, replica) for replica in range(len(stage.devices))]
    return [*rows, ("hop", len(plan.stages), 0)]


def _shown_frames(plan: Plan) -> int:
    """Enough that the pipeline fills and every replica has had a few."""
    replicas = max(len(stage.devices) for stage in plan.stages)
    return min(len(plan.stages) + 3 + 3 * replicas, 40)


def _draw_frames(axes: Axes, plan: Plan, rows: Sequence[_Place]) -> None:
    """The predicted timeline: who handles which frame when."""
    busy = timeline(plan, _shown_frames(plan))
    tops, bottom = {}, 0.0
    for row in rows:
        tops[row] = bottom
        bottom += _ROW_IN[row[0]]
    scale, unit = (1.0, "s") if busy[-1].stop_s >= 10 else (1e3, "ms")
    # Once the last of the hops to the first stage is over, nothing more would be sent: stop there.
    end = max(each.stop_s for each in busy) * scale
    for each in busy:
        _draw_busy(axes, plan, each, tops[each.what, each.number, each.replica], scale, end)
    axes.set_xlim(0, end)
    axes.set_ylim(bottom, 0)
    middles = [tops[row] + _ROW_IN[row[0]] / 2 for row in rows]
    axes.set_yticks(middles, [_row_name(plan, row) for row in rows])
    for label, (what, _, _) in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_fontsize(8.5 if what == "stage" else 7.5)
        label.set_color(INK if what == "stage" else "#777777")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(unit)
    axes.grid(axis="x", color=FAINT, lw=0.6)
    axes.set_axisbelow(True)
    _say(axes, f"the first {_shown_frames(plan)} frames, as predicted (numbers: frames)")


def _draw_busy(axes: Axes, plan: Plan, busy: Busy, top: float, scale: float, end: float) -> None:
    height = _ROW_IN[busy.what]
    left, width = busy.start_s * scale, (busy.stop_s - busy.start_s) * scale
    stage = busy.what == "stage"
    colour = _colour(busy.number) if stage else "#777777"
    hatch = _hatch(plan.stages[busy.number]) if stage else None
    axes.barh(
        top + height / 2, width, 0.8 * height, left, color=tint(colour), edgecolor=colour, lw=0.9,
        hatch=hatch,
    )  # fmt: skip
    text = str(busy.frame)
    if width > end / 95 * len(text):
        axes.text(
            left + width / 2, top + height / 2, text, ha="center", va="center",
            fontsize=7.5 if stage else 6.5, bbox=_BACKED if hatch else None,
        )  # fmt: skip


def _row_name(plan: Plan, row: _Place) -> str:
    what, number, replica = row
    if what == "stage":
        stage = plan.stages[number]
        seconds = format_ms(stage.predicted_s) + " est." * stage.estimated
        return plain(f"{stage.devices[replica].name}  {seconds}")
    tensors = plan.stages[number].inputs if number < len(plan.stages) else plan.stages[-1].outputs
    return f"{format_bytes(layout(tensors)[1])}  {format_ms(plan.hop_s[number])}"


# Beside its rivals


def draw_comparison(rows: Sequence[Row], plan: Plan, path: Path) -> None:
    """Draw every baseline's objective as a bar; those without a plan say so."""
    objective = plan.objective
    values = [row.priced.value_s(objective) if row.priced else 0.0 for row in rows]
    known = [value for value in values if value > 0 and isfinite(value)]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH_IN, 0.9 + 0.36 * len(rows)), dpi=110, layout="constrained")
        axes = figure.subplots()
        for place, (row, value) in enumerate(zip(rows, values, strict=True)):
            _draw_row(axes, place, row, value)
        if known and max(known) > _SKEW * min(known):
            axes.set_xscale("log")
            axes.set_xlim(min(known) / 2, max(known) * 6)
        else:
            axes.set_xlim(0, 1.32 * max(known, default=1.0))
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        measure = {
            "latency": "seconds of latency",
            "throughput": "seconds between frames",
            "chunk": f"seconds for {plan.chunk_frames} frames",
        }[objective]
        axes.set_xlabel(f"{measure}, predicted (less is better)")
        axes.grid(axis="x", color=FAINT, lw=0.6)
        axes.set_axisbelow(True)
        _say(axes, f"{plain(plan.model_name)}: one cost model, the same constraints")
        save(figure, path)


def _draw_row(axes: Axes, place: int, row: Row, value_s: float) -> None:
    found = row.priced
    if found is None:
        text = plain(f"  no plan: {row.reason}")
        text = text if len(text) <= 100 else text[:99] + "…"
        where: Any = ("axes fraction", "data")
        axes.annotate(text, (0, place), xycoords=where, va="center", fontsize=8, color="#777777")
        return
    ours = row.name == "vaultline"
    colour = PALETTE[0] if ours else "#999999"
    axes.barh(
        place, value_s, 0.66, color=colour if ours else tint(colour), edgecolor=colour, lw=1.0,
        hatch="xxx" if found.paged else None,
    )  # fmt: skip
    number = f"{value_s:.2f} s" if value_s >= 1 else format_ms(value_s)
    ratio = "" if row.ratio is None or ours else f", {row.ratio:.2f}x"
    paged = " (paged)" if found.paged else ""
    text = f" {number}{' est.' * found.estimated}{ratio}{paged}"
    axes.text(value_s, place, text, va="center", fontsize=8.5, weight="bold" if ours else "normal")
