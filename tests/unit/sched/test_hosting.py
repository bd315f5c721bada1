"""Models that come to a server and go: memory, requests that wait, what fails."""

from __future__ import annotations

import pytest

from vaultline.core.errors import LocalProtocolError
from vaultline.sched.events import (
    Action,
    Answer,
    Arrived,
    Decline,
    Draining,
    Evict,
    Failed,
    Finished,
    Install,
    Installing,
    Refuse,
    Remove,
    Removing,
    Request,
    Run,
)
from vaultline.sched.local import Vaultline
from vaultline.sched.server import Server
from vaultline.testing.serving import MIB, group, model, server

MODELS = {
    each.name: each
    for each in (
        model("here", group(8, run_s=0.01)),
        model("new", group(2, run_s=0.01), fixed_mib=10),
        model("vast", group(2), fixed_mib=60),
    )
}


def start(*, cores: int = 1, mib: float = 32) -> Server:
    return Server(server("s", ["here"], cores=cores, mib=mib), MODELS, Vaultline())


def arrive(one: Server, number: int, name: str, now_s: float = 0.0) -> list[Action]:
    who = Request(number=number, model=name, arrived_s=now_s)
    return one.handle(Arrived(now_s=now_s, request=who))


def test_requests_wait_until_their_model_is_installed() -> None:
    one = start()
    assert one.handle(Installing(now_s=0.0, model="new")) == [Install(core=0, model="new")]
    assert one.held()["fixed"] == 11 * MIB, "held as soon as it begins"
    assert arrive(one, 0, "new", 0.1) == []
    assert arrive(one, 1, "here", 0.1) == []
    assert one.report().models == ("here", "new")
    actions = one.handle(Finished(now_s=0.3, core=0))
    assert isinstance(actions[0], Run)
    actions = one.handle(Finished(now_s=0.4, core=0))
    one.check()
    assert any(isinstance(each, Answer) for each in actions)
    assert any(isinstance(each, Run) for each in actions)


def test_every_core_installs_a_model_before_any_runs_it() -> None:
    one = start(cores=2, mib=64)
    actions = one.handle(Installing(now_s=0.0, model="new"))
    assert actions == [Install(core=0, model="new"), Install(core=1, model="new")]
    arrive(one, 0, "new")
    assert one.handle(Finished(now_s=0.3, core=1)) == []
    assert isinstance(one.handle(Finished(now_s=0.4, core=0))[0], Run)


def test_weights_make_room_for_an_installation_and_nobody_else_begins_meanwhile() -> None:
    one = start(mib=18)
    arrive(one, 0, "here")
    arrive(one, 1, "here")
    one.handle(Finished(now_s=0.1, core=0))  # its weights have stayed, and it runs again
    one.handle(Installing(now_s=0.1, model="new"))
    assert one.memory.pledged == 10 * MIB
    actions = one.handle(Finished(now_s=0.2, core=0))
    assert actions[1:] == [Evict(model="here", group=0), Install(core=0, model="new")]
    one.check()


def test_a_model_goes_when_its_requests_have_gone() -> None:
    one = start()
    one.handle(Installing(now_s=0.0, model="new"))
    one.handle(Finished(now_s=0.1, core=0))
    for number in range(5):
        arrive(one, number, "new", 0.1)
    assert one.handle(Removing(now_s=0.1, model="new")) == []
    late = arrive(one, 9, "new", 0.1)[0]
    assert isinstance(late, Refuse)
    assert late.elsewhere, "another server may have it"
    one.handle(Finished(now_s=0.2, core=0))
    actions = one.handle(Finished(now_s=0.3, core=0))
    assert [type(each) for each in actions] == [Answer] * 4 + [Remove]
    one.check()
    assert one.held() == {"fixed": MIB, "resident": 0, "workspace": 0, "carried": 0}
    assert one.report().models == ("here",)
    assert one.report().changes == 2


def test_a_model_that_is_wanted_again_stays() -> None:
    one = start()
    arrive(one, 0, "here")
    one.handle(Removing(now_s=0.0, model="here"))
    one.handle(Installing(now_s=0.0, model="here"))
    assert one.handle(Finished(now_s=0.1, core=0)) == [Answer(request=0)]
    assert isinstance(arrive(one, 1, "here", 0.2)[-1], Run)


DECLINED = {
    "a model that the server was never granted": ("other", "not granted", 0),
    "a model for which there is no room": ("vast", "more than the server has", 0),
    "any model, while the server shuts down": ("new", "shutting down", 1),
}


@pytest.mark.parametrize("case", DECLINED)
def test_what_can_not_be_installed_is_declined_with_a_reason(case: str) -> None:
    name, why, draining = DECLINED[case]
    one = start()
    if draining:
        one.handle(Draining(now_s=0.0))
    declined = one.handle(Installing(now_s=0.0, model=name))[0]
    assert isinstance(declined, Decline)
    assert why in declined.reason
    assert name not in one.models


def test_an_installation_that_fails_sends_those_who_wait_for_it_elsewhere() -> None:
    one = start(cores=2, mib=64)
    one.handle(Installing(now_s=0.0, model="new"))
    arrive(one, 0, "new")
    actions = one.handle(Failed(now_s=0.1, core=0, reason="the vault is damaged"))
    assert actions[0] == Decline(model="new", reason="the vault is damaged")
    refused = [each for each in actions if isinstance(each, Refuse)]
    assert [(each.request, each.elsewhere) for each in refused] == [(0, True)]
    one.check()
    again = one.handle(Installing(now_s=0.15, model="new"))
    assert isinstance(again[0], Decline), "another core is still busy with it"
    assert one.handle(Finished(now_s=0.2, core=1)) == [Remove(model="new")]
    assert one.handle(Installing(now_s=0.3, model="new"))[0] == Install(core=0, model="new")


def test_a_run_that_fails_ends_its_own_requests_and_nothing_else() -> None:
    one = start()
    arrive(one, 0, "here")
    arrive(one, 1, "here")
    actions = one.handle(Failed(now_s=0.1, core=0, reason="the engine failed"))
    assert actions[0] == Refuse(request=0, reason="the engine failed")
    assert Evict(model="here", group=0) in actions, "who knows what is there"
    assert isinstance(actions[-1], Run)
    assert actions[-1].streamed
    one.check()


def test_a_core_that_does_nothing_can_neither_finish_nor_fail() -> None:
    one = start()
    for event in (Finished(now_s=0.0, core=0), Failed(now_s=0.0, core=0, reason="")):
        with pytest.raises(LocalProtocolError):
            one.handle(event)
