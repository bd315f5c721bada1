"""Several stages in one process that take turns in one workspace."""

from __future__ import annotations

from typing import Any

import onnxruntime as ort
import pytest
from program_cases import Stage, WatchedLedger, Weights, chain, random_frames, run

from vaultline.core.errors import LocalProtocolError
from vaultline.core.program import streamed_bytes
from vaultline.enclave.executor import Executor
from vaultline.enclave.ledger import BudgetExceededError

#: Steps, side of the tensors, and the rest of five stages: small and large, of one and of more
#: frames a pass, streamed wholly, in part and not at all, decrypted in turn and ahead.
STAGES: tuple[dict[str, Any], ...] = (
    {"count": 2, "side": 32, "frames": 1},
    {"count": 5, "side": 8, "frames": 4, "prefetch": True},
    {"count": 3, "side": 64, "frames": 2, "kept": frozenset({1})},
    {"count": 4, "side": 16, "frames": 3, "mode": "resident"},
    {"count": 6, "side": 24, "frames": 4, "prefetch": True, "how": "apart"},
)


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every session of the engine that is made."""
    made: list[object] = []

    class Counted(ort.InferenceSession):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            made.append(self)
            super().__init__(*args, **options)

    monkeypatch.setattr(ort, "InferenceSession", Counted)
    return made


def test_stages_that_alternate_in_one_workspace_compute_as_alone(sessions: list[object]) -> None:
    programs, weights = zip(*(chain(**how) for how in STAGES), strict=True)
    sources = [Weights(arrays) for arrays in weights]
    ledger = WatchedLedger(1 << 20)
    size = max(program.workspace_bytes for program in programs)
    workspace = ledger.take("idle", size, "the workspace")
    stages = [
        Stage(program, source, ledger, workspace)
        for program, source in zip(programs, sources, strict=True)
    ]
    held, made = dict(ledger.held), len(sessions)
    assert made == len(STAGES)
    assert held["resident"] == sum(program.resident_bytes for program in programs)
    loaded = [list(source.reads) for source in sources]
    frames = [
        [random_frames(program, count, seed) for seed, count in enumerate((1, most, most))]
        for program in programs
        for most in (program.settings.frames_per_pass,)
    ]
    together = [
        [stage.passed(mine[turn]) for stage, mine in zip(stages, frames, strict=True)]
        for turn in range(3)
    ]
    assert len(sessions) == made, "none after the first pass, nor in it"
    assert ledger.held == held
    assert ledger.at_rest()
    for number, (program, source) in enumerate(zip(programs, sources, strict=True)):
        streamed = [k for k, each in enumerate(program.weights) if each.resident_at is None]
        assert source.reads == loaded[number] + 3 * streamed
        for turn in range(3):
            alone = run(program, frames[number][turn], Weights(weights[number]))
            assert together[turn][number] == alone
        stages[number].executor.close()
    largest = max(streamed_bytes(program, step) for program in programs for step in program.steps)
    assert largest <= ledger.peak["tile"] <= size


def test_a_stage_that_fails_leaves_the_workspace_to_the_others() -> None:
    (one, weights), (other, others) = chain(3), chain(4, prefetch=True)
    ledger = WatchedLedger(1 << 20)
    size = max(one.workspace_bytes, other.workspace_bytes)
    workspace = ledger.take("idle", size, "the workspace")
    broken, whole = Weights(weights[:2]), Weights(others)
    stages = [Stage(one, broken, ledger, workspace), Stage(other, whole, ledger, workspace)]
    frames = random_frames(other, 3)
    right = stages[1].passed(frames)
    with pytest.raises(IndexError):
        stages[0].passed(random_frames(one, 2))
    assert ledger.at_rest()
    assert stages[1].passed(frames) == right
    stages[1].executor.close()


def test_a_workspace_that_is_too_small_is_refused() -> None:
    program, weights = chain(3)
    ledger = WatchedLedger(1 << 20)
    workspace = ledger.take("idle", program.workspace_bytes - 1, "the workspace")
    with pytest.raises(LocalProtocolError, match="too small"):
        Executor(program, Weights(weights), ledger, workspace)


def test_stages_that_do_not_fit_together_are_refused() -> None:
    """The second one asks for weights that stay, of which the first has left too little room."""
    program, weights = chain(4, side=32, mode="resident")
    ledger = WatchedLedger(program.resident_bytes * 3 // 2 + program.workspace_bytes)
    workspace = ledger.take("idle", program.workspace_bytes, "the workspace")
    Executor(program, Weights(weights), ledger, workspace)
    source = Weights(weights)
    with pytest.raises(BudgetExceededError):
        Executor(program, source, ledger, workspace)
    assert source.reads == []
