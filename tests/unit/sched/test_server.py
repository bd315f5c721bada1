"""One server: what it is told to do, and what it never does."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultline.core.errors import InfeasibleError, LocalProtocolError
from vaultline.sched.events import (
    Answer,
    Arrived,
    Draining,
    Event,
    Failed,
    Finished,
    Installing,
    Refuse,
    Removing,
    Request,
    Run,
)
from vaultline.sched.local import Vaultline
from vaultline.sched.policies import POLICIES
from vaultline.sched.server import Server
from vaultline.testing.serving import MIB, group, model, server

#: One policy for each kind of local scheduler.
LOCALS = (
    "fifo",
    "least-loaded",
    "model-affinity",
    "least-loaded-batch",
    "lasagna",
    "lasagna-batch",
    "vaultline",
)
WHAT = ["fail", "install", "remove"]
MODELS = {
    each.name: each
    for each in (
        model("small", group(2, run_s=0.003)),
        model("deep", group(3, output_mib=1), group(6, four_s=0.015), group(9, output_mib=0)),
        model("wide", group(1, workspace_mib=9, output_mib=2), group(12, four_s=0.01)),
    )
}


def request(number: int, name: str = "small", at_s: float = 0.0, **more: float | None) -> Request:
    return Request(number=number, model=name, arrived_s=at_s, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", LOCALS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_order_of_events_keeps_memory_in_balance_and_loses_nobody(
    name: str, data: st.DataObject
) -> None:
    cores = data.draw(st.integers(1, 3), "cores")
    mib = data.draw(st.integers(22, 64), "MiB")
    try:
        facts = server("s", ["small", "deep"], cores=cores, mib=mib)
        one = Server(facts, MODELS, POLICIES[name].local())
    except InfeasibleError:
        return
    sent: set[int] = set()
    ended: list[int] = []
    now_s = 0.0

    def take(event: Event) -> None:
        for action in one.handle(event):
            if isinstance(action, Answer | Refuse):
                ended.append(action.request)
        one.check()

    for number in range(data.draw(st.integers(1, 40), "events")):
        now_s += data.draw(st.sampled_from([0.0, 0.001, 0.1]), "step")
        busy = [core for core in range(cores) if core in one.running or one.hosting.busy_with(core)]
        what = data.draw(st.sampled_from([*["arrive", "finish"] * 4, *WHAT]), "what")
        model = data.draw(st.sampled_from(list(MODELS)), "model")
        if what in ("finish", "fail") and busy:
            core = data.draw(st.sampled_from(busy), "core")
            failed = Failed(now_s=now_s, core=core, reason="the engine failed")
            take(Finished(now_s=now_s, core=core) if what == "finish" else failed)
        elif what == "install":
            take(Installing(now_s=now_s, model=model))
        elif what == "remove":
            take(Removing(now_s=now_s, model=model))
        else:
            left_s = data.draw(st.sampled_from([None, None, 0.05]), "deadline")
            deadline_s = None if left_s is None else now_s + left_s
            priority = data.draw(st.sampled_from([0, 0, 2]), "priority")
            sent.add(number)
            who = request(number, model, now_s, deadline_s=deadline_s, priority=priority)
            take(Arrived(now_s=now_s, request=who))
    take(Draining(now_s=now_s))
    for _ in range(10_000):
        busy = [core for core in range(cores) if core in one.running or one.hosting.busy_with(core)]
        if not busy:
            break
        now_s += 0.01
        take(Finished(now_s=now_s, core=busy[0]))
    assert sorted(ended) == sorted(sent), "everybody ends once"
    assert one.idle
    assert one.held()["carried"] == one.held()["workspace"] == 0


def test_who_waits_for_one_group_goes_through_it_together() -> None:
    one = Server(server("s", ["small"]), MODELS, Vaultline())
    first = one.handle(Arrived(now_s=0.0, request=request(0)))
    assert next(action for action in first if isinstance(action, Run)).requests == (0,)
    for number in range(1, 6):
        assert one.handle(Arrived(now_s=0.0, request=request(number))) == []
    actions = one.handle(Finished(now_s=0.1, core=0))
    assert actions[0] == Answer(request=0)
    run = actions[-1]
    assert isinstance(run, Run)
    assert run.requests == (1, 2, 3, 4)
    assert not run.streamed, "the weights have stayed"


def test_priority_then_deadline_then_arrival() -> None:
    one = Server(server("s", ["small"]), MODELS, Vaultline())
    one.handle(Arrived(now_s=0.0, request=request(0)))
    one.handle(Arrived(now_s=0.0, request=request(1)))
    one.handle(Arrived(now_s=0.0, request=request(2, deadline_s=9.0)))
    one.handle(Arrived(now_s=0.0, request=request(3, priority=1)))
    waiting = [each.number for each in one.queues["small", 0]]
    assert waiting == [3, 2, 1]


REFUSED = {
    "a model that is not here": (request(9, "another"), "not installed"),
    "a deadline that even an idle server misses": (request(9, deadline_s=0.001), "even alone"),
    "a deadline that the work before it misses": (
        request(9, deadline_s=0.02),
        "requests before it",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_refused_at_once_with_a_reason(case: str) -> None:
    one = Server(server("s", ["small"]), MODELS, Vaultline())
    for number in range(8):
        one.handle(Arrived(now_s=0.0, request=request(number, priority=1)))
    who, why = REFUSED[case]
    refusals = one.handle(Arrived(now_s=0.0, request=who))
    assert isinstance(refusals[0], Refuse)
    assert why in refusals[0].reason


def test_a_server_that_shuts_down_finishes_what_it_has() -> None:
    one = Server(server("s", ["small"]), MODELS, Vaultline())
    one.handle(Arrived(now_s=0.0, request=request(0)))
    one.handle(Draining(now_s=0.0))
    late = one.handle(Arrived(now_s=0.0, request=request(1)))
    assert isinstance(late[0], Refuse)
    assert one.handle(Finished(now_s=0.1, core=0)) == [Answer(request=0)]


def test_a_server_without_room_for_some_group_is_refused() -> None:
    with pytest.raises(InfeasibleError, match="can't run wide") as caught:
        Server(server("s", ["small", "wide"], mib=8), MODELS, Vaultline())
    assert str(12 * MIB + 600_000) in (caught.value.expected or "").replace(",", "")


def test_impossible_events_are_our_own_mistakes() -> None:
    one = Server(server("s", ["small"]), MODELS, Vaultline())
    with pytest.raises(LocalProtocolError):
        one.handle(Finished(now_s=0.0, core=0))
    one.handle(Arrived(now_s=1.0, request=request(0, at_s=1.0)))
    with pytest.raises(LocalProtocolError):
        one.handle(Arrived(now_s=0.5, request=request(1)))
