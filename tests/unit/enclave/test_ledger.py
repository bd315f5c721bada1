"""held + free == budget at every event, and a refusal changes nothing."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultline.enclave.ledger import BudgetExceededError, BufferKind, Ledger

KINDS = st.sampled_from(get_args(BufferKind))
SIZES = st.one_of(st.integers(-5, 300), st.integers(1 << 15, 1 << 18))
EVENTS = st.lists(st.tuples(st.booleans(), KINDS, SIZES), max_size=30)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(budget=st.integers(0, 1 << 18), events=EVENTS)
def test_held_and_free_are_the_budget_at_every_event(
    budget: int, events: list[tuple[bool, BufferKind, int]]
) -> None:
    ledger = Ledger(budget)
    held = dict.fromkeys(get_args(BufferKind), 0)
    for real, kind, size in events:
        fits = 0 <= size <= budget - sum(held.values())
        try:
            if real:
                buffer = ledger.take(kind, size, "something")
                assert (buffer.nbytes, buffer.dtype) == (size, np.uint8)
                assert not buffer.any()
            else:
                ledger.reserve(kind, size, "something")
            assert fits
            held[kind] += size
        except BudgetExceededError as error:
            assert not fits
            assert error.got
            assert error.remedy
        assert ledger.held == held
        assert sum(ledger.held.values()) + ledger.free_bytes == budget
        assert ledger.free_bytes >= 0


@pytest.mark.parametrize("size", [1, 63, 64, 4096, (1 << 16) - 1, 1 << 16, 3_000_001])
def test_buffers_are_aligned_writable_and_of_their_own(size: int) -> None:
    ledger = Ledger(4 * size)
    one, two = ledger.take("io", size, "one"), ledger.take("io", size, "two")
    assert one.ctypes.data % 64 == two.ctypes.data % 64 == 0
    one[:] = 7
    assert not two.any()
    assert len(memoryview(one.data)) == size


def test_a_buffer_of_no_bytes_is_a_buffer() -> None:
    assert Ledger(0).take("activation", 0, "an empty tensor").nbytes == 0
