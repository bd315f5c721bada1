"""The picture of bounded execution: time against budget, a panel for each model."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from vaultline.bench.bounded import BUDGETS, BoundedResult
from vaultline.bench.bounded_ratio import BoundedRun, LeastBudget
from vaultline.cli.pictures import FAINT, INK, PALETTE, STYLE, plain, save
from vaultline.core.limits import MIB

_COLUMNS = 5


def draw_bounded(found: BoundedResult, path: Path) -> None:
    """Time of a pass over the plain engine's against the budget, down to the least one."""
    names = [name for name, runs in found.sweep.items() if runs]
    across = min(_COLUMNS, max(1, len(names)))
    down = max(1, -(-len(names) // across))
    with mpl.rc_context(STYLE):
        size = (max(5.0, 2.5 * across), 0.7 + 2.3 * down)
        figure = Figure(figsize=size, dpi=110, layout="constrained")
        grid = figure.subplots(down, across, squeeze=False)
        panels = [axes for row in grid for axes in row]
        for axes in panels[len(names) :]:
            axes.set_axis_off()
        for axes, name in zip(panels, names, strict=False):
            _draw_model(axes, name, found.sweep[name], found.least.get(name, ()))
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=4, frameon=False, fontsize=8)
        figure.supxlabel("protected memory, MiB", fontsize=9)
        figure.supylabel("time, native = 1", fontsize=9)
        save(figure, path)


def _draw_model(
    axes: Axes, name: str, runs: Sequence[BoundedRun], least: Sequence[LeastBudget]
) -> None:
    axes.axhline(1.0, color=INK, linewidth=0.8, label="native")
    rewritten = statistics.median(run.ratio / run.ratio_rewritten for run in runs)
    axes.axhline(rewritten, color=INK, linewidth=0.8, linestyle=":", label="native, rewritten")
    for turn, frames in enumerate(sorted({run.asked_frames for run in runs})):
        points = sorted(
            (run.budget_bytes / MIB, run.ratio) for run in runs if run.asked_frames == frames
        )
        axes.plot(
            [budget for budget, _ in points],
            [ratio for _, ratio in points],
            color=PALETTE[turn],
            marker="o",
            markersize=3,
            linewidth=1.1,
            label=f"{frames} frame{'s'[: frames > 1]} a pass",
        )
    low = min(run.budget_bytes for run in runs) / MIB
    high = max(run.budget_bytes for run in runs) / MIB
    for budget in BUDGETS:
        if low <= budget / MIB <= high:
            axes.axvline(budget / MIB, color=FAINT, linewidth=0.8, zorder=0)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    ticks = sorted(
        {round(low), *(b // MIB for b in BUDGETS[::2] if low < b / MIB < high), round(high)}
    )
    axes.set_xticks(_apart(ticks))
    top = max(1.0, rewritten, *(run.ratio for run in runs))
    axes.set_ylim(0, top * 1.12)
    axes.set_title(plain(name), fontsize=9)
    if least:
        budgets = ", ".join(f"{each.budget_bytes / MIB:.1f}" for each in least)
        axes.text(0.03, 0.05, f"least: {budgets} MiB", transform=axes.transAxes, fontsize=7)


def _apart(ticks: Sequence[int]) -> list[int]:
    """Without those whose labels would run into the one before."""
    kept: list[int] = []
    for tick in ticks:
        if not kept or tick > kept[-1] * 1.35:
            kept.append(tick)
    return kept
