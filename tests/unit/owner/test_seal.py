"""Sealing: what lands in the file, what the owner keeps, and what is refused."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import ml_dtypes
import msgspec
import numpy as np
import pytest

from vaultline.channel.chunks import VaultTamperedError, VaultTruncatedError
from vaultline.core.errors import InputError, MachineError
from vaultline.core.limits import VAULT_CHUNK_BYTES_MAX
from vaultline.core.serde import canonical_json, from_json
from vaultline.owner.seal import (
    SealableStage,
    Sealing,
    check_vault,
    derive_model_id,
    derive_stage_key,
    read_vault_header,
    replaced_atomically,
    seal_vault,
)
from vaultline.testing.vaults import SmallStage, SmallVault, read_weights, small_stage

KEY, PLAN = bytes(range(32)), b"p" * 32
CHUNK = VAULT_CHUNK_BYTES_MAX


def seal(path: Path, *stages: SealableStage, **options: object) -> Sealing:
    return seal_vault(path, stages, model_key=KEY, plan_digest=PLAN, model_digest="ab", **options)


def hkdf(key: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 by hand, for one block."""
    extracted = hmac.digest(salt or bytes(32), key, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")[:length]


def test_a_stage_key_is_hkdf_of_label_plan_digest_and_stage() -> None:
    info = b"vaultline stage key v1" + PLAN + (2).to_bytes(4, "big")
    derived = derive_stage_key(KEY, salt=b"s" * 32, plan_digest=PLAN, stage=2)
    assert derived == hkdf(KEY, b"s" * 32, info, 32)
    assert derive_model_id(KEY) == hkdf(KEY, b"", b"vaultline model id v1", 16)


def test_stage_keys_differ_by_salt_plan_and_stage(tmp_path: Path) -> None:
    first = seal(tmp_path / "a", small_stage((1,)))
    second = seal(tmp_path / "b", small_stage((1,)))
    keys = {
        first.stage_key(KEY, 0),
        first.stage_key(KEY, 1),
        second.stage_key(KEY, 0),
        msgspec.structs.replace(first, plan_digest=b"q" * 32).stage_key(KEY, 0),
    }
    assert len(keys) == 4
    assert first.model_id == second.model_id and first.vault_id != second.vault_id


def test_the_public_header_says_where_sections_lie_and_who_made_them(tmp_path: Path) -> None:
    path, when = tmp_path / "a.vault", datetime(2026, 11, 1, 12, tzinfo=UTC)
    stages = [small_stage((10, CHUNK + 1), stage=stage, stages=2) for stage in range(2)]
    sealing = seal(path, *stages, created=when)
    header = read_vault_header(path)
    assert header == check_vault(path, sealing)
    assert header.created == "2026-11-01T12:00:00+00:00"
    assert (header.vault_id, header.model_id) == (sealing.vault_id, sealing.model_id)
    assert [entry.chunks for entry in header.sections] == [4, 4]
    assert [entry.isa for entry in header.sections] == ["portable", "portable"]
    assert header.sections[1].offset == header.sections[0].length
    assert KEY not in path.read_bytes() and sealing.salt not in path.read_bytes()


def test_a_sealing_survives_its_text(tmp_path: Path) -> None:
    sealing = seal(tmp_path / "a.vault", small_stage((1, 2)))
    assert from_json(canonical_json(sealing), Sealing, what="a sealing") == sealing
    with pytest.raises(InputError):
        msgspec.structs.replace(sealing, salt=b"short")


def test_progress_ends_at_the_size_of_the_file(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = tmp_path / "a.vault"
    seal(path, small_stage((2 * CHUNK + 3, 0, 5)), progress=lambda *now: seen.append(now))
    size = path.stat().st_size
    assert seen[-1] == (size, size)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert len(seen) == 1 + 6


def weighted(stage: SmallStage, *weights: object, dtype: str = "uint8") -> SealableStage:
    specs = tuple(
        msgspec.structs.replace(
            weight, spec=msgspec.structs.replace(weight.spec, dtype=dtype, shape=(2, 3))
        )
        for weight in stage.program.weights
    )
    program = msgspec.structs.replace(stage.program, weights=specs)
    return replace(stage, program=program, weights=weights)


GRID = np.arange(6).reshape(2, 3)
BUFFERS = {
    "float32": (GRID.astype(np.float32), "float32"),
    "float16": (GRID.astype(np.float16), "float16"),
    "bfloat16, which exports no buffer": (GRID.astype(ml_dtypes.bfloat16), "bfloat16"),
    "bool": (GRID % 2 == 0, "bool"),
    "a transposed view": (GRID.T.astype(np.int64).T, "int64"),
    "bytes": (bytes(6), "uint8"),
    "a memoryview of words": (memoryview(GRID.astype(np.int32)), "int32"),
    "a read-only array": (np.frombuffer(bytes(6), np.uint8).reshape(2, 3), "uint8"),
}


@pytest.mark.parametrize("kind", BUFFERS)
def test_weights_of_every_kind_are_sealed_in_row_major_order(kind: str, tmp_path: Path) -> None:
    data, dtype = BUFFERS[kind]
    stage = weighted(small_stage((6,)), data, dtype=dtype)
    vault = SmallVault.seal(tmp_path / "a.vault", [stage], model_key=KEY, plan_digest=PLAN)
    expected = data.tobytes() if isinstance(data, np.ndarray | memoryview) else data
    with vault.opened() as section:
        assert read_weights(section) == [expected]


def of_stage(stage: int, stages: int) -> SmallStage:
    return small_stage((1,), stage=stage, stages=stages)


REFUSED = {
    "stages out of order": [of_stage(1, 2), of_stage(0, 2)],
    "stages of a longer plan": [of_stage(0, 3), of_stage(1, 3)],
    "a weight that is missing": [replace(small_stage((1, 2)), weights=())],
    "a weight that does not fit": [replace(small_stage((4,)), weights=(np.zeros(5, np.uint8),))],
    "no stage at all": [],
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_together_is_refused_and_writes_nothing(
    case: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError):
        seal(tmp_path / "a.vault", *REFUSED[case])
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_the_older_vault_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "a.vault"
    older = seal(path, small_stage((10,)))

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        seal(path, small_stage((CHUNK * 3,)), progress=stop)
    check_vault(path, older)
    assert list(tmp_path.iterdir()) == [path]


def test_a_wrong_name_to_read_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(MachineError):
        seal(tmp_path / "none" / "a.vault", small_stage((1,)))
    with pytest.raises(InputError):
        read_vault_header(tmp_path / "none")
    with pytest.raises(InputError):
        check_vault(tmp_path, seal(tmp_path / "a", small_stage((1,))))


def test_replacing_keeps_the_mode_it_was_asked_for(tmp_path: Path) -> None:
    with replaced_atomically(tmp_path / "a", mode=0o600) as file:
        file.write(b"x")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


def test_the_check_finds_an_altered_tag_without_reading_ciphertext(tmp_path: Path) -> None:
    vault = SmallVault.seal(
        tmp_path / "a.vault", [small_stage((100, 50))], model_key=KEY, plan_digest=PLAN
    )
    data = bytearray(vault.sealed)
    data[vault.chunks()[1].tag] ^= 1
    vault.path.write_bytes(data)
    with pytest.raises(VaultTamperedError, match="stage 0"):
        check_vault(vault.path, vault.sealing)
    vault.path.write_bytes(vault.sealed[:-1])
    with pytest.raises(VaultTruncatedError):
        check_vault(vault.path, vault.sealing)


def test_the_front_digest_is_of_every_byte_before_the_sections(tmp_path: Path) -> None:
    vault = SmallVault.seal(
        tmp_path / "a.vault", [small_stage(())], model_key=KEY, plan_digest=PLAN
    )
    front = vault.sealed[: vault.chunks()[0].start]
    digest = hashlib.sha256(b"vaultline vault header v1" + front).digest()
    assert vault.sealing.front_digest == digest
