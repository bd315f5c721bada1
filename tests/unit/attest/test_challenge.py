"""Challenges and the report data that commits to them."""

from __future__ import annotations

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultline.attest.challenge import CHALLENGE_BYTES, Challenge, report_data
from vaultline.core.errors import InputError, RemoteProtocolError
from vaultline.testing.attestation import challenge

CHALLENGES = st.builds(
    Challenge,
    nonce=st.binary(min_size=32, max_size=32),
    deployment=st.binary(min_size=16, max_size=16),
    epoch=st.integers(0, 2**64 - 1),
    stage=st.integers(0, 63),
    plan_digest=st.binary(min_size=32, max_size=32),
)


@given(CHALLENGES)
@settings(derandomize=True, deadline=None)
def test_decoding_gives_back_what_was_encoded(asked: Challenge) -> None:
    assert Challenge.decode(asked.encode()) == asked


@given(CHALLENGES, CHALLENGES)
@settings(derandomize=True, deadline=None)
def test_different_challenges_encode_differently(one: Challenge, other: Challenge) -> None:
    assert (one.encode() == other.encode()) == (one == other)


@given(st.binary(max_size=2 * CHALLENGE_BYTES))
@settings(derandomize=True, deadline=None)
def test_any_bytes_are_a_challenge_or_a_protocol_error(data: bytes) -> None:
    with suppress(RemoteProtocolError):
        assert Challenge.decode(data).encode() == data


@given(st.integers(0, CHALLENGE_BYTES - 1), st.integers(1, 255))
@settings(derandomize=True, deadline=None)
def test_no_changed_byte_keeps_the_challenge(position: int, flip: int) -> None:
    data = bytearray(challenge().encode())
    data[position] ^= flip
    with suppress(RemoteProtocolError):
        assert Challenge.decode(bytes(data)) != challenge()


OUT_OF_RANGE = {
    "a nonce that is too short": {"nonce": b"n" * 31},
    "a deployment that is too long": {"deployment": b"d" * 17},
    "an empty plan digest": {"plan_digest": b""},
    "an epoch below zero": {"epoch": -1},
    "an epoch over 64 bits": {"epoch": 2**64},
    "a stage that no plan has": {"stage": 64},
    "another version": {"version": 3},
}


@pytest.mark.parametrize("changes", OUT_OF_RANGE.values(), ids=OUT_OF_RANGE.keys())
def test_no_challenge_has(changes: dict[str, object]) -> None:
    fields = msgspec.structs.asdict(challenge()) | changes
    with pytest.raises(InputError):
        Challenge(**fields)


def test_report_data_depends_on_every_field_and_on_the_key() -> None:
    changes: list[dict[str, object]] = [
        {},
        {"nonce": bytes(32)},
        {"deployment": bytes(16)},
        {"epoch": 8},
        {"stage": 2},
        {"plan_digest": bytes(32)},
    ]
    found = {report_data(challenge(**change), key) for change in changes for key in (b"a", b"b")}
    assert len(found) == 2 * len(changes)
    assert {len(data) for data in found} == {64}


def test_report_data_is_the_documented_hash() -> None:
    # sha512(b"vaultline report data v1\0" + encoding + b"key"), computed with coreutils' sha512sum
    assert challenge().encode().hex() == GOLDEN_ENCODING
    assert report_data(challenge(), b"key").hex() == GOLDEN_REPORT_DATA


GOLDEN_ENCODING = (
    "01000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
    "6465706c6f796d656e742d2d2d2d2d2d0000000000000007"
    "0001aab8f06fecd1c041e9a3d5a86114f9e522b546918db8503a045fe4a423b3642a"
)
GOLDEN_REPORT_DATA = (
    "de932666f7bb64521b65557255fcddf286f1dfea723dcd47ad2aaf113e9b9a2c"
    "13a3d217c90ffdbafb2a0e30aa06d4aa98d4443d651d96fff4feded960a4e825"
)
