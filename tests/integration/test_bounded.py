"""Sealed stages in bounded processes: the same outputs, the granted memory, or an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from vaultline.bench.bounded_process import (
    BoundedProcess,
    SealedStage,
    compile_bounded,
    compile_most_frames,
    seal_stage,
)
from vaultline.bench.bounded_ratio import max_relative_error, native_outputs
from vaultline.bench.bounded_worker import Timed
from vaultline.bench.noise import frames_of
from vaultline.core.errors import InfeasibleError, MachineError
from vaultline.core.limits import MIB
from vaultline.graph.model import load_model
from vaultline.graph.structure import Model
from vaultline.graph.zoo import build

TIGHT_BYTES = 9 * MIB


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("squeezenet", tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="module")
def model(path: Path) -> Model:
    return load_model(path)


@pytest.fixture
def streamed(model: Model, tmp_path: Path) -> SealedStage:
    return seal_stage(compile_bounded(model, TIGHT_BYTES, 4), tmp_path)


def test_two_stages_share_a_workspace_and_compute_what_the_engine_does(
    path: Path, model: Model, streamed: SealedStage, tmp_path: Path
) -> None:
    roomy = seal_stage(compile_bounded(model, 20 * MIB, 1), tmp_path)
    budget = TIGHT_BYTES + 20 * MIB
    expected = native_outputs(path, frames_of(model.inputs, 4))
    names = [spec.name for spec in streamed.output_specs]
    with BoundedProcess([streamed, roomy], budget, 0) as process:
        for _ in range(2):
            assert process.run_s(4, 1, stage=0) > 0.0
            assert process.run_s(1, 2, stage=1) > 0.0
        first = process.weigh()
        decrypted: Timed = process.decrypt(0)
        assert decrypted.decrypted_bytes > MIB
        assert process.decrypt(1).decrypted_bytes == 0
        for stage, frames in enumerate((4, 1)):
            # What was decrypted for nothing was where outputs of steps are: never in messages.
            outputs = process.outputs(frames, stage=stage)
            assert max_relative_error(names, outputs, expected) < 1e-4
        process.run_s(4, 1)
        memory = process.memory()
        assert process.weigh().sessions == first.sessions
    workspace = max(streamed.program.workspace_bytes, roomy.program.workspace_bytes)
    assert first.held["idle"] == workspace
    assert memory.held_bytes < memory.peak_bytes < budget
    assert 0 < memory.vault_mapped_bytes <= memory.page_cache_bytes
    assert memory.imported_bytes < memory.idle_bytes


def test_fewer_frames_a_pass_where_not_all_fit(model: Model) -> None:
    stage = compile_most_frames(model, 6 * MIB, 4)
    assert 1 <= stage.program.settings.frames_per_pass < 4
    with pytest.raises(InfeasibleError):
        compile_most_frames(model, MIB, 4)


def test_a_paged_stage_says_what_its_page_cache_did(
    path: Path, model: Model, tmp_path: Path
) -> None:
    compiled = compile_bounded(model, TIGHT_BYTES, 1, mode="paged")
    sealed = seal_stage(compiled, tmp_path)
    expected = native_outputs(path, frames_of(model.inputs, 1))
    with BoundedProcess([sealed], TIGHT_BYTES, 0) as process:
        process.run(1, 1)
        pages = process.run(1, 1).pages
        outputs = process.outputs(1)
    assert pages is not None
    assert pages.swapped > 0
    assert min(pages.evictions, pages.cipher_s, pages.bookkeeping_s) > 0
    assert pages.spin_s == 0.0  # nothing but the cipher's work
    assert max_relative_error([sealed.output_specs[0].name], outputs, expected) < 1e-4


def test_a_vault_that_was_altered_is_not_loaded(streamed: SealedStage) -> None:
    vault = Path(streamed.asked.vault)
    data = bytearray(vault.read_bytes())
    data[-1] ^= 1
    vault.write_bytes(data)
    with pytest.raises(MachineError, match="a bounded worker failed"):
        BoundedProcess([streamed], TIGHT_BYTES, 0).__enter__()


def test_more_than_the_budget_is_refused_by_the_ledger(streamed: SealedStage) -> None:
    with pytest.raises(MachineError, match="no protected memory left"):
        BoundedProcess([streamed], MIB, 0).__enter__()
