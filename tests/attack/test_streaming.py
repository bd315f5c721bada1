"""A host that rewrites the vault while frames flow: real workers that decrypt on every pass."""

from __future__ import annotations

import itertools
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from msgspec.structs import replace

from vaultline.bench.cutting import cut_plan
from vaultline.bench.rig import Rig, make_trust
from vaultline.core.errors import InfeasibleError
from vaultline.core.limits import MIB
from vaultline.core.plan import Plan
from vaultline.core.program import streamed_bytes
from vaultline.core.tensors import align
from vaultline.graph.compile import CompiledStage, compile_segment
from vaultline.graph.engine import run_plain
from vaultline.graph.model import load_model
from vaultline.graph.structure import Model
from vaultline.owner.deploy import stage_settings
from vaultline.owner.frames import OwnerFrame, ResultFrame
from vaultline.owner.hostlink import WorkerRefusedError
from vaultline.owner.keyfile import new_keys
from vaultline.testing.vaults import ChunkSpan, SmallVault

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "digits.onnx"
#: Results that the owner has before the host strikes.
BEFORE = 3
WAIT_S = 20.0


class Sealed(NamedTuple):
    """Two stages that stream, with all that is needed to run and to attack them."""

    model: Model
    rig: Rig
    vault: SmallVault


@pytest.fixture(scope="module", params=[False, True], ids=["in turn", "ahead"])
def sealed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    """Sealed for as little memory as the model runs in; with decryption in turn or ahead."""
    folder = tmp_path_factory.mktemp("sealed")
    model = load_model(DIGITS)
    plan = cut_plan(model, [44], modes=["streamed", "streamed"])
    stages = [_streamed(model, plan, stage) for stage in range(2)]
    if request.param:
        stages = [_ahead(stage) for stage in stages]
    keys = new_keys()
    vault = SmallVault.seal(
        folder / "digits.vault",
        stages,  # type: ignore[arg-type]
        model_key=keys.model_key,
        plan_digest=plan.digest,
    )
    rig = Rig(
        plan=plan,
        vault=vault.path,
        keys=keys.with_sealing(vault.sealing),
        trust=make_trust(folder / "trust"),
    )
    return Sealed(model, rig, vault)


def _streamed(model: Model, plan: Plan, stage: int) -> CompiledStage:
    planned, settings = plan.stages[stage], stage_settings(plan, stage)

    def compiled(budget_bytes: int) -> CompiledStage:
        return compile_segment(
            model,
            planned.first,
            planned.last,
            settings=replace(settings, budget_bytes=budget_bytes),
            step_bytes=planned.step_bytes,
        )

    too_little, enough = 0, 8 * MIB
    while enough - too_little > MIB // 256:
        middle = (too_little + enough) // 2
        try:
            compiled(middle)
            enough = middle
        except InfeasibleError:
            too_little = middle
    return compiled(enough)


def _ahead(stage: CompiledStage) -> CompiledStage:
    """The same steps with two buffers for streamed weights behind the workspace, used in turn."""
    program = stage.program
    largest = max(streamed_bytes(program, step) for step in program.steps)
    start = align(program.workspace_bytes)
    steps = []
    for number, step in enumerate(program.steps):
        streamed = [
            each.offset for each in step.weights if program.weights[each.weight].resident_at is None
        ]
        shift = start + (number % 2) * largest - min(streamed, default=0)
        weights = tuple(replace(each, offset=each.offset + shift) for each in step.weights)
        steps.append(replace(step, weights=weights))
    settings, more = program.settings, start + 2 * largest - program.workspace_bytes
    ahead = replace(
        program,
        settings=replace(settings, budget_bytes=settings.budget_bytes + more),
        steps=tuple(steps),
        workspace_bytes=program.workspace_bytes + more,
        prefetch=True,
    )
    return CompiledStage(program=ahead, weights=stage.weights)


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where the run's sockets lie; short, since the path of a Unix socket may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="vlt") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("TMPDIR", folder)
        yield
        assert sorted(Path(folder).rglob("*")) == []


@pytest.fixture(autouse=True)
def restored(sealed: Sealed) -> Iterator[None]:
    yield
    sealed.vault.path.write_bytes(sealed.vault.sealed)


def streamed_chunks(sealed: Sealed, stage: int) -> list[ChunkSpan]:
    """Where the weights lie that a stage decrypts on every pass."""
    weights = sealed.vault.stages[stage].program.weights
    return [
        span
        for span in sealed.vault.chunks(stage)
        if span.tensor and weights[span.tensor - 1].resident_at is None
    ]


def flip(sealed: Sealed, span: ChunkSpan, offset: int) -> None:
    """In place: the file that the workers have open."""
    with sealed.vault.path.open("r+b") as file:
        file.seek(span.start + offset)
        file.write(bytes([sealed.vault.sealed[span.start + offset] ^ 1]))


def flip_first(sealed: Sealed, stage: int) -> None:
    flip(sealed, span := streamed_chunks(sealed, stage)[0], span.ciphertext - span.start)


def flip_last(sealed: Sealed, stage: int) -> None:
    """In the last step: those before have run by then, on right weights."""
    flip(sealed, span := streamed_chunks(sealed, stage)[-1], span.tag - span.start - 1)


def flip_tag(sealed: Sealed, stage: int) -> None:
    flip(sealed, span := streamed_chunks(sealed, stage)[-1], span.tag - span.start)


def cut(sealed: Sealed, stage: int) -> None:
    os.truncate(sealed.vault.path, streamed_chunks(sealed, stage)[-1].tag)


def empty(sealed: Sealed, stage: int) -> None:
    del stage
    os.truncate(sealed.vault.path, 0)


#: Case -> (what the host does to the file, the error's name). One that is cut in the second
#: stage is whole for the first one.
ATTACKS: dict[str, tuple[Callable[[Sealed, int], None], str]] = {
    "a byte of the first streamed weight": (flip_first, "VaultTamperedError"),
    "a byte of the last streamed weight": (flip_last, "VaultTamperedError"),
    "a tag": (flip_tag, "VaultTamperedError"),
    "the file is cut": (cut, "VaultTruncatedError"),
    "the file is emptied": (empty, "VaultTruncatedError"),
}
SAMPLE = [("a byte of the first streamed weight", 0), ("the file is cut", 1)]
ALL = [(case, stage) for case in ATTACKS for stage in range(2)]


@dataclass(slots=True)
class Stepwise:
    """Frames that come one by one, each after the result of the one before, until the host has
    struck; then as many as are taken."""

    model: Model
    strike: Callable[[], None]
    results: threading.Semaphore

    def __iter__(self) -> Iterator[OwnerFrame]:
        for number in range(BEFORE):
            yield OwnerFrame(number, float(number), [image(self.model, number)])
            assert self.results.acquire(timeout=WAIT_S)
        self.strike()
        for number in range(BEFORE, 100):
            yield OwnerFrame(number, float(number), [image(self.model, number)])


def image(model: Model, number: int) -> np.ndarray:
    return np.random.default_rng(number).standard_normal(model.inputs[0].shape, np.float32)


def check(model: Model, results: list[ResultFrame]) -> None:
    assert [result.index for result in results] == list(range(len(results)))
    for result in results:
        expected = run_plain(model, {model.inputs[0].name: image(model, result.index)})
        for name, reference in expected.items():
            np.testing.assert_allclose(result.outputs[name], reference, rtol=1e-4, atol=1e-4)


def struck(case: str, stage: int, sealed: Sealed) -> None:
    """No result of any frame that was sent after the host had struck."""
    attack, name = ATTACKS[case]
    counted = threading.Semaphore(0)
    frames = Stepwise(sealed.model, lambda: attack(sealed, stage), counted)
    results = []
    with pytest.raises(WorkerRefusedError) as caught, sealed.rig.session() as session:
        for result in session.stream(frames):
            results.append(result)
            counted.release()
    assert caught.value.got == name
    assert f"stage {0 if attack is empty else stage} was lost" in caught.value.message
    assert len(results) == BEFORE
    check(sealed.model, results)


@pytest.mark.parametrize(("case", "stage"), SAMPLE)
def test_a_weight_altered_between_frames_ends_the_stage_and_nothing_more_comes_out(
    case: str, stage: int, sealed: Sealed
) -> None:
    struck(case, stage, sealed)


@pytest.mark.full
@pytest.mark.parametrize(("case", "stage"), [each for each in ALL if each not in SAMPLE])
def test_every_way_of_altering_either_stage(case: str, stage: int, sealed: Sealed) -> None:
    struck(case, stage, sealed)


def test_a_weight_altered_under_way_lets_no_wrong_result_out(sealed: Sealed) -> None:
    """Frames flow all the time and without end: the pass at hand may still be right."""
    endless = (
        OwnerFrame(number, float(number), [image(sealed.model, number)])
        for number in itertools.count()
    )
    results = []
    with pytest.raises(WorkerRefusedError) as caught, sealed.rig.session() as session:
        for result in session.stream(endless):
            results.append(result)
            if len(results) == 10:
                flip_last(sealed, 1)
    assert caught.value.got == "VaultTamperedError"
    assert len(results) >= 10
    check(sealed.model, results)


def test_every_stage_decrypts_when_a_pass_has_begun(sealed: Sealed) -> None:
    """Else the attacks above would not be what they say."""
    for stage in range(2):
        program = sealed.vault.stages[stage].program
        steps = [
            number
            for number, step in enumerate(program.steps)
            for each in step.weights
            if program.weights[each.weight].resident_at is None
        ]
        assert max(steps) > 0
