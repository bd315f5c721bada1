"""The picture of `bench lasagna`: throughput, latency at two rates, and a server killed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from vaultline.bench.lasagna_results import OURS, SHARE, Killed, LasagnaResult
from vaultline.cli.pictures import FAINT, INK, PALETTE, STYLE, plain, save

_OURS, _THEIRS, _PAGED = PALETTE[0], PALETTE[4], PALETTE[7]
_MEAN, _P95 = PALETTE[2], PALETTE[1]
#: Answers are counted in so many steps of the run with a killed server.
_STEPS = 40


def draw_lasagna(found: LasagnaResult, path: Path) -> None:
    """A row of panels; policies from the slowest to the fastest."""
    names = sorted(found.names(), key=lambda name: found.throughput(name) or 0.0)
    rates = list(dict.fromkeys(each.rate_of for each in found.offered))
    with mpl.rc_context(STYLE):
        down = 2 if found.killed is not None else 1
        height = 1.2 + 0.34 * len(names) + (2.3 if down == 2 else 0)
        figure = Figure(figsize=(11.5, height), dpi=110, layout="constrained")
        across = 1 + len(rates)
        grid = figure.add_gridspec(down, across, height_ratios=(1.6, 1)[:down])
        _draw_throughput(figure.add_subplot(grid[0, 0]), found, names)
        for turn, rate_of in enumerate(rates):
            axes = figure.add_subplot(grid[0, 1 + turn])
            _draw_latency(axes, found, names, rate_of)
        if rates:
            _legend(figure)
        if found.killed is not None:
            _draw_killed(figure.add_subplot(grid[1, :]), found.killed)
        save(figure, path)


def _draw_throughput(axes: Axes, found: LasagnaResult, names: Sequence[str]) -> None:
    for place, name in enumerate(names):
        rates = [e.throughput for e in found.saturated if e.contender.name == name]
        rate = found.throughput(name) or 0.0
        paged = next(e.contender.paged for e in found.saturated if e.contender.name == name)
        colour = _OURS if name == OURS else _PAGED if paged else _THEIRS
        axes.barh(place, rate, 0.7, color=colour)
        axes.plot([min(rates), max(rates)], [place, place], color=INK, linewidth=1.0)
        axes.text(max(rates), place, f" {rate:.1f}", va="center", fontsize=8)
    axes.set_yticks(range(len(names)), [_label(name) for name in names])
    axes.set_xlim(0, 1.15 * max((e.throughput for e in found.saturated), default=1.0))
    axes.set_xlabel("answers per second, all requests at once")
    axes.set_title("throughput (median; lines: all rounds)", loc="left", fontsize=9)


def _draw_latency(axes: Axes, found: LasagnaResult, names: Sequence[str], rate_of: str) -> None:
    """From the mean to the 95th percentile; hollow where a policy does not keep up: any latency
    comes to those who offer long enough."""
    for place, name in enumerate(names):
        mean_s, p95_s = (found.latency(name, rate_of, which) for which in ("mean_s", "p95_s"))
        if mean_s is None or p95_s is None:
            continue
        keeps_up = found.keeps_up(name, rate_of)
        bound = "≥ " if any(e.summary.unanswered for e in found.runs(name, rate_of)) else ""
        axes.plot([mean_s, p95_s], [place, place], color=FAINT, linewidth=3, zorder=1)
        for seconds, colour, mark in ((mean_s, _MEAN, "o"), (p95_s, _P95, "D")):
            face = colour if keeps_up else "white"
            axes.scatter(seconds, place, s=34, marker=mark, color=face, edgecolor=colour, zorder=2)
        text = f"{bound}{_shown(mean_s)}, {bound}{_shown(p95_s)}"
        axes.annotate(text, (p95_s, place), (7, 0), textcoords="offset points", va="center", size=7)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * (high / low) ** 0.55)  # room for the labels
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: _shown(seconds)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(names)), [""] * len(names))
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    rate = next(each.rate_per_s for each in found.offered if each.rate_of == rate_of)
    whose = "Vaultline's" if rate_of == OURS else "the best baseline's"
    axes.set_title(f"latency at {rate:.1f}/s: {SHARE:.0%} of {whose}", loc="left", fontsize=9)


def _legend(figure: Figure) -> None:
    marks = [
        Line2D([], [], marker="o", linestyle="", color=_MEAN, label="mean"),
        Line2D([], [], marker="D", linestyle="", color=_P95, label="95th percentile"),
        Line2D([], [], marker="o", linestyle="", color=INK, mfc="white", label="can't keep up"),
    ]
    figure.legend(handles=marks, loc="outside upper right", ncols=3, frameon=False, fontsize=8)


def _draw_killed(axes: Axes, killed: Killed) -> None:
    end_s = max(killed.answers_s, default=1.0)
    edges = [end_s * step / _STEPS for step in range(_STEPS + 1)]
    rates = [
        sum(low <= when < high for when in killed.answers_s) / (high - low)
        for low, high in pairwise(edges)
    ]
    axes.stairs(rates, edges, color=_OURS, fill=True, alpha=0.35)
    axes.axvline(killed.killed_s, color=PALETTE[5], linewidth=1.2, label="server killed")
    axes.axvspan(
        killed.killed_s,
        killed.killed_s + killed.recovery_s,
        color=FAINT,
        zorder=0,
        label=f"its {killed.held} requests answered by the other, {killed.recovery_s:.2f} s",
    )
    axes.axhline(killed.rate_per_s, color=INK, linestyle=":", linewidth=0.9, label="offered")
    axes.set_xlim(0, end_s)
    axes.set_xlabel("seconds")
    axes.set_ylabel("answers per second")
    axes.set_title(
        f"one of two servers killed: {killed.requests} requests, {killed.lost} lost, "
        f"{killed.doubled} answered twice",
        loc="left",
        fontsize=9,
    )
    axes.set_ylim(0, 1.35 * max((*rates, killed.rate_per_s)))
    axes.legend(frameon=False, fontsize=7, loc="upper right", ncols=3)


def _label(name: str) -> str:
    policy, _, paged = name.partition(".")
    return plain(f"{policy}, paged ({paged})" if paged else policy)


def _shown(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1e3:.0f} ms"
