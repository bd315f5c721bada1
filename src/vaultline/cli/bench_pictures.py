"""Pictures of what the planner's benchmarks found, as PNG files."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vaultline.bench.planning import PlannerTimes
from vaultline.bench.serdab import PLACEMENTS, SerdabResult
from vaultline.cli.pictures import PALETTE, STYLE, save

_PREDICTED = "//"
_NAMES = {
    "two": "two enclaves",
    "worker": "enclave + plain worker",
    "accelerator": "enclave + accelerator",
    "two+accelerator": "two enclaves + accelerator",
}


def draw_serdab(found: SerdabResult, path: Path) -> None:
    """Speed-up by placement, hatched where predicted; and predicted chunks against measured."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.8), dpi=110, layout="constrained")
        bars, dots = figure.subplots(1, 2, width_ratios=(2.1, 1))
        _draw_speedups(bars, found)
        _draw_errors(dots, found)
        save(figure, path)


def draw_growth(times: PlannerTimes, path: Path) -> None:
    """Planning time against cuts, a line for each number of devices, with the fitted growth."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.5, 3.8), dpi=110, layout="constrained")
        axes = figure.subplots()
        growth = times.growth
        counts = sorted({point.devices for point in times.points})
        for turn, devices in enumerate(counts):
            points = [point for point in times.points if point.devices == devices]
            cuts = sorted({point.cuts for point in points})
            axes.scatter(
                [point.cuts for point in points],
                [point.seconds for point in points],
                s=18,
                color=PALETTE[turn],
                label=f"{devices} devices of {-(-devices // 2)} types",
            )
            fitted = [growth.seconds(cut, devices) for cut in cuts]
            axes.plot(cuts, fitted, color=PALETTE[turn], linewidth=0.9)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("cut positions")
        axes.set_ylabel("processor seconds")
        axes.set_title(
            f"planning a chunk; lines: {growth.factor:.1g} s x cuts^{growth.in_cuts:.2f} "
            f"x devices^{growth.in_devices:.2f}",
            fontsize=9,
        )
        axes.legend(frameon=False, fontsize=8)
        save(figure, path)


def _draw_speedups(axes: Axes, found: SerdabResult) -> None:
    models = list(dict.fromkeys(each.model for each in found.placed if each.placement == "one"))
    width = 0.8 / (len(PLACEMENTS) - 1)
    for turn, placement in enumerate(PLACEMENTS[1:]):
        for place, model in enumerate(models):
            speedup = found.speedup(model, placement)
            if speedup is None:
                continue
            ratio, measured = speedup
            at = place + (turn - (len(PLACEMENTS) - 2) / 2) * width
            axes.bar(
                at,
                ratio,
                width * 0.92,
                color=PALETTE[turn],
                hatch=None if measured else _PREDICTED,
                edgecolor="white",
                label=_NAMES[placement] if place == 0 else None,
            )
            axes.text(at, ratio, f"{ratio:.1f}", ha="center", va="bottom", fontsize=7)
    axes.axhline(1.0, color="#333333", linewidth=0.8)
    axes.set_xticks(range(len(models)), models, rotation=15)
    axes.set_ylabel("speed-up over one bounded enclave")
    if models:
        axes.legend(frameon=False, fontsize=8, title="hatched: predicted", title_fontsize=8)


def _draw_errors(axes: Axes, found: SerdabResult) -> None:
    """Every point within the band was predicted to 10 %."""
    places = list(dict.fromkeys(check.where for check in found.checks))
    times = [
        (check.checked.chunk.predicted_s, check.checked.chunk.measured_s) for check in found.checks
    ]
    if not times:
        axes.set_axis_off()
        return
    ends = np.array(
        [0.7 * min(min(pair) for pair in times), 1.4 * max(max(pair) for pair in times)]
    )
    axes.fill_between(ends, ends * 0.9, ends * 1.1, color="#DDDDDD", label="10 %")
    axes.plot(ends, ends, color="#999999", linewidth=0.8)
    for turn, where in enumerate(places):
        pairs = [
            pair for pair, check in zip(times, found.checks, strict=True) if check.where == where
        ]
        predicted, measured = zip(*pairs, strict=True)
        axes.scatter(predicted, measured, s=22, color=PALETTE[turn], label=where, zorder=3)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("predicted chunk, s")
    axes.set_ylabel("measured chunk, s")
    axes.legend(frameon=False, fontsize=8)
