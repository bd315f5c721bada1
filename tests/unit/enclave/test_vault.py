"""The enclave's view of its section; what a host does to the file is in tests/attack."""

from __future__ import annotations

import errno
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from vaultline.channel.chunks import (
    VaultFormatError,
    VaultOtherModelError,
    VaultOtherPlanError,
    VaultOtherStageError,
    VaultStaleError,
    VaultTamperedError,
    VaultTruncatedError,
)
from vaultline.core.errors import InputError, LocalProtocolError, MachineError
from vaultline.core.limits import VAULT_CHUNK_BYTES_MAX
from vaultline.core.program import PROGRAM_VERSION
from vaultline.core.serde import to_msgpack
from vaultline.enclave.vault import VaultSection
from vaultline.owner import seal
from vaultline.testing.vaults import SmallStage, SmallVault, read_weights, small_stage

CHUNK = VAULT_CHUNK_BYTES_MAX
KEY, PLAN = b"k" * 32, b"p" * 32


def sealed(path: Path, *stages: SmallStage) -> SmallVault:
    return SmallVault.seal(path / "a.vault", stages, model_key=KEY, plan_digest=PLAN)


@pytest.fixture
def vault(tmp_path: Path) -> SmallVault:
    sizes = (10, 0, CHUNK + 1, 3)
    return sealed(tmp_path, *(small_stage(sizes, stage=stage, stages=2) for stage in range(2)))


GRANTS = {
    "another stage's key": ({"stage_key": b"x" * 32}, VaultTamperedError),
    "another section's digest": ({"section_digest": b"x" * 32}, VaultTamperedError),
    "another place": ({"section_offset": 7}, VaultFormatError),
    "a place beyond the file": ({"section_offset": 1 << 40}, VaultTruncatedError),
    "another length of the section": ({"section_bytes": 1000}, VaultFormatError),
    "another size of the program": ({"program_bytes": 90}, VaultFormatError),
    "another vault's id": ({"vault_id": b"x" * 16}, VaultStaleError),
    "another model's id": ({"model_id": b"x" * 16}, VaultOtherModelError),
    "another plan's digest": ({"plan_digest": b"x" * 32}, VaultOtherPlanError),
    "a stage beyond the vault": ({"stage": 2}, VaultOtherStageError),
    "a key of the wrong length": ({"stage_key": b"x"}, InputError),
}


@pytest.mark.parametrize("grant", GRANTS)
def test_a_grant_that_does_not_fit_the_vault_opens_nothing(grant: str, vault: SmallVault) -> None:
    changes, error = GRANTS[grant]
    right = vault.sealing.access(KEY, 0)
    fd = os.open(vault.path, os.O_RDONLY)
    try:
        VaultSection(fd, right)
        with pytest.raises(error) as refusal:
            VaultSection(fd, msgspec.structs.replace(right, **changes))
        assert type(refusal.value) is error
    finally:
        os.close(fd)


def test_a_weight_goes_into_exactly_its_buffer(vault: SmallVault) -> None:
    around = memoryview(bytearray(b"#" * (CHUNK + 101)))
    with vault.opened() as section:
        section.read_weight_into(2, around[50 : CHUNK + 51])
        assert around[50 : CHUNK + 51] == vault.stages[0].weights[2].tobytes()
        assert bytes(around[:50]) + bytes(around[CHUNK + 51 :]) == b"#" * 100
        for index, size in ((0, 9), (0, 11), (1, 1), (4, 3), (-1, 3)):
            with pytest.raises(LocalProtocolError):
                section.read_weight_into(index, memoryview(bytearray(size)))


def test_several_threads_read_one_section(vault: SmallVault) -> None:
    expected = [weight.tobytes() for weight in vault.stages[0].weights]
    with vault.opened() as section, ThreadPoolExecutor(4) as pool:
        for weights in pool.map(lambda _: read_weights(section), range(12)):
            assert weights == expected


def test_a_program_of_another_version_says_to_seal_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_the_future(program: object) -> bytes:
        future = {"version": PROGRAM_VERSION + 1}
        return to_msgpack(msgspec.to_builtins(program, builtin_types=(bytes,)) | future)

    monkeypatch.setattr(seal, "to_msgpack", of_the_future)
    vault = sealed(tmp_path, small_stage(()))
    with pytest.raises(VaultFormatError) as refusal, vault.opened():
        pass
    assert "another version" in (refusal.value.got or "")
    assert "seal" in (refusal.value.remedy or "")


def resealed(path: Path, monkeypatch: pytest.MonkeyPatch, program: SmallStage) -> SmallVault:
    """A vault whose sealed program is of another stage object: only a broken sealer makes it."""
    monkeypatch.setattr(seal, "to_msgpack", lambda _: to_msgpack(program.program))
    return sealed(path, small_stage((5,)))


def test_a_program_whose_weights_are_not_the_sealed_ones_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for sizes in ((6,), (5, 5), ()):
        vault = resealed(tmp_path, monkeypatch, small_stage(sizes))
        with pytest.raises(VaultFormatError, match="sizes"), vault.opened():
            pass


def test_a_program_of_another_stage_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = resealed(tmp_path, monkeypatch, small_stage((5,), stage=1, stages=2))
    with pytest.raises(VaultOtherStageError), vault.opened():
        pass


def test_a_long_program_spans_chunks(tmp_path: Path) -> None:
    plain = small_stage((1,))
    graph = os.urandom(CHUNK + 100)
    long = replace(plain, program=msgspec.structs.replace(plain.program, graphs=(graph,)))
    vault = sealed(tmp_path, long)
    assert [span.chunk for span in vault.chunks()] == [0, 1, 0]
    with vault.opened() as section:
        assert section.program.graphs == (graph,)


def test_a_platform_without_preadv_reads_it_too(
    vault: SmallVault, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> int:
        raise OSError(errno.ENOSYS, "as in Gramine 1.9")

    monkeypatch.setattr(os, "preadv", missing)
    monkeypatch.setattr(mmap, "mmap", missing)  # a map of a file would take protected memory
    with vault.opened(mapped=False) as section:
        assert read_weights(section) == [weight.tobytes() for weight in vault.stages[0].weights]


def test_a_file_that_cannot_be_read_is_the_machines_fault(vault: SmallVault) -> None:
    buffer = bytearray(b"x" * 10)
    with vault.opened() as section:
        pass
    with pytest.raises(MachineError):  # the context has closed the file
        section.read_weight_into(0, memoryview(buffer))
    assert not any(buffer)
