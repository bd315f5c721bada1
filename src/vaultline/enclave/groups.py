"""A step group in memory: its sessions on every core, and its weights while they are kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import onnxruntime as ort

from vaultline.core.errors import MachineError
from vaultline.core.frames import FrameLayout, StageTimes
from vaultline.core.program import StageProgram
from vaultline.core.tensors import align
from vaultline.enclave.executor import Executor, FrameBuffer, _LoadedStep, _value
from vaultline.enclave.ledger import BudgetExceededError, Bytes
from vaultline.enclave.shared_ledger import Account, SharedLedger
from vaultline.enclave.vault import VaultSection


class Ran(NamedTuple):
    """Decrypting weights in a run: bytes and seconds."""

    streamed_bytes: int
    decrypt_s: float


def kept_bytes(program: StageProgram) -> int:
    """Bytes of a buffer for all weights of a program, each of them aligned."""
    return sum(align(weight.spec.nbytes) for weight in program.weights)


#: What is bound in place of a message that is gone.
_NOTHING = ort.OrtValue.ortvalue_from_numpy(np.zeros(1, np.float32))


class GroupExecutor(Executor):
    """One core's use of a step group, whose weights are kept for all cores or for none."""

    _decrypt_s = 0.0
    _kept_weights: Sequence[Bytes] | None = None

    def use(self, kept: Sequence[Bytes] | None) -> None:
        """Read each weight from here in the next runs, or decrypt it in each of them."""
        if kept is self._kept_weights:
            return
        if self._kept_weights is None:
            self._streaming = self._steps
        self._kept_weights = kept
        self._steps = self._streaming
        if kept is not None:
            self._steps = [self._keeping(loaded, kept) for loaded in self._streaming]

    @property
    def streamed(self) -> Ran:
        """In all runs so far."""
        return Ran(self._streamed_bytes, self._decrypt_s)

    def _keeping(self, loaded: _LoadedStep, kept: Sequence[Bytes]) -> _LoadedStep:
        specs = [weight.spec for weight in self._program.weights]
        values = [
            (each.input, _value(kept[each.weight], specs[each.weight]))
            for each in loaded.step.weights
        ]
        return _LoadedStep(loaded.step, loaded._session, values, (), 0, self._program)

    def _decrypt(self, loaded: _LoadedStep) -> None:
        if loaded.streamed:
            before_s = time.perf_counter()
            super()._decrypt(loaded)
            self._decrypt_s += time.perf_counter() - before_s

    def _run_one(
        self, loaded: _LoadedStep, frame: int, before: FrameBuffer, after: FrameBuffer
    ) -> None:
        """Messages are released after a run: no binding may hold on to them until the next."""
        try:
            super()._run_one(loaded, frame, before, after)
        finally:
            binding = loaded.binding(frame, 1, self._kept)
            for name, _ in (*loaded.inputs, *loaded.reread):
                binding.bind_ortvalue_input(name, _NOTHING)
            for name, _ in loaded.outputs:
                binding.bind_ortvalue_output(name, _NOTHING)


class Group:
    """A step group of an installed model.

    Attributes:
        before, after: layouts of the messages that a request brings and takes away.
        frames: the most requests of one run.
        doomed: its weights go as soon as nothing runs with them.
    """

    def __init__(
        self,
        section: VaultSection,
        ledger: SharedLedger,
        executors: Sequence[GroupExecutor],
    ) -> None:
        self.program, self._section, self._ledger = section.program, section, ledger
        self.executors = executors
        settings = self.program.settings
        self.before, self.after = (
            FrameLayout(self.program.specs(ends), settings.stages)
            for ends in (self.program.inputs, self.program.outputs)
        )
        self.frames, self.doomed = settings.frames_per_pass, False
        self._kept: list[Bytes] | None = None
        self._resident = Account(ledger)
        self._holding = threading.Lock()

    def hold(self) -> float:
        """Decrypt all weights to where they stay, unless they do already; seconds that it took.

        Raises:
            BudgetExceededError: the ledger has too little.
            VaultError: a weight does not verify; none of them stays.
        """
        with self._holding:
            if self._kept is not None or self.program.settings.mode == "paged":
                return 0.0
            before_s = time.perf_counter()
            try:
                self._kept = self._decrypted()
            except BaseException:
                self._resident.close()
                raise
            return time.perf_counter() - before_s

    def _decrypted(self) -> list[Bytes]:
        size_bytes, found, start = kept_bytes(self.program), [], 0
        buffer = self._resident.take("resident", size_bytes, "weights that are to stay")
        for index, weight in enumerate(self.program.weights):
            found.append(buffer[start : start + weight.spec.nbytes])
            self._section.read_weight_into(index, found[-1].data)
            start += align(weight.spec.nbytes)
        return found

    def drop(self) -> None:
        """Forget the weights; nothing may run with them."""
        for executor in self.executors:
            executor.use(None)
        self._kept, self.doomed = None, False
        self._resident.close()

    def run(
        self,
        core: int,
        inputs: Sequence[FrameBuffer],
        outputs: Sequence[FrameBuffer],
        times: StageTimes,
    ) -> Ran:
        """Take requests through, with their times as in a pipeline's stage.

        Args:
            times: when they arrived, and what opening them took.

        Raises:
            MachineError: the engine failed.
            RefusedError: a weight does not verify.
        """
        executor = self.executors[core]
        executor.use(self._kept)
        before = executor.streamed
        together = len(inputs) if executor.ends_stacked else 1
        started_ns = finished_ns = time.monotonic_ns()
        for position in executor.run_pass(inputs, outputs):
            if together == 1 or position == 0:
                started_ns, finished_ns = finished_ns, time.monotonic_ns()
            self.after.copy_meta(inputs[position].message, outputs[position].message)
            mine = times._replace(
                started_ns=started_ns,
                finished_ns=finished_ns,
                compute_ns=(finished_ns - started_ns) // together,
            )
            stage = self.program.settings.stage
            self.after.write_times(outputs[position].message, stage, mine)
        after = executor.streamed
        return Ran(after[0] - before[0], after[1] - before[1])

    def close(self) -> None:
        """Forget everything; nothing may run."""
        self.drop()
        for executor in self.executors:
            executor.close()


def check_chain(groups: Sequence[Group]) -> None:
    """Refuse groups of which one makes another message than the next one takes.

    Raises:
        MachineError: they are not the groups of one model.
    """
    for group, following in pairwise(groups):
        same = group.after.specs == following.before.specs
        if not same or group.after.stages != following.before.stages:
            raise MachineError("the step groups do not follow each other", remedy="seal it again")


def take_frames(ledger: SharedLedger, layout: FrameLayout, count: int) -> list[FrameBuffer]:
    """Buffers for messages of a layout: all of them or none.

    Raises:
        BudgetExceededError: the ledger has too little.
    """
    frames: list[FrameBuffer] = []
    try:
        for _ in range(count):
            data = ledger.take("io", layout.message_bytes, "the messages of a run")
            frames.append(FrameBuffer(layout, data))
    except BudgetExceededError:
        release_frames(ledger, frames)
        raise
    return frames


def release_frames(ledger: SharedLedger, frames: Sequence[FrameBuffer]) -> None:
    """Give back the memory of messages; nobody may use them any more."""
    for frame in frames:
        ledger.release("io", frame.layout.message_bytes)
