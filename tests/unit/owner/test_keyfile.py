"""Key files: round trip, rights, wrong keys, damage."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from jwcrypto.jwe import JWE
from jwcrypto.jwk import JWK

from vaultline.channel.chunks import VaultOtherPlanError
from vaultline.core.errors import InputError
from vaultline.owner.keyfile import (
    SEALINGS_MAX,
    Kek,
    KeyFileDamagedError,
    KeyFileModeError,
    SealedKeys,
    WrongKekError,
    default_kek_path,
    load_kek,
    new_keys,
    read_keyfile,
    write_keyfile,
)
from vaultline.owner.seal import SealedSection, Sealing, derive_model_id

KEK = Kek(kid="kbs:///default/model-key/one", key=b"1" * 32)


def sealing(keys: SealedKeys, plan: bytes = b"p" * 32, vault: bytes = b"v" * 16) -> Sealing:
    return Sealing(
        vault_id=vault,
        model_id=keys.model_id,
        plan_digest=plan,
        model_digest="ab",
        created="2026-11-01T12:00:00+00:00",
        salt=b"s" * 32,
        front_digest=b"f" * 32,
        sections=tuple(
            SealedSection(digest=digest * 32, offset=9, length=200, program_bytes=40)
            for digest in (b"d", b"e")
        ),
    )


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, SealedKeys]:
    keys = new_keys()
    keys = keys.with_sealing(sealing(keys))
    path = tmp_path / "model.keys"
    write_keyfile(path, keys, KEK)
    return path, keys


def test_what_was_written_is_read(written: tuple[Path, SealedKeys]) -> None:
    path, keys = written
    assert read_keyfile(path, KEK) == keys
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_file_is_a_standard_jwe_and_shows_no_secret(
    written: tuple[Path, SealedKeys],
) -> None:
    path, keys = written
    text = path.read_text()
    jwe = JWE()
    jwe.deserialize(text, JWK(kty="oct", k="MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE"))
    assert json.loads(jwe.payload)["version"] == 1
    assert jwe.jose_header == {
        "alg": "A256KW",
        "enc": "A256GCM",
        "kid": "kbs:///default/model-key/one",
        "typ": "JWE",
    }
    for secret in (keys.model_key, KEK.key):
        assert secret not in text.encode() and secret.hex() not in text


def test_no_secret_shows_in_a_repr() -> None:
    keys = new_keys()
    assert repr(keys.model_key) not in repr(keys) and "model_key" not in repr(keys)
    assert repr(KEK.key) not in repr(KEK)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666, 0o601])
def test_a_file_that_others_have_rights_on_is_refused(
    mode: int, written: tuple[Path, SealedKeys]
) -> None:
    path, _ = written
    path.chmod(mode)
    with pytest.raises(KeyFileModeError) as refusal:
        read_keyfile(path, KEK)
    assert refusal.value.remedy == f"chmod 600 {path}"
    path.chmod(0o400)
    read_keyfile(path, KEK)


def test_a_wrong_kek_is_told_which_one_was_expected(written: tuple[Path, SealedKeys]) -> None:
    path, _ = written
    other = Kek(kid="kbs:///default/model-key/two", key=b"2" * 32)
    with pytest.raises(WrongKekError) as refusal:
        read_keyfile(path, other)
    assert refusal.value.expected == KEK.kid and refusal.value.got == other.kid


def test_another_key_under_the_same_id_does_not_open(written: tuple[Path, SealedKeys]) -> None:
    with pytest.raises(KeyFileDamagedError):
        read_keyfile(written[0], Kek(kid=KEK.kid, key=b"2" * 32))


def alter(field: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        parts = json.loads(text)
        value = parts[field]
        middle = len(value) // 2
        letter = "A" if value[middle] != "A" else "B"
        parts[field] = value[:middle] + letter + value[middle + 1 :]
        return json.dumps(parts)

    return change


def rewrap(payload: bytes) -> Callable[[str], str]:
    def change(text: str) -> str:
        jwe = JWE(payload, protected={"alg": "A256KW", "enc": "A256GCM", "kid": KEK.kid})
        jwe.add_recipient(KEK.jwk())
        return str(jwe.serialize())

    return change


def other_algorithm(text: str) -> str:
    jwe = JWE(b"{}", protected={"alg": "dir", "enc": "A256GCM", "kid": KEK.kid})
    jwe.add_recipient(KEK.jwk())
    return str(jwe.serialize())


DAMAGE: dict[str, Callable[[str], str]] = {
    "an empty file": lambda text: "",
    "half a file": lambda text: text[: len(text) // 2],
    "a list": lambda text: "[]",
    "a number": lambda text: "7",
    "an object without fields": lambda text: "{}",
    "an altered ciphertext": alter("ciphertext"),
    "an altered tag": alter("tag"),
    "an altered nonce": alter("iv"),
    "an altered wrapped key": alter("encrypted_key"),
    "a wrapped text that is no JSON": rewrap(b"\xff"),
    "a wrapped text of another kind": rewrap(b'{"version":1}'),
    "another algorithm": other_algorithm,
    "a file far too long": lambda text: text + " " * (5 << 20),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused(damage: str, written: tuple[Path, SealedKeys]) -> None:
    path, _ = written
    path.write_text(DAMAGE[damage](path.read_text()))
    with pytest.raises(KeyFileDamagedError):
        read_keyfile(path, KEK)


def test_every_flipped_bit_is_refused_by_name(written: tuple[Path, SealedKeys]) -> None:
    path, keys = written
    data = path.read_bytes()
    for position in range(0, len(data) - 1, 7):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        try:
            assert read_keyfile(path, KEK) == keys  # unused bits at the end of base64url
        except (KeyFileDamagedError, WrongKekError):
            continue


def test_a_missing_file_or_a_folder_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        read_keyfile(tmp_path / "none", KEK)
    with pytest.raises(InputError):
        read_keyfile(tmp_path, KEK)


def test_the_newest_sealing_of_a_plan_is_the_only_one() -> None:
    keys = new_keys()
    old, new = sealing(keys, vault=b"1" * 16), sealing(keys, vault=b"2" * 16)
    other = sealing(keys, plan=b"q" * 32)
    keys = keys.with_sealing(old).with_sealing(other).with_sealing(new)
    assert keys.sealings == (other, new)
    assert keys.sealing_for(b"p" * 32) == new
    assert keys.sealing_for(b"q" * 32) == other
    with pytest.raises(VaultOtherPlanError):
        keys.sealing_for(b"r" * 32)


def test_the_oldest_of_too_many_sealings_goes() -> None:
    keys = new_keys()
    for number in range(SEALINGS_MAX + 1):
        keys = keys.with_sealing(sealing(keys, plan=number.to_bytes(32, "big")))
    assert len(keys.sealings) == SEALINGS_MAX
    assert keys.sealings[0].plan_digest == (1).to_bytes(32, "big")


def test_a_sealing_of_another_model_does_not_belong() -> None:
    with pytest.raises(InputError):
        new_keys().with_sealing(sealing(new_keys()))


def test_a_model_id_is_public_and_equal_for_equal_keys() -> None:
    keys = new_keys()
    assert keys.model_id == derive_model_id(keys.model_key)
    assert keys.model_id != new_keys().model_id


def test_a_kek_is_created_once_and_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(InputError):
        load_kek()
    kek = load_kek(create=True)
    assert kek.kid.startswith("kbs:///default/model-key/") and len(kek.key) == 32
    assert load_kek() == load_kek(create=True) == kek
    assert default_kek_path() == tmp_path / "vaultline" / "kek.jwk"
    assert default_kek_path().stat().st_mode & 0o777 == 0o600
    default_kek_path().chmod(0o644)
    with pytest.raises(KeyFileModeError):
        load_kek()


def test_the_default_kek_lies_in_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CONFIG_HOME", value)
        assert default_kek_path() == Path("/home/someone/.config/vaultline/kek.jwk")


def private(path: Path, text: str) -> Path:
    path.touch(0o600)
    path.write_text(text)
    return path


def test_a_kek_without_id_is_known_by_its_thumbprint(tmp_path: Path) -> None:
    jwk = JWK.generate(kty="oct", size=256)
    kek = load_kek(private(tmp_path / "kek", jwk.export()))
    assert kek.kid == "kbs:///default/model-key/" + jwk.thumbprint()


NOT_KEKS = {
    "no JSON": "key",
    "a list": "[]",
    "no key": "{}",
    "128 bits": JWK.generate(kty="oct", size=128).export(),
    "an elliptic curve": JWK.generate(kty="EC", crv="P-256").export(),
    "a public key": JWK.generate(kty="EC", crv="P-256").export_public(),
    "a key for signatures": JWK.generate(kty="oct", size=256, use="sig").export(),
    "no base64": '{"kty":"oct","k":"%%%"}',
}


@pytest.mark.parametrize("case", NOT_KEKS)
def test_what_is_no_kek_is_refused(case: str, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        load_kek(private(tmp_path / "kek", NOT_KEKS[case]))


def test_binary_files_are_neither(tmp_path: Path) -> None:
    path = private(tmp_path / "x", "")
    path.write_bytes(b"\xff\xfe" + os.urandom(100))
    with pytest.raises(KeyFileDamagedError):
        read_keyfile(path, KEK)
