"""Compiling the step groups of a model: every weight streamed, the workspace within a limit.

The cores of a server have a workspace each, as large as the neediest group's; messages, sessions
and weights that are kept come on top. So the limit is on the workspace alone, and a group's budget
is whatever that, its messages and the engine make together.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from msgspec import structs

from vaultline.core.errors import InfeasibleError, InputError
from vaultline.core.memory import StreamRates
from vaultline.core.profile import TILE_BYTES
from vaultline.core.program import Isa, Mode, PageMode, StageSettings
from vaultline.core.units import format_bytes
from vaultline.cost.footprint import io_bytes
from vaultline.graph.arrange import Arranger
from vaultline.graph.compile import (
    CompiledStage,
    assemble,
    check_bounded,
    compile_segment,
    limits_of,
    prepared,
    target_of,
)
from vaultline.graph.fit import Arranged
from vaultline.graph.groups import StepGroup
from vaultline.graph.structure import Model

#: Matrices are cut into tiles of up to so much, if two thirds of the workspace are as large: each
#: tile is a step, for which the engine takes memory on every core for every frame of a run. With
#: tiles of 4, 8 and 16 MiB runs took the same time within 5 %, with 2 MiB they took more.
_TILE_BYTES_MAX = 2 * TILE_BYTES
#: More than any workspace: a layout without a limit.
_UNLIMITED_BYTES = 1 << 40
#: With more steps the engine takes more than with the fewest, which the workspace must not pay for:
#: so many times as much is tried.
_ENGINE_TIMES = (1.0, 1.25, 1.5, 2.0, 3.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupTarget:
    """What all groups of a model are compiled for.

    Attributes:
        workspace_bytes: the most that a group's tensors and streamed weights may take.
        portable, isa: as for ``compile_segment``.
    """

    workspace_bytes: int
    portable: bool = False
    isa: Isa | None = None
    rates: StreamRates = field(default_factory=StreamRates)

    def __post_init__(self) -> None:
        if not 0 < self.workspace_bytes < _UNLIMITED_BYTES:
            raise InputError(
                "a workspace of that size can't be",
                got=f"{self.workspace_bytes} bytes",
                expected=f"more than none and less than {format_bytes(_UNLIMITED_BYTES)}",
            )

    @property
    def tile_bytes(self) -> int:
        """Of matrices that are cut."""
        return max(TILE_BYTES, min(_TILE_BYTES_MAX, 2 * self.workspace_bytes // 3))

    @property
    def target(self) -> Isa:
        """The instruction set that is compiled for.

        Raises:
            InputError: another one than this machine's.
        """
        return target_of(self.portable, self.isa)


def group_settings(
    number: int, groups: int, frames: int, budget_bytes: int, mode: Mode = "streamed"
) -> StageSettings:
    """Of a step group: one thread, and a queue of one run."""
    return StageSettings(
        stage=number,
        stages=groups,
        threads=1,
        budget_bytes=budget_bytes,
        mode=mode,
        frames_per_pass=frames,
        queue_frames=frames,
    )


def compile_group(
    model: Model, group: StepGroup, target: GroupTarget, *, number: int, groups: int
) -> CompiledStage:
    """Compile a step group for as many frames as the workspace has room for, up to its own.

    Bands of rows, which need less memory and more time, are for groups that don't fit even with
    one frame.

    Args:
        number, groups: which of the model's groups it is.

    Raises:
        InputError: an unusable cut, or another machine's instruction set.
        InfeasibleError: it does not fit; says which tensors need most.
    """
    isa = target.target
    made = prepared(model, group.first, group.last, isa)
    check_bounded(made)
    frames = group.frames
    while True:
        settings = group_settings(number, groups, frames, _UNLIMITED_BYTES)
        limits = replace(limits_of(settings, target.rates, prefetch=False), keep=False)
        arranger = Arranger(made, limits, target.tile_bytes, isa)
        try:
            arranged = _arranged(arranger, target.workspace_bytes)
            if frames == 1 or not arranged.bands:
                break
        except InfeasibleError as error:
            if frames == 1:
                raise _too_small(group, target, error) from error
        frames //= 2
    io = io_bytes(settings, made.inputs, made.outputs)
    budget = target.workspace_bytes + io + arranged.engine_bytes
    return assemble(arranged, group_settings(number, groups, frames, budget), isa)


def compile_paged(model: Model, target: GroupTarget, page_mode: PageMode) -> CompiledStage:
    """Compile a whole model as the one group of a server that pages, one frame a run.

    Args:
        target: its workspace is the page cache that steps must get by with.

    Raises:
        InfeasibleError: the cache is too small for a step.
    """
    isa = target.target
    settings = structs.replace(
        group_settings(0, 1, 1, _UNLIMITED_BYTES, "paged"), page_mode=page_mode
    )
    # Messages and the engine come on top here, too: first without a limit, for what they take.
    compiled = _paged(model, settings, isa)
    program = compiled.program
    io = io_bytes(settings, program.specs(program.inputs), program.specs(program.outputs))
    budget = target.workspace_bytes + io + program.engine_bytes
    return _paged(model, structs.replace(settings, budget_bytes=budget), isa)


def _paged(model: Model, settings: StageSettings, isa: Isa) -> CompiledStage:
    return compile_segment(
        model,
        0,
        model.node_count,
        settings=settings,
        step_bytes=TILE_BYTES,
        portable=isa == "portable",
        isa=isa,
    )


def _arranged(arranger: Arranger, workspace_bytes: int) -> Arranged:
    """The quickest layout whose workspace is within the limit, whatever the engine takes.

    Raises:
        InfeasibleError: there is none.
    """
    arranged = arranger.found(_UNLIMITED_BYTES, quickest=False)
    if arranged.layout.workspace_bytes <= workspace_bytes:
        return arranged
    engine = arranged.engine_bytes
    failed: InfeasibleError | None = None
    for times in _ENGINE_TIMES:
        try:
            arranged = arranger.found(workspace_bytes + int(times * engine), quickest=False)
        except InfeasibleError as error:
            failed = error
            continue
        if arranged.layout.workspace_bytes <= workspace_bytes:
            return arranged
        break
    raise failed or InfeasibleError(
        "the segment can't run in so little protected memory",
        got=f"{format_bytes(workspace_bytes)} for tensors and streamed weights",
        expected=f"at least {format_bytes(arranged.layout.workspace_bytes)}",
    )


def _too_small(group: StepGroup, target: GroupTarget, error: InfeasibleError) -> InfeasibleError:
    return InfeasibleError(
        f"nodes {group.first} to {group.last} do not fit into a workspace of "
        f"{format_bytes(target.workspace_bytes)}: {error.message}",
        got=error.got,
        expected=error.expected,
        remedy="allow a larger workspace",
    )
