"""The picture of a simulation: latencies and throughput of all policies, then for each of them its
servers' cores, memory and weights over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from vaultline.cli.pictures import FAINT, INK, PALETTE, STYLE, plain, save, tint
from vaultline.core.limits import MIB
from vaultline.sim.results import Happening, PolicyResult, ServerResult
from vaultline.sim.study import SimulationResult

#: Policies whose servers are drawn; all are compared.
DETAILED_MAX = 6
#: Step groups that a timeline of weights has rows for: those that moved most.
_GROUPS_SHOWN = 14
#: Servers whose weights are drawn; with more, loads and evictions are counted.
_SERVERS_SHOWN = 3
#: Parts of the time for which they are counted.
_BINS = 60
_PERCENTILES = (("p50_s", "median"), ("p95_s", "p95"), ("p99_s", "p99"))
_KINDS: Mapping[str, str | tuple[float, float, float]] = {
    "fixed": PALETTE[7],
    "resident": PALETTE[0],
    "workspace": PALETTE[1],
    "carried": PALETTE[2],
}
_Residence = tuple[str, float, float]


def draw_simulation(found: SimulationResult, path: Path) -> None:
    """Draw all policies side by side, and what the servers of the first ones did."""
    detailed = found.policies[:DETAILED_MAX]
    top_in = 0.9 + 0.3 * len(found.policies)
    heights = [top_in, *(2.2 for _ in detailed)]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12.5, sum(heights) + 0.3), dpi=110, layout="constrained")
        grid = figure.add_gridspec(
            1 + len(detailed), 3, height_ratios=heights, width_ratios=(3, 3, 4)
        )
        latency = figure.add_subplot(grid[0, :2])
        _draw_latencies(latency, found.policies)
        _draw_throughput(figure.add_subplot(grid[0, 2], sharey=latency), found)
        most_bytes = max(_memory_bytes(each) for each in found.policies)
        end_s = max(each.series.seconds[-1] for each in found.policies if each.series)
        for row, policy in enumerate(detailed, 1):
            panels = [figure.add_subplot(grid[row, column]) for column in range(3)]
            panels[0].set_title(plain(policy.policy), loc="left", fontsize=10, fontweight="bold")
            _draw_cores(panels[0], policy)
            _draw_memory(panels[1], policy, most_bytes)
            _draw_weights(panels[2], policy)
            for axes in panels:
                _finish(axes, end_s)
        save(figure, path)


def _draw_latencies(axes: Axes, policies: Sequence[PolicyResult]) -> None:
    """Median to p99 of each policy as a line, the mean as a bar across."""
    for row, each in enumerate(policies):
        found = each.latency
        if found is None:
            axes.text(0.5, row, "nothing answered", transform=axes.get_yaxis_transform())
            continue
        values = [getattr(found, name) * 1e3 for name, _ in _PERCENTILES]
        axes.plot(values[::2], [row, row], color=FAINT, lw=5, solid_capstyle="butt", zorder=1)
        axes.plot(found.mean_s * 1e3, row, "|", color=INK, ms=11, mew=1.6, label=_once("mean", row))
        for place, (value, (_, label)) in enumerate(zip(values, _PERCENTILES, strict=True)):
            axes.plot(
                value, row, "o", color=PALETTE[place], ms=6, zorder=2, label=_once(label, row)
            )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("latency of answered requests, ms")
    axes.set_yticks(range(len(policies)), [plain(each.policy) for each in policies])
    axes.set_ylim(len(policies) - 0.5, -0.5)
    axes.grid(axis="x", color=FAINT, lw=0.6)
    axes.set_axisbelow(True)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles, labels, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, fontsize=8
    )


def _once(label: str, row: int) -> str | None:
    return label if row == 0 else None


def _draw_throughput(axes: Axes, found: SimulationResult) -> None:
    """Answered a second, in time and late, against what was asked."""
    for row, each in enumerate(found.policies):
        late = each.missed / each.seconds if each.seconds else 0.0
        axes.barh(row, each.throughput_per_s - late, 0.6, color=PALETTE[0])
        axes.barh(row, late, 0.6, each.throughput_per_s - late, color=tint(PALETTE[0]))
        said = f" {each.throughput_per_s:.1f}"
        said += f", {each.missed} late" if each.missed else ""
        said += f", {each.refused} refused" if each.refused else ""
        right = max(each.throughput_per_s, found.rate_per_s)
        axes.text(right, row, said, va="center", fontsize=8)
    axes.axvline(found.rate_per_s, color=INK, lw=1)
    widest = max(found.rate_per_s, *(each.throughput_per_s for each in found.policies))
    axes.set_xlim(0, widest * 1.5)
    axes.tick_params(labelleft=False)
    axes.set_xlabel("answered a second (the line: asked)")


def _draw_cores(axes: Axes, policy: PolicyResult) -> None:
    """Busy cores of all servers together, and how many requests wait."""
    cores = sum(server.cores for server in policy.servers)
    found = policy.series
    if found is None:
        return
    axes.stairs(found.busy_cores, found.seconds, fill=True, color=PALETTE[4])
    axes.set_ylim(0, cores * 1.05)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_ylabel(f"busy cores of {cores}", color=PALETTE[0])
    waiting = axes.twinx()
    waiting.stairs(found.queued, found.seconds, color=PALETTE[5], lw=1)
    waiting.set_ylabel("waiting requests", color=PALETTE[5])
    waiting.set_ylim(0, None)
    waiting.spines["right"].set_visible(True)


def _draw_memory(axes: Axes, policy: PolicyResult, most_bytes: int) -> None:
    """What memory is held for, a stack of all servers together."""
    found = policy.series
    if found is None:
        return
    kinds = [*_KINDS, *sorted({*found.held_bytes} - {*_KINDS})]
    below = [0.0] * len(found.busy_cores)
    for turn, kind in enumerate(kinds):
        held = found.held_bytes.get(kind, (0.0,) * len(below))
        top = [low + more / MIB for low, more in zip(below, held, strict=True)]
        if any(a > b for a, b in zip(top, below, strict=True)):
            colour = _KINDS.get(kind, PALETTE[(turn + 1) % len(PALETTE)])
            axes.stairs(top, found.seconds, baseline=below, fill=True, color=colour, label=kind)
        below = top
    axes.axhline(_memory_bytes(policy) / MIB, color=INK, lw=1)
    axes.set_ylim(0, most_bytes / MIB * 1.05)
    axes.set_ylabel("MiB held (the line: all)")
    _legend(axes)


def _draw_weights(axes: Axes, policy: PolicyResult) -> None:
    """When which weights were kept; or with many servers, how often that changed."""
    if policy.series is None:
        return
    edges = policy.series.seconds
    if len(policy.servers) > _SERVERS_SHOWN:
        _draw_changes(axes, policy, edges)
    else:
        _draw_residences(axes, policy.servers, edges[-1])


def _draw_residences(axes: Axes, servers: Sequence[ServerResult], end_s: float) -> None:
    """A row for each step group, a lane in it for each server."""
    kept = {server.name: residences(server.happened, end_s) for server in servers}
    counts: dict[str, int] = {}
    for of, _, _ in (each for lanes in kept.values() for each in lanes):
        counts[of] = counts.get(of, 0) + 1
    shown = sorted(sorted(counts, key=lambda of: -counts[of])[:_GROUPS_SHOWN])
    height = 0.8 / len(servers)
    for lane, server in enumerate(servers):
        colour = PALETTE[(0, 1, 2)[lane]]
        bars: dict[int, list[tuple[float, float]]] = {}
        for of, start_s, stop_s in kept[server.name]:
            if of in shown:
                bars.setdefault(shown.index(of), []).append((start_s, stop_s - start_s))
        for row, spans in bars.items():
            axes.broken_barh(spans, (row - 0.4 + lane * height, height * 0.9), color=colour, lw=0)
        axes.plot([], [], color=colour, lw=4, label=plain(server.name))
    more = len(counts) - len(shown)
    labels = [f"{plain(of)} ({counts[of]})" for of in shown]
    axes.set_yticks(range(len(shown)), labels, fontsize=7)
    axes.set_ylim(max(1, len(shown)) - 0.5, -0.5)
    title = "weights that stay (times loaded)" + (f", {more} more groups" if more else "")
    axes.set_title(title, loc="right", fontsize=7.5)
    _legend(axes)
    if not shown:
        axes.text(0.5, 0.5, "no weights were kept", transform=axes.transAxes, ha="center")
        axes.set_yticks([])


def _draw_changes(axes: Axes, policy: PolicyResult, edges: Sequence[float]) -> None:
    """Loads upwards and evictions downwards, for each part of the time."""
    bins = list(edges[:: max(1, len(edges) // _BINS)])
    for what, sign, colour in (("load", 1.0, PALETTE[0]), ("evict", -1.0, PALETTE[1])):
        times = [
            each.now_s for server in policy.servers for each in server.happened if each.what == what
        ]
        label = {"load": "loads", "evict": "evictions"}[what]
        axes.hist(times, bins=bins, weights=[sign] * len(times), color=colour, label=label)
    axes.axhline(0, color=INK, lw=0.8)
    axes.set_ylabel("loads, evictions")
    _legend(axes)


def residences(happened: Sequence[Happening], end_s: float) -> list[_Residence]:
    """(group, from, until) of weights that were kept; those still there stay until the end."""
    since: dict[str, float] = {}
    found: list[_Residence] = []
    for each in happened:
        if each.what == "load":
            since.setdefault(each.of, each.now_s)
            continue
        gone = [of for of in since if _goes(of, each)]
        found += [(of, since.pop(of), each.now_s) for of in gone]
    return found + [(of, start_s, end_s) for of, start_s in since.items()]


def _goes(group: str, with_: Happening) -> bool:
    """Whether a group's weights go with what happened."""
    whole_model = with_.what == "remove" and group.rpartition("/")[0] == with_.of
    return with_.what == "lost" or group == with_.of or whole_model


def _memory_bytes(policy: PolicyResult) -> int:
    return sum(server.memory_bytes for server in policy.servers)


def _legend(axes: Axes) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 0.98), ncols=4, frameon=False, fontsize=7.5,
                handlelength=1.0, columnspacing=1.0)  # fmt: skip


def _finish(axes: Axes, end_s: float) -> None:
    axes.set_xlim(0, end_s)
    axes.set_xlabel("s", fontsize=8, labelpad=1)
    axes.grid(color=FAINT, lw=0.6)
    axes.set_axisbelow(True)
