"""Several models in one process, pass by pass in turn: they share a budget and a workspace.

One runs at a time, so the workspace is as large as the neediest needs it, while every model's
resident weights, sessions and messages are there all the time. A byte that stays saves the same
decryption whichever model it belongs to, but a smaller workspace leaves more of them, at the price
of more and shorter steps: the budget is divided exactly, over the layouts of each model that its
compiler finds for a range of budgets.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vaultline.bench.bounded_process import (
    FRAMES,
    BoundedProcess,
    MemoryUse,
    SealedStage,
    compile_bounded,
    seal_stage,
)
from vaultline.bench.bounded_ratio import Timing, max_relative_error, native_outputs
from vaultline.bench.native_process import NativeProcess
from vaultline.bench.noise import frames_of
from vaultline.core.errors import InfeasibleError
from vaultline.core.limits import MIB
from vaultline.core.memory import MemoryPlan, StreamRates
from vaultline.core.units import format_bytes
from vaultline.cost.footprint import memory_of
from vaultline.graph.model import load_model
from vaultline.graph.structure import Model
from vaultline.graph.zoo import build

#: Together 945 MiB.
SWITCHED = ("vgg19", "resnet50", "googlenet", "alexnet", "densenet121")
_UNIT_BYTES = 16 << 10
_TIMING = Timing()


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way of compiling a model.

    Attributes:
        budget_bytes: that it was compiled for.
        own_bytes: what it holds besides the workspace.
        seconds: predicted, of a pass besides computing.
    """

    budget_bytes: int
    workspace_bytes: int
    own_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What a model got of the budget."""

    model: str
    plan: MemoryPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchingTurn:
    """One round: seconds of each model's frames in the plain engine, and of its pass in ours."""

    native_s: tuple[float, ...]
    bounded_s: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchingResult:
    """Models in turn.

    Attributes:
        workspace_bytes: that they share.
        sessions_made: by the engine after every model's first pass.
    """

    budget_bytes: int
    frames: int
    workspace_bytes: int
    shares: tuple[Share, ...]
    turns: tuple[SwitchingTurn, ...]
    sessions_made: int
    memory: MemoryUse
    max_relative_error: float

    @property
    def ratio(self) -> float:
        """Sum of the passes' times to that of the plain engines': median over rounds."""
        return statistics.median(sum(turn.bounded_s) / sum(turn.native_s) for turn in self.turns)


def divide(options: Sequence[Sequence[Option]], budget_bytes: int) -> tuple[Option, ...]:
    """The choice of one option per model that takes the least time within a budget.

    For every size of the shared workspace, a knapsack over what the models hold besides it.

    Raises:
        InfeasibleError: even what needs least is too much.
    """
    best: tuple[float, tuple[Option, ...]] | None = None
    for workspace in sorted({each.workspace_bytes for some in options for each in some}):
        usable = [[each for each in some if each.workspace_bytes <= workspace] for some in options]
        found = _knapsack(usable, (budget_bytes - workspace) // _UNIT_BYTES)
        if found is not None and (best is None or found[0] < best[0]):
            best = found
    if best is None:
        workspace = max(min(each.workspace_bytes for each in some) for some in options)
        own = sum(min(each.own_bytes for each in some) for some in options)
        raise InfeasibleError(
            "the models don't fit together into the protected memory",
            got=format_bytes(budget_bytes),
            expected=f"at least {format_bytes(own)}, and a workspace of {format_bytes(workspace)}",
            remedy="give more memory, fewer models, or fewer frames a pass",
        )
    return best[1]


def _knapsack(
    options: Sequence[Sequence[Option]], room: int
) -> tuple[float, tuple[Option, ...]] | None:
    """Least seconds and the choice, within ``room`` units."""
    if room < 0 or not all(options):
        return None
    cost = np.zeros(room + 1)  # by how many units are used at most
    picks = []
    for some in options:
        after, pick = np.full(room + 1, np.inf), np.full(room + 1, -1)
        for index, each in enumerate(some):
            size = -(-each.own_bytes // _UNIT_BYTES)
            if size > room:
                continue
            with_it = cost[: room + 1 - size] + each.seconds
            better = with_it < after[size:]
            after[size:][better] = with_it[better]
            pick[size:][better] = index
        cost = after
        picks.append(pick)
    if not np.isfinite(cost[room]):
        return None
    chosen: list[Option] = []
    left = room
    for some, pick in zip(reversed(options), reversed(picks), strict=True):
        option = some[int(pick[left])]
        chosen.append(option)
        left -= -(-option.own_bytes // _UNIT_BYTES)
    return float(cost[room]), tuple(reversed(chosen))


def option_of(plan: MemoryPlan, budget_bytes: int, frames: int, rates: StreamRates) -> Option:
    """What a compiled model holds, and what streaming costs it."""
    calls = sum(1 if step.frames > 1 else frames for step in plan.steps)
    return Option(
        budget_bytes=budget_bytes,
        workspace_bytes=plan.workspace_bytes,
        own_bytes=plan.need_bytes - plan.workspace_bytes,
        seconds=plan.streamed_bytes / rates.decrypt_bytes_per_s + calls * rates.step_s,
    )


class Divider:
    """Finds each model's share; compiles for coarse budgets first, then finely around the best."""

    def __init__(self, models: Sequence[Model], budget_bytes: int, rates: StreamRates) -> None:
        self._models, self._budget, self._rates = models, budget_bytes, rates
        self._found: list[dict[int, Option]] = [{} for _ in models]

    def shares(self, coarse: int, fine: int) -> tuple[Option, ...]:
        """The division of the budget, from steps of so many bytes, then finer ones.

        Raises:
            InfeasibleError: it doesn't suffice for all of the models.
        """
        for number in range(len(self._models)):
            self._add(number, range(coarse, self._budget + coarse, coarse))
        chosen = self._divided()
        for number, option in enumerate(chosen):
            least, most = option.budget_bytes - coarse, option.budget_bytes + coarse
            self._add(number, range(max(least, fine), most + fine, fine))
        return self._divided()

    def _divided(self) -> tuple[Option, ...]:
        return divide([list(found.values()) for found in self._found], self._budget)

    def _add(self, number: int, budgets: range) -> None:
        for budget in budgets:
            if budget in self._found[number]:
                continue
            try:
                stage = compile_bounded(self._models[number], budget, FRAMES, rates=self._rates)
            except InfeasibleError:
                continue
            plan = memory_of(stage.program)
            self._found[number][budget] = option_of(plan, budget, FRAMES, self._rates)
            if not plan.streamed_bytes:
                return  # nor would more memory change anything


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchingRequest:
    """Which models take turns, within how much; ``coarse`` and ``fine``: see ``Divider``."""

    zoo: Path
    core: int
    models: tuple[str, ...] = SWITCHED
    budget_bytes: int = 93 * MIB
    timing: Timing = _TIMING
    coarse: int = 8 * MIB
    fine: int = MIB


def bench_switching(
    request: SwitchingRequest, rates: StreamRates, tell: Callable[[str], None]
) -> SwitchingResult:
    """Measure: every model's frames in a plain engine of its own, then its pass in the process
    that all share, and the next model.

    Raises:
        InfeasibleError: the budget doesn't suffice for all of the models.
    """
    tell("dividing the budget")
    models = [load_model(build(name, request.zoo)) for name in request.models]
    divider = Divider(models, request.budget_bytes, rates)
    chosen = divider.shares(request.coarse, request.fine)
    with ExitStack() as stack:
        made = tempfile.TemporaryDirectory(prefix="vaultline-bench-")
        folder = Path(stack.enter_context(made))
        sealed = []
        for name, model, option in zip(request.models, models, chosen, strict=True):
            tell(f"sealing {name}")
            compiled = compile_bounded(model, option.budget_bytes, FRAMES, rates=rates)
            sealed.append(seal_stage(compiled, folder))
        natives = [
            stack.enter_context(NativeProcess(build(name, request.zoo), request.core, model.inputs))
            for name, model in zip(request.models, models, strict=True)
        ]
        process = BoundedProcess(sealed, request.budget_bytes, request.core)
        stack.enter_context(process)
        tell("the first pass of each")
        error = _first_passes(request, models, process)
        sessions = process.weigh().sessions
        turns = []
        for number in range(request.timing.rounds):
            tell(f"round {number + 1} of {request.timing.rounds}")
            turns.append(_turn(natives, process))
        made_later = process.weigh().sessions - sessions
        memory = process.memory()
    return SwitchingResult(
        budget_bytes=request.budget_bytes,
        frames=FRAMES,
        workspace_bytes=max(stage.program.workspace_bytes for stage in sealed),
        shares=_shares(request.models, sealed),
        turns=tuple(turns),
        sessions_made=made_later,
        memory=memory,
        max_relative_error=error,
    )


def _shares(names: Sequence[str], sealed: Sequence[SealedStage]) -> tuple[Share, ...]:
    return tuple(
        Share(model=name, plan=stage.memory) for name, stage in zip(names, sealed, strict=True)
    )


def _first_passes(
    request: SwitchingRequest, models: Sequence[Model], process: BoundedProcess
) -> float:
    """Every model's first pass, then its outputs, after all others have used the workspace too."""
    for _ in range(2):
        for number in range(len(models)):
            process.run_s(FRAMES, 1, stage=number)
    worst = 0.0
    for number, (name, model) in enumerate(zip(request.models, models, strict=True)):
        expected = native_outputs(build(name, request.zoo), frames_of(model.inputs, FRAMES))
        names = [spec.name for spec in process.stages[number].output_specs]
        error = max_relative_error(names, process.outputs(FRAMES, stage=number), expected)
        worst = float(np.maximum(worst, error))
    return worst


def _turn(natives: Sequence[NativeProcess], process: BoundedProcess) -> SwitchingTurn:
    native_s, bounded_s = [], []
    for number, native in enumerate(natives):
        native.start(FRAMES)
        native_s.append(native.seconds())
        bounded_s.append(process.run_s(FRAMES, 1, stage=number))
    return SwitchingTurn(native_s=tuple(native_s), bounded_s=tuple(bounded_s))
