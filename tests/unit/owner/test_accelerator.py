"""Keys of accelerators: made once, readable by their owner alone, named in a policy."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from vaultline.attest.policy import Policy
from vaultline.bench.rig import make_trust
from vaultline.core.errors import InputError
from vaultline.core.yaml import from_yaml
from vaultline.owner.accelerator import (
    ACCELERATOR_FILE,
    accelerator_entry,
    check_accelerator_key,
    create_accelerator,
)
from vaultline.owner.appraisal import load_policy
from vaultline.owner.keyfile import KeyFileModeError


def test_a_key_is_its_owners_alone_and_never_overwritten(tmp_path: Path) -> None:
    key = create_accelerator(tmp_path / "new")
    path = tmp_path / "new" / ACCELERATOR_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert check_accelerator_key(path) == key
    with pytest.raises(InputError) as caught:
        create_accelerator(tmp_path / "new")
    assert caught.value.remedy
    assert check_accelerator_key(path) == key
    assert create_accelerator(tmp_path).public_key != key.public_key


def test_a_key_hides_itself(tmp_path: Path) -> None:
    key = create_accelerator(tmp_path)
    for secret in (repr(key.private_key)[2:-1], key.private_key.hex()):
        assert secret not in f"{key!r} {key}"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    create_accelerator(tmp_path)
    (tmp_path / ACCELERATOR_FILE).chmod(mode)
    with pytest.raises(KeyFileModeError) as caught:
        check_accelerator_key(tmp_path / ACCELERATOR_FILE)
    assert caught.value.remedy


FILES = {
    "nothing": b"",
    "another file": b"{}",
    "a short key": b'{"private_key":"AAAA","version":1}',
    "another version": b'{"private_key":"' + b"A" * 43 + b'=","version":2}',
}


@pytest.mark.parametrize("case", FILES)
def test_a_key_file_is_refused_that_holds(case: str, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(FILES[case])
    path.chmod(0o600)
    with pytest.raises(InputError):
        check_accelerator_key(path)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match="cannot read the accelerator's key") as caught:
            check_accelerator_key(path)
        assert "policy accelerator" in str(caught.value.remedy)


def test_the_entry_is_one_of_a_policy(tmp_path: Path) -> None:
    keys = [create_accelerator(tmp_path / name).public_key for name in "ab"]
    text = "version: 1\naccept:\n" + accelerator_entry(keys)
    (entry,) = from_yaml(text, Policy, what="the policy", path="policy.yaml").accept
    assert entry.kind == "accelerator"
    assert entry.pinned_keys == {key.hex() for key in keys}


def test_a_development_policy_accepts_the_accelerator_beside_it(tmp_path: Path) -> None:
    files = make_trust(tmp_path)
    kinds = {entry.kind: entry for entry in load_policy(files["policy"]).accept}
    assert kinds.keys() == {"simulated", "accelerator"}
    key = check_accelerator_key(files["accelerator"])
    assert kinds["accelerator"].pinned_keys == {key.public_key.hex()}
