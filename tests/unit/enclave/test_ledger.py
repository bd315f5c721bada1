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
def test_held_and_free_are_the_budget_whatever_is_taken(
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


LENDING = st.lists(
    st.tuples(
        st.sampled_from(["lend", "give_back", "reserve"]),
        st.sampled_from(["tile", "activation"]),
        st.integers(-2, 120),
    ),
    max_size=30,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(idle=st.integers(0, 200), free=st.integers(0, 100), events=LENDING)
def test_idle_memory_is_lent_and_given_back(
    idle: int, free: int, events: list[tuple[str, BufferKind, int]]
) -> None:
    """Neither more than is idle nor more than was lent; lending changes nothing of what is free."""
    ledger = Ledger(idle + free)
    ledger.reserve("idle", idle, "the workspace")
    held = dict(ledger.held)
    peak = dict(held)
    for event, kind, size in events:
        before = ledger.held
        snapshot = dict(before)
        moved = {"lend": ("idle", kind), "give_back": (kind, "idle")}.get(event)
        most = held[moved[0]] if moved else idle + free - sum(held.values())
        try:
            if event == "reserve":
                ledger.reserve(kind, size, "something")
            else:
                getattr(ledger, event)(kind, size)
            assert 0 <= size <= most
            held[moved[1] if moved else kind] += size
            if moved:
                held[moved[0]] -= size
        except BudgetExceededError as error:
            assert not 0 <= size <= most
            assert error.message
        peak = {each: max(peak[each], held[each]) for each in held}
        assert ledger.held == held
        assert before == snapshot, "who has looked keeps what was then"
        assert ledger.peak[kind] == peak[kind]
        assert sum(ledger.held.values()) + ledger.free_bytes == idle + free


def test_what_is_lent_for_a_while_comes_back_after_an_error() -> None:
    ledger = Ledger(100)
    ledger.reserve("idle", 80, "the workspace")
    with pytest.raises(KeyError), ledger.lent("activation", 60):
        assert ledger.held["activation"] == ledger.peak["activation"] == 60
        assert ledger.held["idle"] == 20
        with pytest.raises(BudgetExceededError, match="activation"):
            ledger.lend("activation", 21)
        raise KeyError
    assert (ledger.held["activation"], ledger.held["idle"]) == (0, 80)
    assert ledger.peak["activation"] == 60


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
