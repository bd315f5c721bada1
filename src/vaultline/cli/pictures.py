"""The look of all pictures, and the picture of a run; that of a plan is in ``plan_picture``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vaultline.cli.common import printable
from vaultline.core.errors import InputError

#: Okabe and Ito's palette: told apart with every common kind of colour blindness.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
INK, FAINT = "#333333", "#DDDDDD"
STYLE: Any = {
    "font.size": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "vaultline",
}
SOFTWARE = {"Software": None}
#: Frames whose bars can still be told apart in one picture.
TIMELINE_FRAMES_MAX = 40


Records = Sequence[Mapping[str, Any]]


def draw_timeline(records: Records, path: Path, devices: Sequence[Sequence[str]] = ()) -> None:
    """Draw when each stage computed each frame, one row a device.

    Frames of one pass (same start and stop) share a bar; its colour is that of the first.

    Args:
        records: per frame ``{"frame": n, "stages": [(start_ns, stop_ns), ...]}``, one pair per
            stage, all on one clock. Only the first frames are drawn where there are many.
        devices: names of each stage's; its frames go round them. One if none are named.

    Raises:
        InputError: no records, or records with different numbers of stages.
    """
    counts = {len(record["stages"]) for record in records}
    if len(counts) != 1 or counts == {0}:
        raise InputError("a timeline needs records that all have the same stages", got=str(counts))
    count = counts.pop()
    shown = sorted(records, key=lambda record: int(record["frame"]))[:TIMELINE_FRAMES_MAX]
    zero_ns = min(start for record in shown for start, _ in record["stages"])
    end_ns = max(stop for record in shown for _, stop in record["stages"])
    rows = _device_rows(shown, count, devices)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 1.3 + 0.62 * len(rows)), dpi=110, layout="constrained")
        axes = figure.subplots()
        for row, (_, passes) in enumerate(rows):
            _draw_row(axes, passes, row, zero_ns, (end_ns - zero_ns) / 1e6)
        axes.set_yticks(range(len(rows)), [f"{name}\n{_busy(p):.0%} busy" for name, p in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, (end_ns - zero_ns) / 1e6)
        axes.set_xlabel("ms")
        axes.grid(axis="x", color=FAINT, lw=0.6)
        axes.set_axisbelow(True)
        more = f" of {len(records)}" if len(records) > len(shown) else ""
        title = f"{len(shown)} frames{more} through {count} stage{'s'[: count > 1]}"
        axes.set_title(title, loc="left", fontsize=10)
        save(figure, path)


Passes = dict[tuple[int, int], list[int]]


def _device_rows(
    records: Records, stages: int, devices: Sequence[Sequence[str]]
) -> list[tuple[str, Passes]]:
    """Name and passes of each device: frame n runs on the n-th of its stage's, in turn."""
    rows = []
    for stage in range(stages):
        names = devices[stage] if stage < len(devices) else [f"stage {stage}"]
        for turn, name in enumerate(names):
            own = [record for record in records if int(record["frame"]) % len(names) == turn]
            rows.append((plain(name), _passes(own, stage)))
    return rows


def _passes(records: Records, stage: int) -> Passes:
    """Frames by the (start, stop) of their computation: those of one pass share it."""
    passes: Passes = {}
    for record in records:
        start_ns, stop_ns = record["stages"][stage]
        passes.setdefault((start_ns, stop_ns), []).append(int(record["frame"]))
    return passes


def _draw_row(axes: Axes, passes: Passes, row: int, zero_ns: int, span_ms: float) -> None:
    """One device's passes, numbered by their frames where there is room."""
    for (start_ns, stop_ns), frames in passes.items():
        left, width = (start_ns - zero_ns) / 1e6, (stop_ns - start_ns) / 1e6
        colour = PALETTE[frames[0] % len(PALETTE)]
        axes.barh(row, width, 0.66, left, color=tint(colour), edgecolor=colour, lw=1.0)
        text = str(frames[0]) if len(frames) == 1 else f"{frames[0]}–{frames[-1]}"
        if width > span_ms / 110 * len(text):
            axes.text(left + width / 2, row, text, ha="center", va="center", fontsize=7)


def _busy(passes: Passes) -> float:
    """Share of the time from its first pass to its last that a device computed."""
    spans = list(passes)
    if not spans:  # fewer frames than devices
        return 0.0
    length = max(stop for _, stop in spans) - min(start for start, _ in spans)
    return float(sum(stop - start for start, stop in spans) / length) if length else 1.0


def tint(colour: str) -> tuple[float, float, float]:
    """A light version of a colour, on which dark text is readable."""
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return (0.62 + 0.38 * red, 0.62 + 0.38 * green, 0.62 + 0.38 * blue)


def plain(text: str) -> str:
    """Text of a file or a user, which the engine that draws it must not take for a formula."""
    return printable(text).replace("$", r"\$")


def save(figure: Figure, path: Path) -> None:
    """Write a figure as the kind that the file's name asks for: PNG, or SVG of real text."""
    FigureCanvasAgg(figure)
    kind = path.suffix.lower().lstrip(".") or "png"
    figure.savefig(path, format=kind, metadata={"Date": None} if kind == "svg" else SOFTWARE)
