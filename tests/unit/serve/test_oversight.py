"""What a gateway decides about its servers, by the clock alone."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from vaultline.sched.balancer import Balancer, Earliest
from vaultline.sched.replicas import Change, ReplicaControl, ReplicaSettings
from vaultline.serve.oversight import Drained, Oversight, TellDrain
from vaultline.testing.serving import model, server

EAGER = ReplicaSettings(grow_at=1e-6, shrink_at=1e-7, hold_s=0.1)


@dataclass(eq=False)
class Seen:
    """A server as it looks to a gateway; ``since_s``: its oldest request has waited since then."""

    name: str = "s0"
    heard_s: float = 0.0
    since_s: float | None = None
    drained: bool = False

    def silent_s(self, now_s: float) -> float:
        return now_s - self.heard_s

    def stalled_s(self, now_s: float) -> float:
        return 0.0 if self.since_s is None else now_s - self.since_s


def looked(control: ReplicaControl | None = None) -> Oversight:
    """At two seconds, when all was well."""
    oversight = Oversight(silence_s=3.0, stall_s=60.0, control=control)
    assert not oversight.unfit([Seen(heard_s=2.0)], 2.0)
    return oversight


@pytest.mark.parametrize(
    ("case", "seen", "text"),
    [
        ("it speaks and gets on", Seen(heard_s=2.0, since_s=0.0), ""),
        ("it has been silent", Seen(heard_s=-1.0), "has been silent for 3.1 s"),
        ("it is drained, and so silent", Seen(heard_s=-9.0, drained=True), ""),
        ("it speaks and ends nothing", Seen(heard_s=2.0, since_s=-60), "has ended no request for"),
    ],
)
def test_a_server_is_given_up(case: str, seen: Seen, text: str) -> None:
    found = looked().unfit([Seen("other", heard_s=2.0), seen], 2.1)
    assert list(found) == (["s0"] if text else [])
    assert not text or text in found["s0"].message


def test_a_gateway_that_slept_gives_nobody_up_for_what_it_did_not_hear() -> None:
    oversight, seen = looked(), Seen(heard_s=2.0)
    assert not oversight.unfit([seen], 12.0)
    assert seen.heard_s == 12.0
    for tenth in range(1, 31):
        assert not oversight.unfit([seen], 12.0 + tenth / 10)
    assert oversight.unfit([seen], 15.1)


def test_servers_are_told_to_drain_once_and_only_when_nothing_is_on_its_way() -> None:
    oversight, one, two = looked(), Seen("s0"), Seen("s1")
    assert oversight.orders([one, two], idle=True, now_s=3.0) == []
    oversight.draining = True
    assert oversight.orders([one, two], idle=False, now_s=3.1) == []
    assert oversight.orders([one, two], idle=True, now_s=3.2) == [TellDrain()]
    one.drained = True
    assert oversight.orders([one, two], idle=True, now_s=3.3) == []
    assert oversight.orders([one], idle=True, now_s=3.4) == [Drained()], "the other one is lost"


def test_without_servers_all_is_drained_at_once() -> None:
    oversight = looked()
    oversight.draining = True
    assert oversight.orders([], idle=True, now_s=3.0) == [TellDrain(), Drained()]


def test_models_move_once_a_second_and_not_while_it_drains() -> None:
    models = {"m": model("m")}
    balancer = Balancer([server("s0", ["m"]), server("s1", [])], models, Earliest())
    oversight = looked(ReplicaControl(balancer, EAGER))
    oversight.arrived("m", 2.0)
    assert oversight.orders([], idle=False, now_s=2.9) == []
    change = Change(server="s1", model="m", there=True)
    assert oversight.orders([], idle=False, now_s=3.0) == [change]
    assert oversight.orders([], idle=False, now_s=3.9) == []
    oversight.draining = True
    assert oversight.orders([], idle=False, now_s=4.0) == []
    oversight.draining = False
    assert oversight.orders([], idle=False, now_s=4.0) == [change], "nobody has done it yet"
