"""``python -m vaultline.bench.bounded_worker``: sealed stages in a process of their own, timed.

It imports what an enclave's worker imports, is locked down like one, and then holds exactly what
that holds for its stages: vault sections, message and record buffers, executors. Nothing else of a
model is ever in it, so that its peak of memory is that of the stages. Stages share one ledger and
one workspace; one of them runs at a time.

One line comes in, a :class:`Job`, then commands; each is answered with a line.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import onnxruntime as ort

from vaultline.bench.bounded_memory import PeakMeter, ProcessMemory, mapped_bytes
from vaultline.core.errors import InputError, VaultlineError
from vaultline.core.frames import record_buffer_bytes
from vaultline.core.section import SectionAccess
from vaultline.core.serde import Struct, canonical_json, from_json
from vaultline.enclave.executor import Executor, check_engine, warm_up
from vaultline.enclave.hardening import harden
from vaultline.enclave.ledger import Ledger
from vaultline.enclave.pipeline import StageBuffers
from vaultline.enclave.process import local_isa
from vaultline.enclave.simulated_executor import PagedExecutor
from vaultline.enclave.vault import VaultSection

LINE_BYTES_MAX = 16 << 20
EXIT_BUG = 70


class VaultStage(Struct, frozen=True):
    """A stage in a vault file, what opens it, and its frames: raw tensors, one after another."""

    vault: str
    access: SectionAccess
    frames: str


class Job(Struct, frozen=True):
    """What to load, within how much memory."""

    budget_bytes: int
    stages: tuple[VaultStage, ...]


class Run(Struct, frozen=True, tag="run"):
    """Passes of a stage, one after another."""

    stage: int
    frames: int
    passes: int = 1


class Decrypt(Struct, frozen=True, tag="decrypt"):
    """Decrypt what a pass of a stage would, and compute nothing."""

    stage: int


class Fetch(Struct, frozen=True, tag="fetch"):
    """The outputs of the stage's last pass."""

    stage: int
    frames: int


class Weigh(Struct, frozen=True, tag="weigh"):
    """Memory up to now; the next peak begins here."""


Command = Run | Decrypt | Fetch | Weigh


class Loaded(Struct, frozen=True, tag="loaded"):
    """All stages are ready.

    Attributes:
        held: the ledger's bytes by kind.
        before: memory of a worker without a stage: imports done and the engine warmed up.
        cold: before that.
    """

    held: dict[str, int]
    before: ProcessMemory
    cold: ProcessMemory


class Pages(Struct, frozen=True):
    """What the page cache of a paged stage did: see ``simulated_epc.PageCounts, PageTimes``."""

    fresh: int
    swapped: int
    evictions: int
    cipher_s: float
    bookkeeping_s: float
    spin_s: float


class Timed(Struct, frozen=True, tag="timed"):
    """Seconds of all passes together, or of decrypting so many bytes."""

    seconds: float
    decrypted_bytes: int = 0
    pages: Pages | None = None


class Fetched(Struct, frozen=True, tag="fetched"):
    """Per frame, the bytes of each output."""

    frames: tuple[tuple[bytes, ...], ...]


class Weighed(Struct, frozen=True, tag="weighed"):
    """Memory since loading began, or since it was weighed last.

    Attributes:
        vault_mapped_bytes: of the vaults' files, as far as they are resident in the process.
        sessions: that the engine has made so far.
    """

    memory: ProcessMemory
    held: dict[str, int]
    vault_mapped_bytes: int
    sessions: int


class Failed(Struct, frozen=True, tag="failed"):
    """The last line, if something fails."""

    code: str
    message: str
    got: str | None = None
    expected: str | None = None


WorkerLine = Loaded | Timed | Fetched | Weighed | Failed


class Sessions:
    """Counts the sessions that the engine makes in this process from now on."""

    def __init__(self) -> None:
        self.count = 0
        self._made: Callable[..., Any] = ort.InferenceSession
        ort.InferenceSession = self._make

    def _make(self, *args: Any, **options: Any) -> Any:
        self.count += 1
        return self._made(*args, **options)


class _Stage:
    """One loaded stage and its frames."""

    def __init__(
        self, asked: VaultStage, section: VaultSection, ledger: Ledger, workspace: Any
    ) -> None:
        program = section.program
        check_engine(program, local_isa())
        self._section, self._workspace = section, workspace
        self.buffers = StageBuffers(program, ledger)
        # Reserved above; those that the hops' ends would make are these, every page in use.
        self.records = [
            bytearray(b"\1") * (count * record_buffer_bytes(layout.message_bytes))
            for count, layout in zip(
                program.settings.connections,
                (self.buffers.input_layout, self.buffers.output_layout),
                strict=True,
            )
        ]
        if program.settings.mode == "paged":
            self.executor: Executor = PagedExecutor(program, section, ledger)
        else:
            self.executor = Executor(program, section, ledger, workspace)
        with Path(asked.frames).open("rb", buffering=0) as file:
            for buffer in self.buffers.inputs:
                for part in buffer.parts:
                    if file.readinto(part.data) != part.nbytes:
                        raise InputError("the file of frames is too short", got=asked.frames)

    def run(self, command: Run) -> Timed:
        inputs = self.buffers.inputs[: command.frames]
        outputs = self.buffers.outputs[: command.frames]
        pages = self._pages()
        before_s = time.perf_counter()
        for _ in range(command.passes):
            for _ in self.executor.run_pass(inputs, outputs):
                pass
        seconds = time.perf_counter() - before_s
        return Timed(seconds=seconds, pages=_since(pages, self._pages()))

    def _pages(self) -> Pages | None:
        """What its page cache has done so far."""
        if not isinstance(self.executor, PagedExecutor):
            return None
        counts, times = self.executor.cache.counts, self.executor.cache.times
        return Pages(
            fresh=counts.fresh,
            swapped=counts.swapped,
            evictions=counts.evictions,
            cipher_s=times.cipher_s,
            bookkeeping_s=times.bookkeeping_s,
            spin_s=times.spin_s,
        )

    def decrypt(self) -> Timed:
        """To where a pass would decrypt it; between passes nothing else is there."""
        program = self._section.program
        total, before_s = 0, time.perf_counter()
        for step in program.steps:
            places = {each.weight: each.offset for each in step.weights}
            for index, offset in places.items():
                weight = program.weights[index]
                if weight.resident_at is None:
                    part = self._workspace[offset : offset + weight.spec.nbytes]
                    self._section.read_weight_into(index, part.data)
                    total += weight.spec.nbytes
        return Timed(seconds=time.perf_counter() - before_s, decrypted_bytes=total)

    def fetch(self, frames: int) -> Fetched:
        outputs = self.buffers.outputs[:frames]
        return Fetched(
            frames=tuple(tuple(part.tobytes() for part in each.parts) for each in outputs)
        )


def _since(before: Pages | None, after: Pages | None) -> Pages | None:
    if before is None or after is None:
        return None
    names = Pages.__struct_fields__
    return Pages(**{name: getattr(after, name) - getattr(before, name) for name in names})


def work(job: Job, meter: PeakMeter, ask: Callable[[], Command | None], fd: int) -> None:
    """Load the stages and serve commands until there are no more.

    Raises:
        VaultlineError: a vault doesn't open, a program is for another machine, or the memory
            doesn't suffice.
    """
    vaults = {stage.vault: os.open(stage.vault, os.O_RDONLY) for stage in job.stages}
    harden(read_paths=[Path(stage.frames) for stage in job.stages])
    cold = meter.now()
    warm_up()
    made = Sessions()
    before = meter.reset()
    ledger = Ledger(job.budget_bytes)
    sections = [VaultSection(vaults[stage.vault], stage.access) for stage in job.stages]
    programs = [section.program for section in sections]
    # Those of paged stages are in their page caches.
    shared = [each.workspace_bytes for each in programs if each.settings.mode != "paged"]
    workspace = ledger.take("idle", max(shared, default=0), "the workspace")
    stages = [
        _Stage(asked, section, ledger, workspace)
        for asked, section in zip(job.stages, sections, strict=True)
    ]
    say(fd, Loaded(held=_held(ledger), before=before, cold=cold))
    while (command := ask()) is not None:
        match command:
            case Run():
                say(fd, stages[command.stage].run(command))
            case Decrypt():
                say(fd, stages[command.stage].decrypt())
            case Fetch():
                say(fd, stages[command.stage].fetch(command.frames))
            case Weigh():
                say(fd, _weighed(meter, ledger, vaults, made.count))
                meter.reset()


def _held(ledger: Ledger) -> dict[str, int]:
    return {str(kind): size for kind, size in ledger.held.items()}


def _weighed(meter: PeakMeter, ledger: Ledger, vaults: Collection[str], sessions: int) -> Weighed:
    memory = meter.now()  # before the text that says what is mapped takes any
    mapped = mapped_bytes(Path("/proc/self/smaps").read_text(), vaults)
    return Weighed(memory=memory, held=_held(ledger), vault_mapped_bytes=mapped, sessions=sessions)


def say(fd: int, line: WorkerLine) -> None:
    """Write one line, whole."""
    data = canonical_json(line) + b"\n"
    while data:
        data = data[os.write(fd, data) :]


def _ask() -> Command | None:
    line = sys.stdin.buffer.readline(LINE_BYTES_MAX)
    return from_json(line, Command, what="a command") if line else None  # type: ignore[arg-type]


def main() -> None:
    """Do the job on standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the command's to handle
    fd = os.dup(1)
    os.dup2(2, 1)  # lines are ours alone: whatever else prints is a message
    try:
        meter = PeakMeter()
        line = sys.stdin.buffer.readline(LINE_BYTES_MAX)
        work(from_json(line, Job, what="the job"), meter, _ask, fd)
    except BrokenPipeError:
        os._exit(0)
    except VaultlineError as error:
        said = Failed(
            code=error.code, message=error.message, got=error.got, expected=error.expected
        )
        say(fd, said)
        os._exit(error.exit_code)
    except Exception as error:
        message = f"{type(error).__name__} in the worker"
        say(fd, Failed(code="bug", message=message, got=str(error)[:1000]))
        os._exit(EXIT_BUG)
    os._exit(0)


if __name__ == "__main__":
    main()
