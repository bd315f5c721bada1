"""The picture of `bench sim`: simulated over measured, and decisions in large clusters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from vaultline.bench.fidelity import KINDS, FidelityResult
from vaultline.bench.sim_scale import ScaleRow
from vaultline.cli.pictures import FAINT, INK, PALETTE, STYLE, plain, save

#: How far off each kind may be.
TOLERANCES = {"throughput": 0.10, "mean": 0.15, "p95": 0.20}
_TICKS_US = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def draw_sim(fidelity: FidelityResult | None, scale: Sequence[ScaleRow], path: Path) -> None:
    """A panel for each half that is there."""
    draw: list[Callable[[Axes], None]] = []
    if fidelity is not None:
        draw.append(partial(_draw_fidelity, found=fidelity))
    if scale:
        draw.append(partial(_draw_decisions, rows=scale))
    with mpl.rc_context(STYLE):
        size = (1.0 + 4.7 * max(1, len(draw)), 3.6)
        figure = Figure(figsize=size, dpi=110, layout="constrained")
        panels = figure.subplots(1, max(1, len(draw)), squeeze=False)[0]
        for axes, panel in zip(panels, draw, strict=False):
            panel(axes)
        save(figure, path)


def _draw_fidelity(axes: Axes, found: FidelityResult) -> None:
    """A row for each workload; bands are what is allowed."""
    names = [each.workload for each in found.compared]
    axes.axvline(1.0, color=INK, linewidth=0.8)
    for turn, kind in enumerate(KINDS):
        at = (turn - (len(KINDS) - 1) / 2) * 0.24
        for place, each in enumerate(found.compared):
            allowed = TOLERANCES[kind]
            axes.barh(place + at, 2 * allowed, 0.2, left=1 - allowed, color=FAINT, zorder=0)
            axes.scatter(
                each.ratio(kind),
                place + at,
                s=30,
                color=PALETTE[turn] if each.counts else "white",
                edgecolor=PALETTE[turn],
                label=kind if place == 0 else None,
                zorder=3,
            )
    axes.set_yticks(range(len(names)), [plain(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.75), max(high, 1.25))
    axes.set_xlabel("simulated over measured (grey: allowed)")
    axes.set_title("two servers, three workloads (hollow: beside them)", loc="left", fontsize=9)
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)


def _draw_decisions(axes: Axes, rows: Sequence[ScaleRow]) -> None:
    sizes = [row.servers for row in rows]
    first = rows[0]
    root = [first.decision_us * (size / first.servers) ** 0.5 for size in sizes]
    axes.plot(sizes, root, color=INK, linestyle=":", linewidth=1.0, label="square root")
    axes.plot(
        sizes,
        [row.decision_us for row in rows],
        color=PALETTE[0],
        marker="o",
        markersize=4,
        label="mean decision",
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(NullFormatter())
    axes.set_xticks(sizes)
    low = min(*root, *(row.decision_us for row in rows))
    high = max(*root, *(row.decision_us for row in rows))
    axes.set_ylim(low / 1.6, high * 1.6)
    axes.set_yticks([tick for tick in _TICKS_US if low / 2 < tick < high * 2])
    axes.set_xlabel("servers")
    axes.set_ylabel("us")
    last = rows[-1]
    title = f"balancing {last.models} models: {last.requests:,} requests in {last.seconds:.0f} s"
    axes.set_title(f"{title} on {last.servers} servers", loc="left", fontsize=9)
    axes.legend(frameon=False, fontsize=8)
