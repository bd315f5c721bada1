"""One end for each request, over servers that are lost."""

from __future__ import annotations

from concurrent.futures import Future

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultline.sched.balancer import Balancer, Earliest, RoundRobin
from vaultline.sched.events import Request
from vaultline.sched.replay import BalancerEntry, LogEntry, SentEntry
from vaultline.sched.report import Report
from vaultline.serve.answers import Counters, Loss
from vaultline.serve.dispatch import Dispatcher, Pending
from vaultline.testing.serving import model, server

MODELS = {"m": model("m"), "n": model("n")}


def dispatcher(servers: int = 2, log: list[LogEntry] | None = None) -> Dispatcher:
    facts = [server(f"s{k}", list(MODELS)) for k in range(servers)]
    chooser = RoundRobin() if log is None else Earliest()
    return Dispatcher(Balancer(facts, MODELS, chooser), None if log is None else log.append)


def pending(number: int, name: str = "m") -> Pending:
    request = Request(number=number, model=name, arrived_s=float(number))
    return Pending(request=request, model=0, message=memoryview(b"12345"), future=Future())


def loss(name: str, now_s: float = 100.0) -> Loss:
    return Loss(server=name, code="X", message="gone", heard_s=now_s - 1, lost_s=now_s)


def test_an_answer_ends_a_request_once() -> None:
    dispatch = dispatcher()
    name = dispatch.submit(pending(1), 1.0)
    assert name is not None
    assert dispatch.open_bytes == 5
    ended = dispatch.ended(name, 1, "answered", 2.0)
    assert ended is not None
    assert ended.request.number == 1
    assert dispatch.ended(name, 1, "answered", 2.0) is None
    assert (dispatch.open, dispatch.open_bytes) == ({}, 0)
    assert dispatch.counters() == Counters(submitted=1, answered=1, late=1)


def test_only_the_server_that_has_a_request_ends_it() -> None:
    dispatch = dispatcher()
    name = dispatch.submit(pending(1), 1.0)
    other = {"s0": "s1", "s1": "s0"}[name or ""]
    assert dispatch.ended(other, 1, "answered", 2.0) is None
    assert dispatch.ended("nobody", 1, "answered", 2.0) is None
    assert 1 in dispatch.open


def test_others_take_over_what_a_lost_server_held_and_its_late_answers_count_for_nothing() -> None:
    dispatch = dispatcher()
    where = {number: dispatch.submit(pending(number), float(number)) for number in range(6)}
    held = [number for number, name in where.items() if name == "s0"]
    moved, unplaced = dispatch.lost(loss("s0"))
    assert [each.request.number for each in moved] == held
    assert not unplaced
    assert {each.server for each in moved} == {"s1"}
    assert {each.attempts for each in moved} == {2}
    assert all(dispatch.ended("s0", number, "answered", 101.0) is None for number in held)
    for number in range(6):
        assert dispatch.ended("s1", number, "answered", 101.0 + number) is not None
    (found,) = dispatch.losses()
    assert found.moved == len(held)
    assert found.recovered_s == 101.0 + max(held)
    assert found.recovery_s == found.recovered_s - 99.0


def test_a_request_that_a_server_sends_back_goes_to_another_until_nobody_is_left() -> None:
    dispatch = dispatcher()
    first = dispatch.submit(pending(1), 1.0) or ""
    other = {"s0": "s1", "s1": "s0"}[first]
    assert dispatch.returned(other, 1, 2.0) is None
    moved = dispatch.returned(first, 1, 2.0)
    assert moved is not None
    assert (moved.server, moved.attempts, dispatch.counters().moved) == (other, 2, 1)
    assert dispatch.returned(other, 1, 3.0) is None
    assert dispatch.ended(other, 1, "answered", 3.0) is moved


def test_a_model_that_is_taken_from_a_server_is_asked_for_elsewhere() -> None:
    dispatch = dispatcher()
    assert dispatch.placed("s0", "m", there=False)
    assert {dispatch.submit(pending(number), 1.0) for number in range(4)} == {"s1"}
    dispatch.lost(loss("s0"))
    assert not dispatch.placed("s0", "m", there=True)


def test_a_server_that_held_nothing_is_recovered_from_at_once() -> None:
    dispatch = dispatcher()
    dispatch.lost(loss("s0"))
    assert dispatch.losses()[0].recovery_s == 1.0


def test_the_last_server_leaves_its_requests_without_a_place() -> None:
    dispatch = dispatcher(1)
    dispatch.submit(pending(1), 1.0)
    moved, unplaced = dispatch.lost(loss("s0"))
    assert not moved
    assert [each.request.number for each in unplaced] == [1]
    assert dispatch.losses()[0].recovered_s is None
    assert dispatch.submit(pending(2), 3.0) is None
    assert dispatch.open == {}


def test_the_reason_of_a_loss_may_come_later() -> None:
    dispatch = dispatcher()
    dispatch.lost(loss("s1"))
    dispatch.name_loss("s1", "WorkerKilled", "by signal 9")
    assert (dispatch.losses()[0].code, dispatch.losses()[0].message) == (
        "WorkerKilled",
        "by signal 9",
    )


STEP = st.one_of(
    st.tuples(st.just("submit"), st.sampled_from(["m", "n"])),
    st.tuples(st.just("end"), st.integers(0, 30)),
    st.tuples(st.just("lose"), st.integers(0, 2)),
    st.tuples(st.just("report"), st.integers(0, 2)),
)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.lists(STEP, max_size=60))
def test_whatever_happens_each_request_ends_once_and_the_log_tells_where_it_went(
    steps: list[tuple[str, str | int]],
) -> None:
    log: list[LogEntry] = []
    dispatch = dispatcher(3, log)
    ends: list[int] = []
    sent, now_s, turns, gone = 0, 0.0, [0, 0, 0], set()
    for what, which in steps:
        now_s += 0.01
        if what == "submit":
            name = dispatch.submit(pending(sent, str(which)), now_s)
            assert (name is None) == (len(gone) == 3)
            if name is None:
                ends.append(sent)
            sent += 1
        elif what == "end":
            held = dispatch.open.get(int(which))
            if held is not None:
                assert dispatch.ended(held.server, int(which), "answered", now_s) is held
                ends.append(int(which))
        elif what == "lose" and which not in gone:
            gone.add(which)
            _, left_over = dispatch.lost(loss(f"s{which}", now_s))
            ends += [each.request.number for each in left_over]
        elif what == "report" and which not in gone:
            turns[int(which)] += 1
            report = Report(
                server=f"s{which}",
                turn=turns[int(which)],
                taken=0,
                backlog_s=0.1,
                waiting={},
                resident_s={},
            )
            dispatch.reported(report, now_s)
        assert all(each.server not in {f"s{k}" for k in gone} for each in dispatch.open.values())
    left = [each.request.number for each in dispatch.take_all()]
    assert sorted(ends + left) == list(range(sent))
    counters = dispatch.counters()
    assert counters.answered + counters.failed + len(left) == counters.submitted
    assert counters.lost_servers == len(gone)
    told = sum(isinstance(entry, BalancerEntry) for entry in log)
    assert told >= sent
    unplaced = sum(each.unplaced for each in dispatch.losses())
    placed = sum(isinstance(entry, SentEntry) for entry in log)
    assert placed == sent + counters.moved + unplaced


def test_nothing_is_left_once_all_is_taken() -> None:
    dispatch = dispatcher()
    dispatch.submit(pending(0), 0.0)
    assert len(dispatch.take_all()) == 1
    assert dispatch.open_bytes == 0


@pytest.mark.parametrize("recovered", [None, 5.0])
def test_recovery_counts_from_the_last_sign_of_life(recovered: float | None) -> None:
    found = Loss(server="s", code="", message="", heard_s=2.0, lost_s=3.0, recovered_s=recovered)
    assert found.recovery_s == (None if recovered is None else 3.0)
