"""Step groups in memory: kept and streamed, on several cores, and nothing left behind."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from program_cases import Array, Weights, chain, random_frames, run

from vaultline.channel.chunks import VaultTamperedError
from vaultline.core.errors import MachineError
from vaultline.core.frames import StageTimes
from vaultline.core.program import StageProgram
from vaultline.enclave.executor import FrameBuffer
from vaultline.enclave.groups import (
    Group,
    GroupExecutor,
    check_chain,
    kept_bytes,
    release_frames,
    take_frames,
)
from vaultline.enclave.ledger import BudgetExceededError
from vaultline.enclave.shared_ledger import SharedLedger

BUDGET = 1 << 20


@dataclass(slots=True)
class Section:
    """A program with the weights of a test; one of them may have been altered."""

    program: StageProgram
    weights: Weights
    altered: int | None = None

    def read_weight_into(self, index: int, buffer: memoryview) -> None:
        if index == self.altered:
            raise VaultTamperedError("a weight was altered")
        self.weights.read_weight_into(index, buffer)


class Loaded:
    """A group of products in a row on some cores."""

    def __init__(self, cores: int = 1, budget: int = BUDGET, **how: Any) -> None:
        program, self.arrays = chain(3, side=32, **how)
        self.section = Section(program, Weights(self.arrays))
        self.ledger = SharedLedger(budget)
        spaces = [
            self.ledger.take("idle", program.workspace_bytes, "workspaces") for _ in range(cores)
        ]
        source: Any = self.section
        executors = [GroupExecutor(program, source, self.ledger, space) for space in spaces]
        self.group = Group(source, self.ledger, executors)
        self.at_rest = dict(self.ledger.held)

    def frames(self, tensors: list[list[Array]]) -> list[FrameBuffer]:
        frames = take_frames(self.ledger, self.group.before, len(tensors))
        for frame, arrays in zip(frames, tensors, strict=True):
            for part, array in zip(frame.parts, arrays, strict=True):
                part[:] = np.frombuffer(array.tobytes(), np.uint8)
        return frames

    def run(self, tensors: list[list[Array]], core: int = 0) -> list[list[bytes]]:
        inputs = self.frames(tensors)
        outputs = take_frames(self.ledger, self.group.after, len(tensors))
        try:
            self.group.run(core, inputs, outputs, StageTimes())
            return [[part.tobytes() for part in frame.parts] for frame in outputs]
        finally:
            release_frames(self.ledger, [*inputs, *outputs])

    def right(self, tensors: list[list[Array]]) -> list[list[bytes]]:
        return run(self.section.program, tensors, Weights(self.arrays))


@pytest.mark.parametrize("prefetch", [False, True])
def test_a_group_computes_the_same_kept_or_streamed_on_any_core(prefetch: bool) -> None:
    loaded = Loaded(cores=2, prefetch=prefetch)
    reads = loaded.section.weights.reads
    for turn in range(2):
        tensors = random_frames(loaded.section.program, 3, turn)
        assert loaded.run(tensors, 0) == loaded.right(tensors)
        assert reads == [0, 1, 2]
        assert loaded.group.hold() > 0
        assert loaded.group.hold() == 0
        assert loaded.run(tensors, 0) == loaded.run(tensors, 1) == loaded.right(tensors)
        assert reads == [0, 1, 2, 0, 1, 2], "kept weights are decrypted once, for all cores"
        kept = kept_bytes(loaded.section.program)
        assert loaded.ledger.held == loaded.at_rest | {"resident": kept}
        loaded.group.drop()
        assert loaded.ledger.held == loaded.at_rest
        assert loaded.run(tensors, 1) == loaded.right(tensors)
        assert reads == [0, 1, 2, 0, 1, 2, 0, 1, 2]
        reads.clear()
    loaded.group.close()


def test_decrypting_in_a_run_is_told_and_kept_weights_cost_none() -> None:
    loaded = Loaded()
    program = loaded.section.program
    inputs = loaded.frames(random_frames(program, 2))
    outputs = take_frames(loaded.ledger, loaded.group.after, 2)
    ran = loaded.group.run(0, inputs, outputs, StageTimes())
    assert ran.streamed_bytes == kept_bytes(program)
    assert ran.decrypt_s > 0
    loaded.group.hold()
    assert loaded.group.run(0, inputs, outputs, StageTimes()) == (0, 0)


def test_messages_and_kept_weights_are_gone_once_they_are_released() -> None:
    loaded = Loaded()
    program = loaded.section.program
    loaded.group.hold()
    assert loaded.group._kept is not None
    kept = weakref.ref(loaded.group._kept[0].base)
    inputs = loaded.frames(random_frames(program, 2))
    outputs = take_frames(loaded.ledger, loaded.group.after, 2)
    messages = [weakref.ref(frame.parts[0].base) for frame in (*inputs, *outputs)]
    loaded.group.run(0, inputs, outputs, StageTimes())
    release_frames(loaded.ledger, [*inputs, *outputs])
    del inputs, outputs
    gc.collect()
    assert [message() for message in messages] == [None] * 4
    assert kept() is not None
    loaded.group.drop()
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize("altered", [0, 1, 2])
def test_weights_that_do_not_verify_are_not_kept(altered: int) -> None:
    loaded = Loaded()
    loaded.section.altered = altered
    with pytest.raises(VaultTamperedError):
        loaded.group.hold()
    assert loaded.ledger.held == loaded.at_rest
    tensors = random_frames(loaded.section.program, 1)
    with pytest.raises(VaultTamperedError):
        loaded.run(tensors)
    assert loaded.ledger.held == loaded.at_rest
    loaded.section.altered = None
    loaded.group.hold()
    assert loaded.run(tensors) == loaded.right(tensors)


def test_weights_and_messages_that_do_not_fit_are_not_kept() -> None:
    need = Loaded()
    budget = sum(need.at_rest.values()) + kept_bytes(need.section.program) - 1
    loaded = Loaded(budget=budget)
    with pytest.raises(BudgetExceededError):
        loaded.group.hold()
    assert loaded.ledger.held == loaded.at_rest
    fit = loaded.ledger.free_bytes // loaded.group.before.message_bytes
    with pytest.raises(BudgetExceededError):
        take_frames(loaded.ledger, loaded.group.before, fit + 1)
    assert loaded.ledger.held == loaded.at_rest
    tensors = random_frames(loaded.section.program, 1)
    assert loaded.run(tensors) == loaded.right(tensors)


def test_groups_that_do_not_follow_each_other_are_refused() -> None:
    one = Loaded().group
    program, _ = chain(2, side=16)
    other_section: Any = Section(program, Weights([]))
    other = Group(other_section, SharedLedger(BUDGET), [])
    check_chain([one])
    with pytest.raises(MachineError, match="follow"):
        check_chain([one, other])
