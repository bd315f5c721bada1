"""A model in little memory against the plain engine in as much as it likes: time and memory."""

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
    compile_bounded,
    compile_most_frames,
    seal_stage,
)
from vaultline.bench.native import NativeModel
from vaultline.bench.native_process import NativeProcess
from vaultline.bench.noise import Array, frames_of
from vaultline.core.errors import InfeasibleError
from vaultline.core.limits import MIB
from vaultline.core.memory import MemoryPlan, StreamRates
from vaultline.cost.footprint import memory_of
from vaultline.graph.compile import CompiledStage
from vaultline.graph.model import load_model, save
from vaultline.graph.rewrite import rewrite

#: How closely the least budget is found.
_RESOLUTION_BYTES = MIB // 4
_AMPLE_BYTES = 1 << 40
_DECRYPTIONS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long to measure: rounds, and about how many seconds of the plain engine in each."""

    rounds: int = 7
    seconds: float = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One round, one after the other on one core: seconds per pass of so many frames.

    Attributes:
        native_s: the model as it is, in the plain engine, frame by frame.
        rewritten_s: the same after our rewrites, in the plain engine.
        bounded_s: one pass.
    """

    native_s: float
    rewritten_s: float
    bounded_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundedRun:
    """A model within a budget.

    Attributes:
        asked_frames: of a pass; ``frames`` is how many of them fit.
        decrypted_bytes, decrypt_s: weights that a pass decrypts, and how long that takes alone.
        max_relative_error: of its outputs, compared with the plain engine's.
    """

    model: str
    budget_bytes: int
    asked_frames: int
    frames: int
    plan: MemoryPlan
    turns: tuple[Turn, ...]
    decrypted_bytes: int
    decrypt_s: float
    memory: MemoryUse
    max_relative_error: float

    @property
    def ratio(self) -> float:
        """To the plain engine: median over rounds."""
        return statistics.median(turn.bounded_s / turn.native_s for turn in self.turns)

    @property
    def ratio_rewritten(self) -> float:
        """To the plain engine after our rewrites."""
        return statistics.median(turn.bounded_s / turn.rewritten_s for turn in self.turns)

    @property
    def limit(self) -> float:
        """The least ratio that streaming allows: the rewritten model's time in the plain engine,
        and that of the decryption, over the plain engine's."""
        native_s = statistics.median(turn.native_s for turn in self.turns)
        rewritten_s = statistics.median(turn.rewritten_s for turn in self.turns)
        return (rewritten_s + self.decrypt_s) / native_s

    @property
    def pass_s(self) -> float:
        """Median seconds of a pass."""
        return statistics.median(turn.bounded_s for turn in self.turns)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastBudget:
    """The least memory in which a model runs, and what doesn't fit into less.

    Attributes:
        all_bytes: what it takes with every weight resident.
    """

    frames: int
    budget_bytes: int
    all_bytes: int
    why: str


class Bounded:
    """One model: compiled for budgets, timed against its native sessions. A context manager.

    Attributes:
        model, expected: the untouched one, and what it makes of the frames, by output.
    """

    def __init__(self, path: Path, core: int, rates: StreamRates) -> None:
        self.model = load_model(path)
        self._path, self._core, self._rates = path, core, rates
        self._stack = ExitStack()

    def __enter__(self) -> Bounded:
        with ExitStack() as stack:
            made = tempfile.TemporaryDirectory(prefix="vaultline-bench-")
            self._folder = Path(stack.enter_context(made))
            rewritten = self._folder / "rewritten.onnx"
            save(rewrite(self.model), rewritten)
            specs = self.model.inputs
            native = NativeProcess(self._path, self._core, specs)
            self._native = stack.enter_context(native)
            self._rewritten = stack.enter_context(NativeProcess(rewritten, self._core, specs))
            self.expected = native_outputs(self._path, frames_of(specs, FRAMES))
            self._frame_s = self._native.frame_s()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def run(self, name: str, budget_bytes: int, frames: int, timing: Timing) -> BoundedRun:
        """Compile for a budget, as many frames a pass as fit, and take turns with native.

        Raises:
            InfeasibleError: not even one frame fits.
        """
        stage = compile_most_frames(self.model, budget_bytes, frames, self._rates)
        return self._measured(name, budget_bytes, frames, stage, timing)

    def least(self, frames: int) -> LeastBudget:
        """Find the least budget for passes of so many frames."""

        def compiled(budget_bytes: int) -> CompiledStage:
            return compile_bounded(self.model, budget_bytes, frames, rates=self._rates)

        whole = memory_of(compiled(_AMPLE_BYTES).program).need_bytes
        budget, error = least_feasible(compiled, whole)
        why = error.expected or error.message
        return LeastBudget(frames=frames, budget_bytes=budget, all_bytes=whole, why=why)

    def _measured(
        self, name: str, budget_bytes: int, asked: int, stage: CompiledStage, timing: Timing
    ) -> BoundedRun:
        frames = stage.program.settings.frames_per_pass
        passes = max(1, round(timing.seconds / (self._frame_s * frames)))
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            sealed = seal_stage(stage, Path(folder))
            del stage
            with BoundedProcess([sealed], budget_bytes, self._core) as process:
                process.run_s(frames, 1)
                process.weigh()
                error = self._error(process, frames)
                turns = tuple(self._turn(process, frames, passes) for _ in range(timing.rounds))
                decrypted = [process.decrypt() for _ in range(_DECRYPTIONS)]
                memory = process.memory()
        return BoundedRun(
            model=name,
            budget_bytes=budget_bytes,
            asked_frames=asked,
            frames=frames,
            plan=sealed.memory,
            turns=turns,
            decrypted_bytes=decrypted[0].decrypted_bytes,
            decrypt_s=statistics.median(each.seconds for each in decrypted),
            memory=memory,
            max_relative_error=error,
        )

    def _turn(self, process: BoundedProcess, frames: int, passes: int) -> Turn:
        self._native.start(frames * passes)
        native_s = self._native.seconds()
        bounded_s = process.run_s(frames, passes)
        self._rewritten.start(frames * passes)
        rewritten_s = self._rewritten.seconds()
        return Turn(
            native_s=native_s / passes,
            rewritten_s=rewritten_s / passes,
            bounded_s=bounded_s / passes,
        )

    def _error(self, process: BoundedProcess, frames: int) -> float:
        names = [spec.name for spec in process.stages[0].output_specs]
        return max_relative_error(names, process.outputs(frames), self.expected)


def least_feasible(
    compiled: Callable[[int], object], whole_bytes: int
) -> tuple[int, InfeasibleError]:
    """The least budget with which ``compiled`` succeeds, and how it fails with a little less.

    Args:
        whole_bytes: a budget that is enough for everything.
    """
    infeasible, feasible = 0, -(-whole_bytes // _RESOLUTION_BYTES)
    found = InfeasibleError("no memory is too little")
    while feasible - infeasible > 1:
        middle = (infeasible + feasible) // 2
        try:
            compiled(middle * _RESOLUTION_BYTES)
            feasible = middle
        except InfeasibleError as error:
            infeasible, found = middle, error
    return feasible * _RESOLUTION_BYTES, found


def sweep_budgets(least: LeastBudget, points: int) -> list[int]:
    """Budgets from the least to that of all weights resident, each larger by the same factor."""
    found = np.geomspace(least.budget_bytes, max(least.all_bytes, least.budget_bytes + 1), points)
    # Upwards: neither end may become infeasible by rounding.
    return sorted({-(-int(np.ceil(value)) // 4096) * 4096 for value in found})


def max_relative_error(
    names: Sequence[str],
    outputs: Sequence[Sequence[Array]],
    expected: Sequence[dict[str, Array]],
) -> float:
    """Largest difference in any output of any frame, relative to that output's largest value."""
    worst = 0.0
    for got, wanted in zip(outputs, expected, strict=False):
        for name, array in zip(names, got, strict=True):
            scale = float(np.abs(wanted[name]).max()) or 1.0
            error = float(np.abs(array - wanted[name]).max()) / scale
            worst = float(np.maximum(worst, error))  # what is not a number stays one
    return worst


def native_outputs(path: Path, frames: Sequence[Sequence[Array]]) -> list[dict[str, Array]]:
    """The untouched model's outputs by name; the session is gone afterwards."""
    native = NativeModel(path)
    return [dict(zip(native.outputs, native.run(frame), strict=True)) for frame in frames]
