"""Compiled stages, sealed and then run in a bounded process: see ``bounded_worker``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from msgspec import structs

from vaultline.bench.bounded_memory import page_cache_bytes
from vaultline.bench.bounded_worker import (
    LINE_BYTES_MAX,
    Command,
    Decrypt,
    Failed,
    Fetch,
    Fetched,
    Job,
    Loaded,
    Run,
    Timed,
    VaultStage,
    Weigh,
    Weighed,
    WorkerLine,
)
from vaultline.bench.noise import Array, frames_of
from vaultline.bench.stage_bench import bench_settings
from vaultline.core.errors import InfeasibleError, MachineError
from vaultline.core.memory import MemoryPlan, StreamRates
from vaultline.core.profile import TILE_BYTES
from vaultline.core.program import Mode, PageMode, StageProgram
from vaultline.core.serde import canonical_json, from_json
from vaultline.core.tensors import TensorSpec
from vaultline.cost.footprint import memory_of
from vaultline.graph.compile import CompiledStage, compile_segment
from vaultline.graph.structure import Model
from vaultline.host.launcher import start_module
from vaultline.owner.keyfile import new_keys
from vaultline.owner.seal import seal_vault

MODULE = "vaultline.bench.bounded_worker"
FRAMES = 4
Line = TypeVar("Line", bound=WorkerLine)


def compile_bounded(
    model: Model,
    budget_bytes: int,
    frames: int,
    *,
    rates: StreamRates | None = None,
    mode: Mode = "streamed",
    page_mode: PageMode = "crypto",
) -> CompiledStage:
    """A whole model as one stage on one core, whose queue is as long as a pass.

    Raises:
        InfeasibleError: it doesn't fit; says which node needs most.
    """
    settings = structs.replace(
        bench_settings(frames), budget_bytes=budget_bytes, mode=mode, page_mode=page_mode
    )
    return compile_segment(
        model, 0, model.node_count, settings=settings, step_bytes=TILE_BYTES, rates=rates
    )


def compile_most_frames(
    model: Model, budget_bytes: int, frames: int, rates: StreamRates | None = None
) -> CompiledStage:
    """As many frames a pass as fit, up to ``frames``.

    Raises:
        InfeasibleError: not even one fits.
    """
    for count in range(frames, 0, -1):
        try:
            return compile_bounded(model, budget_bytes, count, rates=rates)
        except InfeasibleError:
            if count == 1:
                raise
    raise ValueError("a pass has at least one frame")


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedStage:
    """A stage in a vault: all that is left of it here, besides its program without weights."""

    program: StageProgram
    asked: VaultStage

    @property
    def memory(self) -> MemoryPlan:
        """How it uses its budget."""
        return memory_of(self.program)

    @property
    def output_specs(self) -> tuple[TensorSpec, ...]:
        """Of its results."""
        return self.program.specs(self.program.outputs)


def seal_stage(stage: CompiledStage, folder: Path) -> SealedStage:
    """Seal a stage into a new vault in ``folder``, with its frames of seeded noise beside it."""
    keys = new_keys()
    turn = len(list(folder.iterdir()))
    vault, frames = folder / f"{turn}.vault", folder / f"{turn}.frames"
    sealing = seal_vault(
        vault, [stage], model_key=keys.model_key, plan_digest=bytes(32), model_digest="none"
    )
    with frames.open("wb") as file:
        for frame in frames_of(stage.program.specs(stage.program.inputs), FRAMES):
            for tensor in frame:
                file.write(np.ascontiguousarray(tensor).tobytes())
    access = sealing.access(keys.model_key, 0)
    asked = VaultStage(vault=str(vault), access=access, frames=str(frames))
    return SealedStage(program=stage.program, asked=asked)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """What a process took for its stages, beyond what it took before it opened a vault.

    Attributes:
        peak_bytes: at its most, everything counted but the vaults' pages: buffers, sessions, the
            program, code that is read in from the libraries' files as it is first run.
        code_bytes: of those, the last.
        held_bytes: what the ledger says.
        vault_mapped_bytes: pages of the vaults' files in the process; not in the others.
        page_cache_bytes: of the vaults, in the kernel: nobody's protected memory.
        idle_bytes: what the process took before, its engine warmed up; imported_bytes: before
            that.
    """

    budget_bytes: int
    peak_bytes: int
    code_bytes: int
    held_bytes: int
    vault_mapped_bytes: int
    page_cache_bytes: int
    idle_bytes: int
    imported_bytes: int

    @property
    def over_budget(self) -> float:
        """By which share of the budget the peak is beyond it; negative within."""
        return self.peak_bytes / self.budget_bytes - 1.0


def memory_use(
    budget_bytes: int, loaded: Loaded, weighed: Sequence[Weighed], page_cache_bytes: int
) -> MemoryUse:
    """The difference between readings.

    Pages of the vaults come into the process until each weight has been read once, and then stay.
    So the kernel's peak of a time in which they only grow was at its end, with all of them; and in
    that of later passes they were always there: both less those pages are the rest's peak.
    """
    before, last = loaded.before, weighed[-1]
    peak = max(each.memory.peak_bytes - each.vault_mapped_bytes for each in weighed)
    return MemoryUse(
        budget_bytes=budget_bytes,
        peak_bytes=peak - before.resident_bytes,
        code_bytes=last.memory.file_bytes - before.file_bytes - last.vault_mapped_bytes,
        held_bytes=sum(last.held.values()),
        vault_mapped_bytes=last.vault_mapped_bytes,
        page_cache_bytes=page_cache_bytes,
        idle_bytes=before.resident_bytes,
        imported_bytes=loaded.cold.resident_bytes,
    )


class BoundedProcess:
    """A process with sealed stages, pinned to a core: a context manager."""

    def __init__(self, stages: Sequence[SealedStage], budget_bytes: int, core: int) -> None:
        self.stages = tuple(stages)
        self._budget_bytes = budget_bytes
        self._core = core
        self._weighed: list[Weighed] = []

    def __enter__(self) -> BoundedProcess:
        self._popen = start_module(MODULE, [self._core])
        asked = tuple(stage.asked for stage in self.stages)
        try:
            self._write(Job(budget_bytes=self._budget_bytes, stages=asked))
            self._loaded = self._read(Loaded)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._popen.kill()
        self._popen.wait()
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                pipe.close()

    def run(self, frames: int, passes: int, stage: int = 0) -> Timed:
        """Passes of so many frames, one after another."""
        self._write(Run(stage=stage, frames=frames, passes=passes))
        return self._read(Timed)

    def run_s(self, frames: int, passes: int, stage: int = 0) -> float:
        """Seconds of such passes."""
        return self.run(frames, passes, stage).seconds

    def decrypt(self, stage: int = 0) -> Timed:
        """Bytes that a pass decrypts, and how long that takes by itself."""
        self._write(Decrypt(stage=stage))
        return self._read(Timed)

    def outputs(self, frames: int, stage: int = 0) -> list[list[Array]]:
        """Of the last pass, per frame, in the order of the program's outputs."""
        self._write(Fetch(stage=stage, frames=frames))
        specs = self.stages[stage].output_specs
        return [
            [
                np.frombuffer(data, spec.dtype).reshape(spec.shape)
                for data, spec in zip(parts, specs, strict=True)
            ]
            for parts in self._read(Fetched).frames
        ]

    def weigh(self) -> Weighed:
        """Memory and sessions since it was weighed last: first after each stage's first pass."""
        self._write(Weigh())
        self._weighed.append(self._read(Weighed))
        return self._weighed[-1]

    def memory(self) -> MemoryUse:
        """What it has taken at most so far."""
        self.weigh()
        cached = sum(page_cache_bytes(Path(stage.asked.vault)) for stage in self.stages)
        return memory_use(self._budget_bytes, self._loaded, self._weighed, cached)

    def _write(self, line: Job | Command) -> None:
        if self._popen.stdin is not None:
            self._popen.stdin.write(canonical_json(line) + b"\n")
            self._popen.stdin.flush()

    def _read(self, kind: type[Line]) -> Line:
        data = b"" if self._popen.stdout is None else self._popen.stdout.readline(LINE_BYTES_MAX)
        if not data:
            raise MachineError("a bounded worker has died", got=f"status {self._popen.wait()}")
        line: WorkerLine = from_json(data, WorkerLine, what="a line")  # type: ignore[arg-type]
        if isinstance(line, Failed):
            raise MachineError(
                f"a bounded worker failed: {line.message}", got=line.got, expected=line.expected
            )
        if not isinstance(line, kind):
            raise MachineError("a bounded worker said something else", got=type(line).__name__)
        return line
