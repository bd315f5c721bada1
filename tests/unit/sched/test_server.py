"""One server: what it is told to do, and what it never does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultline.core.errors import InfeasibleError, LocalProtocolError
from vaultline.sched.events import (
    Action,
    Answer,
    Arrived,
    Draining,
    Failed,
    Finished,
    Refuse,
    Request,
    Run,
)
from vaultline.sched.local import Fifo, Vaultline
from vaultline.sched.server import Policy, Server
from vaultline.testing.serving import MIB, group, model, server

POLICIES: dict[str, Callable[[], Policy]] = {
    "vaultline": Vaultline,
    "fifo": Fifo,
    "fifo in batches, whole models kept": lambda: Fifo(batch=True, keep_model=True),
}
MODELS = {
    each.name: each
    for each in (
        model("small", group(2, run_s=0.003)),
        model("deep", group(3, output_mib=1), group(6, four_s=0.015), group(9, output_mib=0)),
        model("wide", group(1, workspace_mib=9, output_mib=2), group(12, four_s=0.01)),
    )
}


def request(number: int, name: str = "small", at_s: float = 0.0, **more: float) -> Request:
    return Request(number=number, model=name, arrived_s=at_s, **more)  # type: ignore[arg-type]


def balanced(one: Server) -> None:
    """held + free == memory, by kind, nothing negative."""
    held = one.held()
    assert min(held.values()) >= 0
    assert one.free_bytes >= 0
    assert sum(held.values()) + one.free_bytes == one.facts.memory_bytes


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_order_of_events_keeps_memory_in_balance_and_loses_nobody(
    name: str, data: st.DataObject
) -> None:
    cores = data.draw(st.integers(1, 3), "cores")
    mib = data.draw(st.integers(22, 64), "MiB")
    try:
        one = Server(server("s", list(MODELS), cores=cores, mib=mib), MODELS, POLICIES[name]())
    except InfeasibleError:
        return
    sent: set[int] = set()
    ended: list[int] = []
    now_s = 0.0

    def take(actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Answer | Refuse):
                ended.append(action.request)
        balanced(one)

    for number in range(data.draw(st.integers(1, 40), "events")):
        now_s += data.draw(st.sampled_from([0.0, 0.001, 0.1]), "step")
        running = sorted(one.running)
        what = data.draw(st.sampled_from(["arrive", "finish", "finish", "fail"]), "what")
        if what == "arrive" or not running:
            who = request(number, data.draw(st.sampled_from(list(MODELS)), "model"), now_s)
            sent.add(number)
            take(one.handle(Arrived(now_s=now_s, request=who)))
        elif what == "finish":
            core = data.draw(st.sampled_from(running), "core")
            take(one.handle(Finished(now_s=now_s, core=core)))
        else:
            core = data.draw(st.sampled_from(running), "core")
            take(one.handle(Failed(now_s=now_s, core=core, reason="the engine failed")))
    take(one.handle(Draining(now_s=now_s)))
    for _ in range(10_000):
        if not one.running:
            break
        now_s += 0.01
        take(one.handle(Finished(now_s=now_s, core=min(one.running))))
    assert sorted(ended) == sorted(sent), "everybody ends once"
    assert not any(queue for _, queue in one.waiting())
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
    "a deadline that the work before it misses": (request(9, deadline_s=0.02), "work that waits"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_refused_at_once_with_a_reason(case: str) -> None:
    one = Server(server("s", ["small"]), MODELS, Vaultline())
    for number in range(8):
        one.handle(Arrived(now_s=0.0, request=request(number)))
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
    with pytest.raises(InfeasibleError, match="group 0 of wide") as caught:
        Server(server("s", ["small", "wide"], mib=8), MODELS, Vaultline())
    assert str(12 * MIB + 600_000) in (caught.value.expected or "").replace(",", "")


def test_impossible_events_are_our_own_mistakes() -> None:
    one = Server(server("s", ["small"]), MODELS, Vaultline())
    with pytest.raises(LocalProtocolError):
        one.handle(Finished(now_s=0.0, core=0))
    one.handle(Arrived(now_s=1.0, request=request(0, at_s=1.0)))
    with pytest.raises(LocalProtocolError):
        one.handle(Arrived(now_s=0.5, request=request(1)))
