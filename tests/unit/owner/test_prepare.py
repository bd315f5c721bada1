"""Preparing a model for serving: files that belong together, facts to the byte, nothing twice."""

from __future__ import annotations

import json
import os
import shutil
import stat
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from vaultline.core.errors import InfeasibleError, InputError, VaultlineError
from vaultline.core.frames import FrameLayout
from vaultline.core.limits import MIB
from vaultline.core.tensors import align
from vaultline.enclave.executor import Executor, FrameBuffer
from vaultline.enclave.ledger import Ledger
from vaultline.enclave.vault import VaultSection
from vaultline.graph.engine import run_plain
from vaultline.graph.groups import GroupRule
from vaultline.graph.model import load_model
from vaultline.owner.keyfile import Kek, WrongKekError, read_keyfile
from vaultline.owner.prepare import PreparedFiles, counts, prepare, write_served
from vaultline.owner.seal import check_vault
from vaultline.owner.served import ServedModel, read_served

DIGITS = Path(__file__).parents[3] / "examples" / "digits" / "digits.onnx"
KEK = Kek(kid="kbs:///default/kek/one", key=bytes(range(32)))
#: Divides even a model of microseconds.
EAGER = GroupRule(run_s_max=1e-9, cut_s=0.0, tensor_s=0.0, carried_bytes_per_s=1e15)


def prepared(folder: Path, **more: object) -> ServedModel:
    return prepare(DIGITS, folder, **{"rule": EAGER, "kek": KEK, **more})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model prepared: not to be changed."""
    folder = tmp_path_factory.mktemp("prepared") / "new" / "folder"
    prepared(folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(made, tmp_path / "models"))


def programs(folder: Path, served: ServedModel):
    """Every group's section, opened as an enclave does."""
    files = PreparedFiles(folder=folder, name=served.name)
    keys = read_keyfile(files.keys, KEK)
    sealing = keys.sealing_for(served.plan_digest)
    fd = os.open(files.vault, os.O_RDONLY)
    return [
        VaultSection(fd, sealing.access(keys.model_key, number))
        for number in range(len(served.groups))
    ]


def written(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_three_files_that_belong_together(made: Path) -> None:
    files = PreparedFiles(folder=made, name="digits")
    served = read_served(files.manifest)
    assert {path.name for path in files.folder.iterdir()} == {
        "digits.vault",
        "digits.keys",
        "digits.served.json",
    }
    sealing = read_keyfile(files.keys, KEK).sealing_for(served.plan_digest)
    header = check_vault(files.vault, sealing)
    assert len(header.sections) == len(served.groups) == len(served.facts.groups) > 1
    assert sealing.model_digest == served.model_digest == load_model(DIGITS).digest
    assert stat.S_IMODE(files.keys.stat().st_mode) == 0o600
    assert not served.measured


def test_the_manifest_holds_no_key_and_no_weight(made: Path) -> None:
    served = read_served(made / "digits.served.json")
    keys = read_keyfile(made / "digits.keys", KEK)
    text = (made / "digits.served.json").read_bytes()
    assert keys.model_key not in text
    assert keys.model_key.hex().encode() not in text
    assert json.loads(text)["name"] == "digits"
    assert served.inputs == load_model(DIGITS).inputs


def test_facts_are_to_the_byte_what_the_sealed_programs_say(made: Path) -> None:
    served = read_served(made / "digits.served.json")
    found = [section.program for section in programs(made, served)]
    assert served.workspace_bytes == max(program.workspace_bytes for program in found)
    assert served.facts.fixed_bytes == sum(program.engine_bytes for program in found)
    assert served.facts.input_bytes == served.input_layout.message_bytes
    assert served.facts.groups[-1].output_bytes == served.output_layout.message_bytes
    for program, facts in zip(found, served.facts.groups, strict=True):
        assert facts.weight_bytes == sum(align(each.spec.nbytes) for each in program.weights)
        layout = FrameLayout(program.specs(program.outputs), len(found))
        assert facts.output_bytes == layout.message_bytes
        assert (facts.workspace_bytes, facts.tile_bytes) == (0, 0)
        assert facts.frames_max == program.settings.frames_per_pass
        assert all(weight.resident_at is None for weight in program.weights)
    for before, after in pairwise(found):
        assert before.specs(before.outputs) == after.specs(after.inputs)


def test_the_sealed_groups_compute_the_model(made: Path) -> None:
    served = read_served(made / "digits.served.json")
    model = load_model(DIGITS)
    rng = np.random.default_rng(0)
    fed = {spec.name: rng.random(spec.shape, np.float32) for spec in model.inputs}
    expected = run_plain(model, fed)
    for section in programs(made, served):
        fed = _run(section, fed)
    for name, reference in expected.items():
        np.testing.assert_allclose(fed[name], reference, rtol=1e-4, atol=1e-5)


def _run(section: VaultSection, fed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    program = section.program
    executor = Executor(program, section, Ledger(1 << 30))
    buffers = []
    for tensors in (program.inputs, program.outputs):
        layout = FrameLayout(program.specs(tensors), program.settings.stages)
        buffers.append(FrameBuffer(layout, np.zeros(layout.message_bytes, np.uint8)))
    before, after = buffers
    for spec, part in zip(before.layout.specs, before.parts, strict=True):
        part[:] = np.ascontiguousarray(fed[spec.name]).reshape(-1).view(np.uint8)
    assert list(executor.run_pass([before], [after])) == [0]
    return {
        spec.name: part.view(spec.dtype).reshape(spec.shape)
        for spec, part in zip(after.layout.specs, after.parts, strict=True)
    }


def test_the_same_again_is_not_done_again(folder: Path) -> None:
    first = read_served(folder / "digits.served.json")
    before = written(folder)
    said: list[str] = []
    again = prepared(folder, progress=lambda what, done, total: said.append(what))
    assert again == first
    assert written(folder) == before
    assert not [what for what in said if "compiling" in what]


def test_measured_facts_are_kept_when_nothing_is_done(folder: Path) -> None:
    first = read_served(folder / "digits.served.json")
    measured = replace(first, measured=True, facts=replace(first.facts, install_s=0.25))
    write_served(folder, measured)
    assert prepared(folder) == measured


CHANGES = {
    "another workspace": {"workspace_bytes": 6 * MIB},
    "another rule": {"rule": GroupRule()},
    "portable": {"portable": True},
    "for a server that pages": {"paged": "crypto"},
    "for one that takes SGX1's time": {"paged": "sgx1"},
}


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_another_request_is_another_division(change: str, folder: Path) -> None:
    first = read_served(folder / "digits.served.json")
    second = prepared(folder, **CHANGES[change])
    assert second.plan_digest != first.plan_digest
    keys = read_keyfile(folder / "digits.keys", KEK)
    assert len(keys.sealings) == 2
    check_vault(folder / "digits.vault", keys.sealing_for(second.plan_digest))
    assert read_served(folder / "digits.served.json") == second


def cut_the_vault(folder: Path) -> None:
    path = folder / "digits.vault"
    path.write_bytes(path.read_bytes()[:-1])


def forget_the_vault(folder: Path) -> None:
    (folder / "digits.vault").unlink()


def forget_the_keys(folder: Path) -> None:
    (folder / "digits.keys").unlink()


def spoil_the_manifest(folder: Path) -> None:
    (folder / "digits.served.json").write_text("{")


def rename_the_manifest(folder: Path) -> None:
    served = read_served(folder / "digits.served.json")
    (folder / "digits.served.json").write_text(
        json.dumps(json.loads((folder / "digits.served.json").read_text()) | {"vault": "x.vault"})
    )
    assert served.vault == "digits.vault"


@pytest.mark.parametrize(
    "spoil",
    [cut_the_vault, forget_the_vault, forget_the_keys, spoil_the_manifest, rename_the_manifest],
)
def test_what_does_not_fit_together_is_made_again(spoil, folder: Path) -> None:
    spoil(folder)
    served = prepared(folder)
    keys = read_keyfile(folder / "digits.keys", KEK)
    check_vault(folder / "digits.vault", keys.sealing_for(served.plan_digest))
    assert read_served(folder / "digits.served.json") == served


def test_a_wrong_key_encryption_key_loses_nothing(folder: Path) -> None:
    before = written(folder)
    with pytest.raises(WrongKekError):
        prepared(folder, kek=Kek(kid="kbs:///default/kek/two", key=bytes(32)), portable=True)
    assert written(folder) == before


def test_what_does_not_fit_loses_nothing(folder: Path) -> None:
    before = written(folder)
    with pytest.raises(InfeasibleError, match="memory"):
        prepared(folder, workspace_bytes=4096, paged="crypto")
    assert written(folder) == before


def a_file_in_the_way(folder: Path) -> dict[str, object]:
    (folder / "file").touch()
    return {"folder": folder / "file" / "models"}


BAD = {
    "a name with a slash": lambda folder: {"name": "a/b"},
    "a name that is a hidden file": lambda folder: {"name": ".hidden"},
    "an empty name": lambda folder: {"name": ""},
    "no workspace": lambda folder: {"workspace_bytes": 0},
    "a file where the folder should be": a_file_in_the_way,
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_bad_requests_are_refused_with_a_remedy(case: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        prepared(**{"folder": tmp_path / "models", **BAD[case](tmp_path)})
    assert caught.value.got is not None
    assert not (tmp_path / "models" / "digits.vault").exists()


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(VaultlineError):
        prepare(tmp_path / "text.onnx", tmp_path / "out", kek=KEK)
    with pytest.raises(VaultlineError):
        prepare(tmp_path / "missing.onnx", tmp_path / "out", kek=KEK)


def test_a_copy_under_another_name_is_another_model(tmp_path: Path) -> None:
    shutil.copy(DIGITS, tmp_path / "copy.onnx")
    served = prepare(tmp_path / "copy.onnx", tmp_path / "out", kek=KEK)
    other = prepare(tmp_path / "copy.onnx", tmp_path / "out", name="other-1.0", kek=KEK)
    assert (served.name, other.name) == ("copy", "other-1.0")
    assert served.plan_digest == other.plan_digest
    ids = {
        read_keyfile(tmp_path / "out" / f"{each.name}.keys", KEK).model_id
        for each in (served, other)
    }
    assert len(ids) == 2


def test_a_paged_model_is_one_group_without_weights_of_its_own(tmp_path: Path) -> None:
    served = prepared(tmp_path, paged="sgx1")
    (facts,) = served.facts.groups
    assert served.paged
    assert (facts.weight_bytes, facts.load_s, facts.frames_max) == (0, 0.0, 1)
    assert 0 < served.workspace_bytes <= 64 * MIB
    (section,) = programs(tmp_path, served)
    assert section.program.settings.mode == "paged"
    assert section.program.settings.page_mode == "sgx1"


@pytest.mark.parametrize(
    ("most", "expected"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (16, (1, 2, 4, 8, 16))]
)
def test_runs_are_timed_at_powers_of_two_and_the_most(most: int, expected: tuple[int, ...]) -> None:
    assert counts(most) == expected
