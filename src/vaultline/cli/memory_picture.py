"""Protected memory over the steps of a pass, stage by stage, against what the device has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from vaultline.cli.pictures import FAINT, INK, PALETTE, plain, tint
from vaultline.core.memory import MemoryPlan, StepMemory
from vaultline.core.plan import Plan, PlannedStage
from vaultline.core.units import format_bytes

#: Heights of the legend and of the row of panels, in inches.
MEMORY_IN = (0.28, 1.9)
#: Stages side by side; more would be too narrow to read.
_STAGES_SHOWN = 6
#: Steps that are parts of one block are drawn at most this wide: there may be a hundred.
_PARTS_WIDE = 5
_MIB = float(1 << 20)
#: Kinds in the order of the stack, and their colours.
_KINDS: Mapping[str, str | tuple[float, float, float]] = {
    "engine": PALETTE[7],
    "message buffers": tint(PALETTE[7]),
    "weights that stay": PALETTE[0],
    "tensors": PALETTE[2],
    "weights of the step": PALETTE[1],
    "of the next": tint(PALETTE[1]),
    "free": "#F3F3F3",
}


@dataclass(frozen=True, slots=True)
class _Column:
    """Steps with the same nodes, and how wide they are drawn."""

    step: StepMemory
    following: int
    count: int

    @property
    def width(self) -> int:
        return min(self.count, _PARTS_WIDE)


def planned_stages(plan: Plan) -> list[int]:
    """The stages that are drawn: those whose use of memory is planned."""
    return [n for n, stage in enumerate(plan.stages) if stage.memory is not None][:_STAGES_SHOWN]


def draw_memory(figure: Figure, rows: tuple[Axes, Axes], plan: Plan, shown: Sequence[int]) -> None:
    """One panel for each stage in the place of the second of two axes; the first is the legend."""
    legend, axes = rows
    _draw_legend(legend)
    panels = [axes]
    place = axes.get_subplotspec()
    if len(shown) > 1 and place is not None:
        axes.remove()
        places = place.subgridspec(1, len(shown), wspace=0.1)
        panels = [figure.add_subplot(places[column]) for column in range(len(shown))]
    for panel, number in zip(panels, shown, strict=True):
        stage = plan.stages[number]
        if stage.memory is not None:
            _draw_stage(panel, stage, stage.memory)
            panel.set_title(_title(stage, len(shown)), loc="left", fontsize=9, pad=3)
    panels[0].set_ylabel("MiB")


def _draw_legend(axes: Axes) -> None:
    axes.set_axis_off()
    axes.legend(
        handles=[Patch(color=colour, label=kind) for kind, colour in _KINDS.items()],
        loc="center left",
        ncols=len(_KINDS),
        fontsize=7.5,
        frameon=False,
        handlelength=1.0,
        columnspacing=1.2,
        borderpad=0.0,
        borderaxespad=0.0,
    )


def _title(stage: PlannedStage, shown: int) -> str:
    if shown == 1:
        budget = format_bytes(stage.device.memory_bytes)
        return f"protected memory over the steps of a pass (of {budget})"
    return plain(f"{stage.device.name}: {format_bytes(stage.device.memory_bytes)}")


def _columns(memory: MemoryPlan) -> list[_Column]:
    """Steps of equal nodes together, as large as the largest of them."""
    ahead = [step.streamed_bytes for step in memory.steps[1:]] + [0]
    found = []
    pairs = zip(memory.steps, ahead, strict=True)
    for _, run in groupby(pairs, key=lambda pair: (pair[0].first, pair[0].last)):
        members = list(run)
        largest = max(members, key=lambda pair: pair[0].streamed_bytes)[0]
        following = max(after for _, after in members) if memory.prefetch else 0
        found.append(_Column(largest, following, len(members)))
    return found


def _draw_stage(axes: Axes, stage: PlannedStage, memory: MemoryPlan) -> None:
    """A stack per step: what is held all the time, then what the step itself takes."""
    columns = _columns(memory)
    edges = list(accumulate((column.width for column in columns), initial=0))
    constant = (memory.engine_bytes, memory.io_bytes, memory.resident_bytes)
    stacks = [
        [*constant, column.step.activation_bytes, column.step.streamed_bytes, column.following]
        for column in columns
    ]
    stacks = [[*stack, max(0, memory.need_bytes - sum(stack))] for stack in stacks]
    below = [0.0] * len(columns)
    for place, colour in enumerate(_KINDS.values()):
        top = [low + stack[place] / _MIB for low, stack in zip(below, stacks, strict=True)]
        axes.stairs(top, edges, baseline=below, fill=True, color=colour, lw=0)
        below = top
    budget, most = stage.device.memory_bytes / _MIB, max(below)
    near = budget < 3 * most
    if near:
        axes.axhline(budget, color=INK, lw=1.2)
    axes.set_xlim(0, edges[-1])
    axes.set_ylim(0, 1.08 * (max(budget, most) if near else most))
    for column, left in zip(columns, edges, strict=False):
        if column.count > _PARTS_WIDE and column.width > edges[-1] / 25:
            axes.text(
                left + column.width / 2, sum(constant) / _MIB / 2, f"{column.count}\nsteps",
                ha="center", va="center", fontsize=7.5, color="white",
            )  # fmt: skip
    for edge in edges[1:-1]:
        axes.axvline(edge, color="white", lw=0.4)
    _label_nodes(axes, columns, edges)
    axes.grid(axis="y", color=FAINT, lw=0.6)
    axes.set_axisbelow(True)


def _label_nodes(axes: Axes, columns: Sequence[_Column], edges: Sequence[int]) -> None:
    """Which node of the model some of the steps begin with, not too close to each other."""
    nodes = [*(column.step.first for column in columns), columns[-1].step.last]
    places: list[int] = []
    labels: list[str] = []
    for edge, node in zip(edges, nodes, strict=True):
        if not places or edge - places[-1] >= edges[-1] / 12:
            places.append(edge)
            labels.append(str(node))
    axes.set_xticks(places, labels)
    axes.set_xlabel("first node of a step", fontsize=8)
