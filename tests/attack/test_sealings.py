"""Sealed files of one sealing in the place of another's: the earlier ones put back, or later ones
shown to an owner of the earlier. The file of every stage and of every served group, whole or one
section alone. The owner's own look at the file is left out: workers decide, and compute nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from vaultline.bench.cutting import cut_plan
from vaultline.bench.rig import Rig, make_rig
from vaultline.channel.chunks import VaultStaleError
from vaultline.core.errors import MachineError, VaultlineError
from vaultline.graph.model import load_model
from vaultline.owner.deploy import compile_stages
from vaultline.owner.keyfile import load_kek
from vaultline.owner.prepare import prepare
from vaultline.owner.seal import read_vault_header, seal_vault
from vaultline.serve.cluster import ServerSpec
from vaultline.serve.gateway import Gateway
from vaultline.serve.prepared import load_prepared
from vaultline.testing.servermodels import SealedModel, Trust, feeds_of, make_grant, seal_groups
from vaultline.testing.serverworker import ServerWorker

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "digits.onnx"
STAGES = 2


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Short: the path of a Unix socket may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="vlt") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


def spliced(target: Path, donor: Path, section: int | None) -> bytes:
    """A vault in which one section is another's, or which is the other."""
    if section is None:
        return donor.read_bytes()
    data, other = bytearray(target.read_bytes()), donor.read_bytes()
    here, there = (read_vault_header(path).sections[section] for path in (target, donor))
    assert (here.offset, here.length) == (there.offset, there.length), "else nothing would fit"
    base = len(data) - sum(each.length for each in read_vault_header(target).sections)
    start = base + sum(each.length for each in read_vault_header(target).sections[:section])
    data[start : start + here.length] = other[start : start + here.length]
    assert bytes(data) not in (other, target.read_bytes())
    return bytes(data)


# --- A pipeline's stages -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def epochs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Rig, Rig]:
    """One plan under one model key, sealed for an earlier epoch and again for a later one."""
    folder = tmp_path_factory.mktemp("epochs")
    model = load_model(DIGITS)
    earlier = make_rig(model, cut_plan(model, [23]), folder)
    vault = folder / "later.vault"
    sealing = seal_vault(
        vault,
        compile_stages(model, earlier.plan),
        model_key=earlier.keys.model_key,
        plan_digest=earlier.plan.digest,
        model_digest=earlier.plan.model_digest,
    )
    return earlier, replace(earlier, vault=vault, keys=earlier.keys.with_sealing(sealing))


CASES = [(later, stage) for later in (True, False) for stage in (None, *range(STAGES))]


def swapped(epochs: tuple[Rig, Rig], folder: Path, *, later: bool, stage: int | None) -> Rig:
    """What the owner has of one epoch, with files of the other."""
    owner, other = (epochs[1], epochs[0]) if later else epochs
    vault = folder / "swapped.vault"
    vault.write_bytes(spliced(owner.vault, other.vault, stage))
    return replace(owner, vault=vault)


def refused(rig: Rig) -> VaultlineError:
    with pytest.raises(VaultlineError) as caught, rig.session():
        pytest.fail("the session opened: frames would have been computed")
    return caught.value


@pytest.mark.parametrize(
    ("later", "stage"),
    [pytest.param(*case, marks=[] if case == (True, 1) else pytest.mark.full) for case in CASES],
)
def test_a_stage_refuses_the_file_of_another_sealing(
    later: bool, stage: int | None, epochs: tuple[Rig, Rig], tmp_path: Path
) -> None:
    error = refused(swapped(epochs, tmp_path, later=later, stage=stage))
    assert error.got == "VaultStaleError", error.diagnostics()
    assert error.exit_code == 1


@pytest.mark.full
def test_the_right_file_of_either_sealing_opens(epochs: tuple[Rig, Rig]) -> None:
    """Else the refusals above would say nothing."""
    for rig in epochs:
        with rig.session():
            pass


# --- A server's groups ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Served:
    """A model in step groups, sealed twice under one key and plan."""

    earlier: SealedModel
    later: SealedModel


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("served")
    model = load_model(DIGITS)
    half = model.node_count // 2
    earlier = seal_groups(model, [(0, half), (half, model.node_count)], folder, name="earlier")
    sealing = seal_vault(
        folder / "later.vault",
        earlier.stages,
        model_key=earlier.keys.model_key,
        plan_digest=earlier.plan_digest,
        model_digest="00" * 32,
    )
    keys = earlier.keys.with_sealing(sealing)
    return Served(earlier, replace(earlier, vault=folder / "later.vault", keys=keys))


def test_a_server_installs_no_group_of_another_sealing(
    served: Served, tmp_path: Path, place: Path
) -> None:
    """Every case is a model of one server, which goes on with the one that is right."""
    models = []
    for later in (True, False):
        pair = (served.later, served.earlier)
        owner, other = pair if later else pair[::-1]
        for group in (None, *range(len(owner.stages))):
            vault = tmp_path / f"{later}-{group}.vault"
            vault.write_bytes(spliced(owner.vault, other.vault, group))
            models.append(replace(owner, vault=vault))
    models.append(served.later)
    trust = Trust.make(tmp_path / "trust")
    grant = make_grant(models, memory_bytes=32 << 20)
    with ServerWorker(models, grant, trust, place) as worker:
        for number in range(len(models) - 1):
            with pytest.raises(MachineError) as caught:
                worker.install(number)
            assert caught.value.got == "VaultStaleError", number
        right = len(models) - 1
        worker.install(right)
        worker.run(0, right, 0, [1], inputs=[feeds_of(models[right].model, 1)])
        assert worker.run(0, right, 1, [1])[1]


def test_a_gateway_serves_no_file_that_was_put_back(tmp_path: Path) -> None:
    """By the owner where it is there at the start; by the enclave where it comes right after."""
    folder, kek = tmp_path / "models", load_kek(tmp_path / "kek.jwk", create=True)
    folder.mkdir()
    prepare(DIGITS, folder, kek=kek)
    vault = folder / "digits.vault"
    old = vault.read_bytes()
    (folder / "digits.served.json").unlink()  # prepared once more, under the same key
    prepare(DIGITS, folder, kek=kek)
    assert vault.read_bytes() != old
    models = load_prepared(folder, kek)
    vault.write_bytes(old)
    with pytest.raises(VaultStaleError):
        load_prepared(folder, kek)
    trust = Trust.make(tmp_path / "trust")
    gateway = Gateway(
        models,
        [ServerSpec(name="s0", cores=1, memory_bytes=32 << 20, cpus=())],
        "vaultline",
        platform_file=trust.platform,
        appraise=trust.appraiser.appraise_now,
    )
    with pytest.raises(VaultlineError) as caught, gateway:
        pytest.fail("the gateway serves")
    assert "VaultStaleError" in (caught.value.got or "") + caught.value.diagnostics()
