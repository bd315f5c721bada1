"""Sealed requests and answers: what opens where, and nonces."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultline.channel.keys import Direction
from vaultline.channel.requests import (
    OVERHEAD_BYTES,
    RequestOpener,
    RequestSealer,
    RequestTamperedError,
)
from vaultline.core.errors import LocalProtocolError

SECRET = bytes(range(32))
FORWARD, BACKWARD = Direction.FORWARD, Direction.BACKWARD


def sealed(message: bytes, *, model: int = 3, number: int = 7) -> bytearray:
    out = bytearray(len(message) + OVERHEAD_BYTES)
    sealer = RequestSealer(SECRET, epoch=5, direction=FORWARD)
    sealer.seal_into(model, number, memoryview(message), memoryview(out))
    return out


def opened(
    data: bytes | bytearray,
    *,
    secret: bytes = SECRET,
    epoch: int = 5,
    direction: Direction = FORWARD,
    model: int = 3,
    number: int = 7,
    size: int | None = None,
) -> bytes:
    message = bytearray(len(data) - OVERHEAD_BYTES if size is None else size)
    opener = RequestOpener(secret, epoch=epoch, direction=direction)
    opener.open_into(model, number, memoryview(data), memoryview(message))
    return bytes(message)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.binary(min_size=1, max_size=200))
def test_what_is_sealed_opens_once_more(message: bytes) -> None:
    data = sealed(message)
    assert opened(data) == message
    assert len(message) < 8 or message not in bytes(data)


OPENED_ELSEWHERE: dict[str, Callable[[bytearray], bytes]] = {
    "with another server's secret": lambda data: opened(data, secret=bytes(32)),
    "in another epoch": lambda data: opened(data, epoch=6),
    "as an answer": lambda data: opened(data, direction=BACKWARD),
    "for another model": lambda data: opened(data, model=4),
    "for another request": lambda data: opened(data, number=8),
    "as a longer message": lambda data: opened(data, size=6),
    "cut short": lambda data: opened(data[:-1], size=5),
    "shorter than what sealing adds": lambda data: opened(data[:10], size=5),
}


@pytest.mark.parametrize("case", OPENED_ELSEWHERE)
def test_a_request_opens_nowhere_else(case: str) -> None:
    with pytest.raises(RequestTamperedError):
        OPENED_ELSEWHERE[case](sealed(b"frame"))


def test_every_flipped_bit_is_noticed() -> None:
    data = sealed(b"frame")
    for bit in range(8 * len(data)):
        altered = bytearray(data)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RequestTamperedError):
            opened(altered)


def test_the_same_message_is_sealed_differently_each_time() -> None:
    sealer = RequestSealer(SECRET, epoch=5, direction=FORWARD)
    seen = set()
    for _ in range(50):
        out = bytearray(5 + OVERHEAD_BYTES)
        sealer.seal_into(3, 7, memoryview(b"frame"), memoryview(out))
        assert opened(out) == b"frame"
        seen.add(bytes(out[:8]))
    assert len(seen) == 50


def test_a_secret_has_32_bytes() -> None:
    with pytest.raises(LocalProtocolError, match="32 bytes"):
        RequestSealer(bytes(31), epoch=5, direction=FORWARD)
