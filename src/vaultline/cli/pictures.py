"""Pictures of a plan and of a run, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from vaultline.core.errors import InputError
from vaultline.core.plan import Plan
from vaultline.core.profile import ModelProfile
from vaultline.core.tensors import layout
from vaultline.core.units import format_bytes, format_ms

#: Okabe and Ito's palette: told apart with every common kind of colour blindness.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
_INK, _FAINT = "#333333", "#DDDDDD"
_STYLE: Any = {
    "font.size": 9,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
}
#: A largest layer this many times the median one calls for a logarithmic scale.
_SKEW = 20
#: Frames whose bars can still be told apart in one picture.
TIMELINE_FRAMES_MAX = 40


def draw_plan(plan: Plan, profile: ModelProfile, path: Path) -> None:
    """Draw the model's layers, coloured by device, with the time and memory of each.

    Raises:
        InputError: the plan is of another model than the profile.
    """
    if plan.model_digest != profile.model_digest:
        raise InputError("the plan and the profile are of different models")
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9, 5.2), dpi=110, layout="constrained")
        pipeline, times, sizes = figure.subplots(3, 1, height_ratios=(1.15, 1.4, 1.4))
        _draw_pipeline(pipeline, plan)
        _draw_times(times, plan, profile)
        _draw_sizes(sizes, plan, profile)
        times.sharex(sizes)
        times.tick_params(labelbottom=False)
        sizes.set_xlabel("node of the model, in topological order")
        predicted = plan.predicted
        figure.suptitle(
            f"{plan.model_name}: latency {format_ms(predicted['latency_s'])}, "
            f"a frame every {format_ms(predicted['bottleneck_s'])} (predicted)",
            fontsize=11,
        )
        _save(figure, path)


def _draw_pipeline(axes: Axes, plan: Plan) -> None:
    """Owner, devices and owner again in a row, with what goes between them."""
    count = len(plan.stages)
    small = max(3.0, min(8.0, 44 / (count + 1)))
    axes.set_axis_off()
    axes.set_xlim(-0.75, count + 0.75)
    axes.set_ylim(-0.75, 0.75)
    ends = (plan.stages[0].inputs, *(stage.outputs for stage in plan.stages))
    for number, stage in enumerate(plan.stages):
        middle = number + 0.5
        _box(axes, middle, 0.36, PALETTE[number % len(PALETTE)])
        text = (
            f"nodes {stage.first}:{stage.last}\n{format_ms(stage.predicted_s)}\n{stage.mode}\n"
            f"{stage.frames_per_pass} frame{'s'[: stage.frames_per_pass > 1]} a pass"
        )
        name = f"{stage.device.name} ({stage.device.kind})" if count < 6 else stage.device.name
        axes.text(middle, 0.6, name, ha="center", va="center", weight="bold", fontsize=small + 1)
        axes.text(middle, 0, text, ha="center", va="center", fontsize=small)
    for at, ha in ((-0.48, "right"), (count + 0.48, "left")):
        axes.text(at, 0, "owner", ha=ha, va="center", weight="bold")
    for hop, (tensors, seconds) in enumerate(zip(ends, plan.hop_s, strict=True)):
        left, right = hop - (0.44 if hop == 0 else 0.12), hop + (0.44 if hop == count else 0.12)
        arrow = {"arrowstyle": "-|>", "color": _INK, "lw": 1.2, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", xy=(right, 0), xytext=(left, 0), arrowprops=arrow)
        label = f"{format_bytes(layout(tensors)[1])}\n{format_ms(seconds)}"
        axes.text((left + right) / 2, -0.62, label, ha="center", va="center", fontsize=small - 1)


def _box(axes: Axes, middle: float, half: float, colour: str) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (middle - half, -0.42),
            2 * half,
            0.84,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor=_tint(colour),
            edgecolor=colour,
            lw=1.6,
        )
    )


def _draw_times(axes: Axes, plan: Plan, profile: ModelProfile) -> None:
    times_ms = [block.compute_pass_s(1) * 1e3 for block in profile.blocks]
    _bars(axes, plan, profile, times_ms)
    axes.set_ylabel("ms per frame")
    axes.set_title("time of each layer, as profiled", loc="left", fontsize=9)


def _draw_sizes(axes: Axes, plan: Plan, profile: ModelProfile) -> None:
    weights = [block.weight_bytes / 2**20 for block in profile.blocks]
    activations = [
        (block.activation_bytes + block.scratch_bytes) / 2**20 for block in profile.blocks
    ]
    _bars(axes, plan, profile, weights)
    lefts, widths = _extents(profile)
    edges = [*lefts, lefts[-1] + widths[-1]]
    axes.stairs(activations, edges, color=_INK, lw=1.0, label="activations of a frame")
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    largest, usual = max(*weights, *activations), median([*weights, *activations])
    skewed = largest > _SKEW * usual
    if skewed:
        # Fully connected layers would flatten all others to a line.
        axes.set_yscale("symlog", linthresh=1.0)
        axes.set_ylim(0, 4 * max(largest, 1.0))
        axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("MiB")
    title = "memory of each layer: weights (bars)" + (", log scale above 1 MiB" * skewed)
    axes.set_title(title, loc="left", fontsize=9)


def _extents(profile: ModelProfile) -> tuple[list[int], list[int]]:
    positions = profile.positions
    lefts = list(positions[:-1])
    return lefts, [b - a for a, b in pairwise(positions)]


def _bars(axes: Axes, plan: Plan, profile: ModelProfile, heights: Sequence[float]) -> None:
    """One bar per block, in the colour of the stage that holds it; dashed lines at the cuts."""
    lefts, widths = _extents(profile)
    stage_of = {
        node: number
        for number, stage in enumerate(plan.stages)
        for node in range(stage.first, stage.last)
    }
    colours = [PALETTE[stage_of[left] % len(PALETTE)] for left in lefts]
    axes.bar(lefts, heights, widths, align="edge", color=colours, edgecolor="white", lw=0.3)
    for stage in plan.stages[1:]:
        axes.axvline(stage.first, color=_INK, lw=0.9, ls=(0, (4, 3)))
    axes.set_xlim(0, profile.positions[-1])
    axes.grid(axis="y", color=_FAINT, lw=0.6)
    axes.set_axisbelow(True)


def draw_timeline(
    records: Sequence[Mapping[str, Any]], path: Path, labels: Sequence[str] = ()
) -> None:
    """Draw when each stage computed each frame, one row a stage.

    Frames of one pass (same start and stop) share a bar; its colour is that of the first.

    Args:
        records: per frame ``{"frame": n, "stages": [(start_ns, stop_ns), ...]}``, one pair per
            stage, all on one clock. Only the first frames are drawn where there are many.
        labels: names of the stages.

    Raises:
        InputError: no records, or records with different numbers of stages.
    """
    rows = {len(record["stages"]) for record in records}
    if len(rows) != 1 or rows == {0}:
        raise InputError("a timeline needs records that all have the same stages", got=str(rows))
    count = rows.pop()
    shown = sorted(records, key=lambda record: int(record["frame"]))[:TIMELINE_FRAMES_MAX]
    zero_ns = min(start for record in shown for start, _ in record["stages"])
    end_ns = max(stop for record in shown for _, stop in record["stages"])
    names = [labels[n] if n < len(labels) else f"stage {n}" for n in range(count)]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9, 1.3 + 0.62 * count), dpi=110, layout="constrained")
        axes = figure.subplots()
        for row in range(count):
            _draw_row(axes, shown, row, zero_ns, (end_ns - zero_ns) / 1e6)
        busy = [_busy(shown, row) for row in range(count)]
        ticks = [f"{name}\n{share:.0%} busy" for name, share in zip(names, busy, strict=True)]
        axes.set_yticks(range(count), ticks)
        axes.set_ylim(count - 0.5, -0.5)
        axes.set_xlim(0, (end_ns - zero_ns) / 1e6)
        axes.set_xlabel("ms")
        axes.grid(axis="x", color=_FAINT, lw=0.6)
        axes.set_axisbelow(True)
        more = f" of {len(records)}" if len(records) > len(shown) else ""
        title = f"{len(shown)} frames{more} through {count} stage{'s'[: count > 1]}"
        axes.set_title(title, loc="left", fontsize=10)
        _save(figure, path)


def _passes(records: Sequence[Mapping[str, Any]], row: int) -> dict[tuple[int, int], list[int]]:
    """Frames by the (start, stop) of their computation: those of one pass share it."""
    passes: dict[tuple[int, int], list[int]] = {}
    for record in records:
        start_ns, stop_ns = record["stages"][row]
        passes.setdefault((start_ns, stop_ns), []).append(int(record["frame"]))
    return passes


def _draw_row(
    axes: Axes, records: Sequence[Mapping[str, Any]], row: int, zero_ns: int, span_ms: float
) -> None:
    """One stage's passes, numbered by their frames where there is room."""
    for (start_ns, stop_ns), frames in _passes(records, row).items():
        left, width = (start_ns - zero_ns) / 1e6, (stop_ns - start_ns) / 1e6
        colour = PALETTE[frames[0] % len(PALETTE)]
        axes.barh(row, width, 0.66, left, color=_tint(colour), edgecolor=colour, lw=1.0)
        text = str(frames[0]) if len(frames) == 1 else f"{frames[0]}–{frames[-1]}"
        if width > span_ms / 110 * len(text):
            axes.text(left + width / 2, row, text, ha="center", va="center", fontsize=7)


def _busy(records: Sequence[Mapping[str, Any]], row: int) -> float:
    """Share of the time from its first pass to its last that a stage computed."""
    spans = list(_passes(records, row))
    length = max(stop for _, stop in spans) - min(start for start, _ in spans)
    return float(sum(stop - start for start, stop in spans) / length) if length else 1.0


def _tint(colour: str) -> tuple[float, float, float]:
    """A light version of a colour, on which dark text is readable."""
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return (0.62 + 0.38 * red, 0.62 + 0.38 * green, 0.62 + 0.38 * blue)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, format="png", metadata={"Software": None})
