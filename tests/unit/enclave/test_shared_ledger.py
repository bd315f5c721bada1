"""A ledger for threads: taken and released in any order, by whoever, and never out of balance."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultline.core.errors import LocalProtocolError
from vaultline.enclave.ledger import BudgetExceededError
from vaultline.enclave.shared_ledger import Account, SharedLedger

BUDGET = 1000


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from("rtlgc"), st.integers(0, 2), st.integers(0, 400))))
def test_the_ledger_balances_and_closed_accounts_leave_nothing(
    events: list[tuple[str, int, int]],
) -> None:
    ledger = SharedLedger(BUDGET)
    ledger.reserve("idle", 300, "workspaces")
    accounts, lent = [Account(ledger) for _ in range(3)], 0
    for what, which, size in events:
        account = accounts[which]
        try:
            if what == "r":
                account.reserve("engine", size, "sessions")
            elif what == "t":
                account.take("resident", size, "weights")
            elif what == "l":
                account.lend("tile", size)
                lent += size
            elif what == "g":
                account.give_back("tile", min(size, lent))
                lent -= min(size, lent)
            else:
                account.close()
        except BudgetExceededError:
            pass
        assert sum(ledger.held.values()) + ledger.free_bytes == BUDGET
        assert min(*ledger.held.values(), ledger.free_bytes) >= 0
        assert ledger.held["engine"] == sum(each.held["engine"] for each in accounts)
        assert ledger.held["resident"] == sum(each.held["resident"] for each in accounts)
    for account in accounts:
        account.close()
        account.close()
    assert ledger.held["tile"] == lent
    assert ledger.free_bytes == BUDGET - 300


def test_threads_that_take_and_release_at_once_leave_a_balance() -> None:
    ledger, barrier, refused = SharedLedger(BUDGET), threading.Barrier(4), [0] * 4

    def work(number: int) -> None:
        barrier.wait()
        for turn in range(2000):
            size = 1 + (turn * 7 + number) % 400
            try:
                ledger.reserve("io", size, "a message")
            except BudgetExceededError:
                refused[number] += 1
            else:
                ledger.release("io", size)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (ledger.held["io"], ledger.free_bytes) == (0, BUDGET)
    assert ledger.peak["io"] <= BUDGET


@pytest.mark.parametrize("size", [-1, 11])
def test_more_than_is_held_is_not_released(size: int) -> None:
    ledger = SharedLedger(BUDGET)
    ledger.reserve("io", 10, "a message")
    with pytest.raises(LocalProtocolError):
        ledger.release("io", size)
    assert ledger.held["io"] == 10
