"""Grants: sealed to one key in one exchange, for one deployment, plan, epoch and stage."""

from __future__ import annotations

from math import inf, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultline.attest.evidence import PUBLIC_KEY_BYTES
from vaultline.attest.grant import (
    SEALED_GRANT_BYTES_MAX,
    GrantForAnotherDeployment,
    GrantForAnotherEnclave,
    GrantForAnotherEpoch,
    GrantForAnotherPlan,
    GrantForAnotherStage,
    GrantRefused,
    open_grant,
    public_key_bytes,
    transcript_hash,
)
from vaultline.attest.granting import seal_grant
from vaultline.attest.stage_grant import Grant, HopRelease, TensorNotReleased, check_released
from vaultline.core.errors import InputError, RemoteProtocolError
from vaultline.enclave.evidence import fresh_key
from vaultline.testing.attestation import challenge, evidence, grant

KEY = fresh_key()
EVIDENCE = evidence(key=KEY)
TRANSCRIPT = transcript_hash(challenge(), EVIDENCE)
SEALED = seal_grant(grant(), public_key_bytes(KEY), TRANSCRIPT)


def test_the_enclave_that_was_asked_opens_its_grant() -> None:
    assert open_grant(SEALED, KEY, TRANSCRIPT, Grant, challenge=challenge()) == grant()


def test_two_grants_to_one_enclave_share_no_ciphertext() -> None:
    other = seal_grant(grant(), public_key_bytes(KEY), TRANSCRIPT)
    assert other[:1120] != SEALED[:1120]
    assert other[1120:] != SEALED[1120:]


def test_a_grant_hides_its_secrets() -> None:
    for text in (repr(grant()), str(grant()), repr(KEY)):
        for secret in ("kkkk", "iiii", "oooo", "6b6b6b", "object at"):
            assert secret not in text


def test_another_enclave_cannot_open_the_grant() -> None:
    with pytest.raises(GrantForAnotherEnclave):
        open_grant(SEALED, fresh_key(), TRANSCRIPT, Grant, challenge=challenge())


def test_a_grant_opens_only_in_the_exchange_that_it_answers() -> None:
    later = transcript_hash(challenge(nonce=bytes(32)), EVIDENCE)
    other = transcript_hash(challenge(), evidence(key=KEY))
    for transcript in (later, other, b""):
        with pytest.raises(GrantForAnotherEnclave):
            open_grant(SEALED, KEY, transcript, Grant, challenge=challenge())


MISMATCHES = {
    "another stage": ({"stage": 2}, GrantForAnotherStage),
    "another epoch": ({"epoch": 8}, GrantForAnotherEpoch),
    "another plan": ({"plan_digest": bytes(32)}, GrantForAnotherPlan),
    "another deployment": ({"deployment": bytes(16)}, GrantForAnotherDeployment),
}


@pytest.mark.parametrize("changes, error", MISMATCHES.values(), ids=MISMATCHES.keys())
def test_a_grant_is_refused_when_it_is_for(
    changes: dict[str, object], error: type[GrantRefused]
) -> None:
    sealed = seal_grant(grant(**changes), public_key_bytes(KEY), TRANSCRIPT)
    with pytest.raises(error):
        open_grant(sealed, KEY, TRANSCRIPT, Grant, challenge=challenge())


@given(st.integers(0, len(SEALED) - 1), st.integers(1, 255))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_a_grant_with_a_changed_byte_does_not_open(position: int, flip: int) -> None:
    damaged = bytearray(SEALED)
    damaged[position] ^= flip
    with pytest.raises(GrantForAnotherEnclave):
        open_grant(bytes(damaged), KEY, TRANSCRIPT, Grant, challenge=challenge())


@given(st.binary(max_size=1400))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_any_bytes_raise_only_protocol_errors(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        open_grant(data, KEY, TRANSCRIPT, Grant, challenge=challenge())


def test_a_grant_over_the_limit_is_refused_before_decryption() -> None:
    with pytest.raises(RemoteProtocolError, match="too long"):
        open_grant(bytes(SEALED_GRANT_BYTES_MAX + 1), KEY, TRANSCRIPT, Grant, challenge=challenge())


NOT_KEYS = {
    "too short": b"k" * (PUBLIC_KEY_BYTES - 1),
    "too long": b"k" * (PUBLIC_KEY_BYTES + 1),
    "an ML-KEM key out of range": b"\xff" * PUBLIC_KEY_BYTES,
    "an X25519 point of low order": public_key_bytes(KEY)[:-32] + bytes(32),
}


@pytest.mark.parametrize("key", NOT_KEYS.values(), ids=NOT_KEYS.keys())
def test_a_peers_key_is_a_protocol_error_when_it_is(key: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        seal_grant(grant(), key, TRANSCRIPT)


def test_a_grant_with_a_key_of_the_wrong_length_cannot_be_made() -> None:
    with pytest.raises(InputError):
        type(grant())(
            stage=0,
            epoch=0,
            deployment=bytes(16),
            plan_digest=bytes(32),
            stage_key=bytes(16),
            section_digest=bytes(32),
            section_offset=0,
            section_bytes=480,
            program_bytes=400,
            vault_id=bytes(16),
            model_id=bytes(16),
            hop_in_secret=bytes(32),
            hop_out_secret=bytes(32),
        )


NAMES = ("conv1", "skip")
#: Case -> (what is released, what would be seen).
UNRELEASED = {
    "nothing is released": (None, ["conv1"]),
    "nothing is released, and nothing would be seen": (None, []),
    "a tensor is not among the released ones": (
        HopRelease(tensors=NAMES, leakage=0.1, limit=0.3), ["conv1", "image"]
    ),
    "they leak more than the limit": (
        HopRelease(tensors=NAMES, leakage=0.31, limit=0.3), ["conv1"]
    ),
    "the leakage is no number": (HopRelease(tensors=NAMES, leakage=nan, limit=0.3), ["conv1"]),
    "the limit is no number": (HopRelease(tensors=NAMES, leakage=0.1, limit=nan), ["conv1"]),
    "there is no limit": (HopRelease(tensors=NAMES, leakage=0.1, limit=inf), ["conv1"]),
}  # fmt: skip


@pytest.mark.parametrize("case", UNRELEASED)
def test_an_untrusted_stage_sees_nothing_where(case: str) -> None:
    released, seen = UNRELEASED[case]
    with pytest.raises(TensorNotReleased) as caught:
        check_released(released, seen)
    said = f"{caught.value.message} {caught.value.got} {caught.value.expected}"
    assert not any(name in said for name in ("conv1", "image")), "the host hears this"


def test_an_untrusted_stage_sees_what_is_released() -> None:
    for leakage in (-1.0, 0.0, 0.3):
        check_released(HopRelease(tensors=NAMES, leakage=leakage, limit=0.3), ["skip"])


def test_a_grant_carries_the_release_of_a_wide_cut_and_no_more() -> None:
    wide = tuple(f"model/features/denseblock4/denselayer16/concat_{k:04}" for k in range(4096))
    release = HopRelease(tensors=wide, leakage=0.1, limit=0.3)
    sealed = seal_grant(grant(release=release), public_key_bytes(KEY), TRANSCRIPT)
    assert open_grant(sealed, KEY, TRANSCRIPT, Grant, challenge=challenge()).release == release
    too_wide = HopRelease(tensors=tuple(name * 3 for name in wide), leakage=0.1, limit=0.3)
    with pytest.raises(InputError, match="too large"):
        seal_grant(grant(release=too_wide), public_key_bytes(KEY), TRANSCRIPT)
