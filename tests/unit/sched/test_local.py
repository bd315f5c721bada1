"""What Vaultline's local policy prefers, and what its baselines do."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import pytest

from vaultline.core.errors import InputError
from vaultline.sched.baselines import Fifo, Lasagna
from vaultline.sched.events import (
    Action,
    Answer,
    Arrived,
    Evict,
    Finished,
    Refuse,
    Request,
    Run,
)
from vaultline.sched.local import Vaultline
from vaultline.sched.policies import POLICIES, policy
from vaultline.sched.server import Policy, Server
from vaultline.testing.serving import group, model, server

MODELS = {
    each.name: each
    for each in (
        # A big classifier behind convolutions: company costs next to nothing there.
        model(
            "wide",
            group(1, run_s=0.01),
            group(60, run_s=0.02, four_s=0.021),
        ),
        model("plain", group(2, run_s=0.01)),
        model("heavy", group(60, run_s=0.0001)),
        model("heavier", group(61, run_s=0.0001)),
        model("steady", group(2, run_s=0.03)),
        model("long", group(2, run_s=0.2)),
    )
}


def start(local: Policy, models: Iterable[str], *, cores: int = 1, mib: float = 40) -> Server:
    return Server(server("s", list(models), cores=cores, mib=mib), MODELS, local)


def arrive(one: Server, number: int, name: str, now_s: float = 0.0, **more: float) -> list[Action]:
    who = Request(number=number, model=name, arrived_s=now_s, **more)  # type: ignore[arg-type]
    return one.handle(Arrived(now_s=now_s, request=who))


def runs(actions: Iterable[Action]) -> list[tuple[str, int, tuple[int, ...]]]:
    return [(each.model, each.group, each.requests) for each in actions if isinstance(each, Run)]


def finished_in_turn(one: Server, step_s: float = 0.05) -> list[tuple[str, int, tuple[int, ...]]]:
    """Everything that a server of one core runs until it is idle."""
    found = []
    now_s = one.now_s
    while one.running:
        now_s += step_s
        found += runs(one.handle(Finished(now_s=now_s, core=0)))
        one.check()
    return found


def test_a_group_waits_for_company_that_is_about_to_come() -> None:
    one = start(Vaultline(), ["wide", "plain"])
    assert runs(arrive(one, 0, "wide")) == [("wide", 0, (0,))]
    for number in range(1, 4):
        arrive(one, number, "wide")
    assert finished_in_turn(one) == [("wide", 0, (1, 2, 3)), ("wide", 1, (0, 1, 2, 3))]


def test_a_group_does_not_wait_for_company_that_takes_long_if_nobody_else_waits() -> None:
    models = {**MODELS, "wide": model("wide", group(1, run_s=0.9), group(6, run_s=0.02))}
    one = Server(server("s", ["wide"], mib=40), models, Vaultline())
    arrive(one, 0, "wide")
    arrive(one, 1, "wide")
    assert runs(one.handle(Finished(now_s=1.0, core=0))) == [("wide", 1, (0,))]


def test_quick_models_go_before_long_ones_until_those_have_waited_for_long() -> None:
    one = start(Vaultline(), ["plain", "long"])
    arrive(one, 0, "plain")
    arrive(one, 1, "long")
    arrive(one, 2, "plain")
    assert runs(one.handle(Finished(now_s=0.01, core=0))) == [("plain", 0, (2,))]
    arrive(one, 3, "plain", 3.0)
    assert runs(one.handle(Finished(now_s=3.0, core=0))) == [("long", 0, (1,))]


def test_a_higher_priority_goes_before_a_lower_one_of_another_model() -> None:
    first = []
    for priority in (0, 8):
        one = start(Vaultline(), ["plain", "long"])
        arrive(one, 0, "plain")
        arrive(one, 1, "plain")
        arrive(one, 2, "long", priority=priority)
        first.append(runs(one.handle(Finished(now_s=0.01, core=0)))[0][0])
    assert first == ["plain", "long"]


def test_a_request_that_can_not_make_its_deadline_any_more_is_refused_and_not_run() -> None:
    one = start(Vaultline(), ["plain", "long"])
    arrive(one, 0, "long")
    arrive(one, 1, "plain", deadline_s=0.1)
    actions = one.handle(Finished(now_s=0.2, core=0))
    assert [each.request for each in actions if isinstance(each, Answer)] == [0]
    refused = [each for each in actions if isinstance(each, Refuse)]
    assert [(each.request, "deadline" in each.reason) for each in refused] == [(1, True)]
    assert one.idle


def test_too_many_requests_are_refused_with_a_reason() -> None:
    one = start(Vaultline(queue_max=2), ["plain"])
    for number in range(3):
        assert not any(isinstance(each, Refuse) for each in arrive(one, number, "plain"))
    refused = arrive(one, 3, "plain")[0]
    assert isinstance(refused, Refuse)
    assert "2 requests are waiting" in refused.reason


@pytest.mark.parametrize("local", [Vaultline(), Lasagna()])
def test_two_cores_pair_a_run_that_waits_for_memory_with_one_that_computes(local: Policy) -> None:
    one = start(local, ["long", "plain", "steady", "heavy", "heavier"], cores=2)
    arrive(one, 0, "long")
    arrive(one, 1, "plain")
    for number, name in ((2, "heavy"), (3, "heavier"), (4, "steady")):
        assert not runs(arrive(one, number, name, 0.001))
    actions = one.handle(Finished(now_s=0.02, core=1)) + one.handle(Finished(now_s=0.021, core=0))
    assert sorted(name for name, _, _ in runs(actions)) == ["heavy", "steady"]


def test_one_core_takes_what_waits_for_memory_as_it_comes() -> None:
    one = start(Vaultline(), ["plain", "steady", "heavy", "heavier"])
    arrive(one, 0, "plain")
    for number, name in ((1, "heavy"), (2, "heavier"), (3, "steady")):
        arrive(one, number, name, 0.001)
    assert [name for name, _, _ in finished_in_turn(one)] == ["heavy", "heavier", "steady"]


def test_weights_of_what_runs_often_stay_and_others_do_not_push_them_out() -> None:
    local = Vaultline()
    models = {
        "often": model("often", group(10, run_s=0.01)),
        "seldom": model("seldom", group(12, run_s=0.01)),
    }
    one = Server(server("s", list(models), mib=20), models, local)
    now_s, number = 0.0, 0
    streamed = []
    for name in ["often"] * 8 + ["seldom"] + ["often"]:
        number, now_s = number + 1, now_s + 0.1
        actions = arrive(one, number, name, now_s)
        streamed += [each.streamed for each in actions if isinstance(each, Run)]
        assert not any(isinstance(each, Evict) for each in actions)
        one.handle(Finished(now_s=now_s + 0.02, core=0))
    assert streamed == [True, *[False] * 7, True, False]


def test_least_recently_used_weights_go_first_where_models_are_kept_whole() -> None:
    models = {name: model(name, group(8), group(4)) for name in ("a", "b", "c")}
    one = Server(server("s", list(models), mib=36), models, Fifo(keep="models"))
    evicted: list[Action] = []
    for number, name in enumerate(["a", "b", "a", "c"]):
        evicted += arrive(one, number, name, float(number))
        evicted += one.handle(Finished(now_s=number + 0.1, core=0))
        evicted += one.handle(Finished(now_s=number + 0.2, core=0))
    gone = {(each.model, each.group) for each in evicted if isinstance(each, Evict)}
    assert gone == {("b", 0), ("b", 1)}


def test_fifo_runs_one_request_through_before_the_next() -> None:
    one = start(Fifo(), ["wide", "plain"])
    arrive(one, 0, "wide")
    for number, name in ((1, "plain"), (2, "wide")):
        arrive(one, number, name)
    assert finished_in_turn(one) == [
        ("wide", 1, (0,)),
        ("plain", 0, (1,)),
        ("wide", 0, (2,)),
        ("wide", 1, (2,)),
    ]


def test_batches_take_all_that_wait_for_a_model_through_each_group() -> None:
    one = start(Fifo(batch=True), ["wide", "plain"])
    arrive(one, 0, "plain")
    for number in range(1, 4):
        arrive(one, number, "wide")
    arrive(one, 4, "plain")
    assert finished_in_turn(one) == [
        ("wide", 0, (1, 2, 3)),
        ("wide", 1, (1, 2, 3)),
        ("plain", 0, (4,)),
    ]


def test_policies_are_known_by_name() -> None:
    assert {"fifo", "round-robin", "least-loaded", "power-of-two", "model-affinity"} < set(POLICIES)
    assert {"lasagna", "vaultline"} < set(POLICIES)
    assert [name for name, each in POLICIES.items() if each.paged] == ["fifo"]
    assert policy("vaultline").local() is not policy("vaultline").local(), "one for each server"
    with pytest.raises(InputError, match="no policy is called 'sjf'"):
        policy("sjf")


def test_weights_stay_once_that_is_known_to_pay() -> None:
    # Decrypting all weights first takes longer than while the run goes on.
    slow_load = msgspec.structs.replace(
        group(4, run_s=0.01), load_s=0.012, streamed_s=((1, 0.012), (4, 0.042))
    )
    one = Server(server("s", ["a"]), {"a": model("a", slow_load)}, Vaultline())
    kept = []
    for number in range(8):
        now_s = 0.1 * number
        kept += [each.keep for each in arrive(one, number, "a", now_s) if isinstance(each, Run)]
        one.handle(Finished(now_s=now_s + 0.05, core=0))
    assert kept[0] is False, "nobody knows whether it will run again"
    assert kept[-1] is True, "12 ms once, to save 2 ms many times"
