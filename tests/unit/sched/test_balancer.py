"""The balancer: old reports, lost servers, requests that come back, models that move."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultline.core.errors import LocalProtocolError, RemoteProtocolError
from vaultline.core.serde import from_msgpack, to_msgpack
from vaultline.sched.balancer import Balancer, Earliest, ModelAffinity
from vaultline.sched.events import Request
from vaultline.sched.policies import POLICIES
from vaultline.sched.report import Report
from vaultline.testing.serving import group, model, server

MODELS = {each.name: each for each in (model("one"), model("two", group(8), group(2)))}
NAMES = list(MODELS)


def request(number: int, name: str = "one", **more: float) -> Request:
    return Request(number=number, model=name, arrived_s=0.0, **more)  # type: ignore[arg-type]


def report(name: str, turn: int, taken: int, backlog_s: float = 0.0, **more: object) -> Report:
    entries = {"waiting": {}, "resident_s": {}, **more}
    return Report(server=name, turn=turn, taken=taken, backlog_s=backlog_s, **entries)  # type: ignore[arg-type]


def sane(balancer: Balancer) -> None:
    """Nothing is counted below nothing, and every request is at one server, once."""
    for view in balancer.views.values():
        assert view.backlog_s >= 0
        assert min(view.waiting.values(), default=0) >= 0
        places = [place for _, place, _ in view.held.values()]
        assert places == sorted(set(places))
        assert all(cost_s >= 0 for _, _, cost_s in view.held.values())
        assert view.alive or not view.held


@pytest.mark.parametrize("name", ["power-of-two", "model-affinity", "lasagna", "vaultline"])
@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_no_order_of_reports_and_losses_loses_or_doubles_a_request(
    name: str, data: st.DataObject
) -> None:
    servers = [server(f"s{k}", NAMES) for k in range(4)]
    balancer = Balancer(servers, MODELS, POLICIES[name].chooser())
    at: dict[int, str] = {}
    unplaced: set[int] = set()
    ended: set[int] = set()
    kept: list[tuple[float, Report]] = []
    turns = dict.fromkeys(balancer.views, 0)
    now_s = 0.0

    def placed(number: int, where: str | None) -> None:
        if where is None:
            unplaced.add(number)
            at.pop(number, None)
        else:
            assert balancer.views[where].alive
            at[number] = where

    for number in range(data.draw(st.integers(1, 60), "events")):
        now_s += data.draw(st.sampled_from([0.0, 0.01, 0.3]), "step")
        kept = [each for each in kept if now_s - each[0] <= 1.0]
        what = data.draw(st.sampled_from(["submit"] * 5 + OTHERS), "what")
        alive = [view for view in balancer.views.values() if view.alive]
        if what == "submit":
            who = request(number, data.draw(st.sampled_from(NAMES), "model"))
            placed(number, balancer.submit(who, now_s))
        elif what in ("done", "back") and at:
            old = data.draw(st.sampled_from(sorted(at)), "which")
            if what == "back":
                before = at[old]
                placed(old, balancer.returned(old, now_s))
                assert at.get(old) != before
            else:
                assert balancer.done(old)
                assert not balancer.done(old), "an answer counts once"
                ended.add(old)
                del at[old]
        elif what == "report" and alive:
            view = data.draw(st.sampled_from(alive), "server")
            turns[view.facts.name] += 1
            taken = data.draw(st.integers(0, view.sent), "taken")
            waiting = {"one": data.draw(st.integers(0, 5), "waiting")}
            new = report(view.facts.name, turns[view.facts.name], taken, 0.2, waiting=waiting)
            kept.append((now_s, new))
        elif what == "hear" and kept:
            balancer.reported(data.draw(st.sampled_from(kept), "late")[1], now_s)
        elif what == "lose" and alive:
            view = data.draw(st.sampled_from(alive), "server")
            held = sorted(view.held)
            moved = balancer.lost(view.facts.name, now_s)
            assert [each.number for each, _ in moved] == held, "in the order of arrival"
            for each, where in moved:
                placed(each.number, where)
        elif what == "move" and alive:
            view = data.draw(st.sampled_from(alive), "server")
            there = data.draw(st.booleans(), "there")
            balancer.placed(
                view.facts.name, data.draw(st.sampled_from(NAMES), "model"), there=there
            )
        sane(balancer)
        known = {each: view.facts.name for view in balancer.views.values() for each in view.held}
        assert known == at, "each request is where it was sent last"
    assert ended.isdisjoint(at)


OTHERS = ["done", "back", "report", "hear", "hear", "lose", "move"]


def test_what_a_report_does_not_cover_counts_on_top() -> None:
    balancer = Balancer([server("s0", NAMES)], MODELS, Earliest())
    for number in range(3):
        balancer.submit(request(number), 0.0)
    balancer.reported(report("s0", 1, taken=2, backlog_s=0.5, waiting={"one": 1}), 0.1)
    view = balancer.views["s0"]
    cost_s = view.held[2][2]
    assert view.backlog_s == pytest.approx(0.5 + cost_s)
    assert view.waiting == {"one": 2}
    balancer.reported(report("s0", 1, taken=0, backlog_s=9.0), 0.1)
    assert view.backlog_s < 1, "an older report says nothing new"


def test_a_request_goes_where_its_company_or_its_weights_are_if_that_is_sooner() -> None:
    servers = [server("s0", NAMES), server("s1", NAMES)]
    balancer = Balancer(servers, MODELS, Earliest())
    saved_s = MODELS["two"].decrypt_s
    balancer.reported(report("s1", 1, 0, 0.0, resident_s={"two": saved_s}), 0.0)
    assert balancer.submit(request(0, "two"), 0.0) == "s1"
    balancer.reported(report("s1", 2, 1, 5.0, resident_s={"two": saved_s}), 0.0)
    assert balancer.submit(request(1, "two"), 0.0) == "s0", "its weights are not worth 5 s"


def test_an_urgent_request_minds_a_backlog_less() -> None:
    servers = [server("s0", NAMES), server("s1", NAMES)]
    saved_s = MODELS["two"].decrypt_s
    chosen = []
    for priority in (0, 5):
        balancer = Balancer(servers, MODELS, Earliest())
        resident_s = {"two": saved_s}
        balancer.reported(report("s1", 1, 0, 4 * saved_s, resident_s=resident_s), 0.0)
        chosen.append(balancer.submit(request(0, "two", priority=priority), 0.0))
    assert chosen == ["s0", "s1"]


def test_affinity_gives_way_to_a_server_with_much_less_to_do() -> None:
    balancer = Balancer([server("s0", NAMES), server("s1", NAMES)], MODELS, ModelAffinity())
    resident_s = {"one": 0.1}
    balancer.reported(report("s0", 1, 0, 0.01, resident_s=resident_s), 0.0)
    assert balancer.submit(request(0), 0.0) == "s0"
    balancer.reported(report("s0", 2, 1, 9.0, resident_s=resident_s), 0.0)
    assert balancer.submit(request(1), 0.0) == "s1"


def test_a_request_that_is_sent_back_goes_nowhere_twice() -> None:
    balancer = Balancer([server("s0", NAMES), server("s1", NAMES)], MODELS, Earliest())
    first = balancer.submit(request(0), 0.0)
    second = balancer.returned(0, 0.1)
    assert {first, second} == {"s0", "s1"}
    assert balancer.returned(0, 0.2) is None
    assert balancer.returned(0, 0.2) is None, "it has ended"
    assert balancer.submit(request(1), 0.3) is not None, "others go on"


def test_a_model_that_moves_is_only_sought_where_it_is() -> None:
    balancer = Balancer([server("s0", ["one"]), server("s1", ["two"])], MODELS, Earliest())
    assert balancer.submit(request(0, "two"), 0.0) == "s1"
    assert balancer.placed("s0", "two", there=True)
    assert balancer.placed("s1", "two", there=False)
    assert balancer.submit(request(1, "two"), 0.0) == "s0"
    # A report from before the change says nothing about it; one from after it decides.
    balancer.reported(report("s0", 1, 0, changes=0, models=("one",)), 0.1)
    assert balancer.submit(request(2, "two"), 0.1) == "s0"
    balancer.reported(report("s0", 2, 0, changes=1, models=("one",)), 0.2)
    assert balancer.submit(request(3, "two"), 0.2) is None, "it could not be installed"


def test_servers_join_under_new_names_only() -> None:
    balancer = Balancer([], MODELS, Earliest())
    assert balancer.submit(request(0), 0.0) is None
    balancer.joined(server("s0", NAMES))
    assert balancer.submit(request(0), 0.0) == "s0"
    assert balancer.lost("s0", 0.1) == [(request(0), None)]
    assert not balancer.placed("s0", "one", there=True)
    with pytest.raises(LocalProtocolError):
        balancer.joined(server("s0", NAMES))
    balancer.joined(server("s1", NAMES))
    balancer.submit(request(1), 0.2)
    with pytest.raises(LocalProtocolError):
        balancer.submit(request(1), 0.2)


@pytest.mark.parametrize("policy", POLICIES)
def test_models_that_a_host_makes_up_change_nothing(policy: str) -> None:
    balancer = Balancer(
        [server("a", NAMES), server("b", NAMES)], MODELS, POLICIES[policy].chooser()
    )
    balancer.reported(report("a", 1, 0, waiting={"nobody's": 7}, resident_s={"nobody's": 1.0}), 0.0)
    assert balancer.views["a"].waiting == {}
    assert balancer.submit(request(1), 0.0) in ("a", "b")


@pytest.mark.parametrize(
    "changes",
    [
        {"waiting": {"one": -1}},
        {"taken": -1},
        {"backlog_s": float("inf")},
        {"backlog_s": float("nan")},
        {"resident_s": {"one": float("inf")}},
    ],
)
def test_a_report_of_what_no_server_can_be_is_none(changes: dict[str, object]) -> None:
    """It counts as a broken protocol: the gateway gives the server up."""
    good = to_msgpack(report("a", 1, 0, waiting={"one": 1}))
    told = from_msgpack(good, dict, what="r", bytes_max=999) | changes
    with pytest.raises(RemoteProtocolError, match="malformed"):
        from_msgpack(to_msgpack(told), Report, what="a report", bytes_max=999)
