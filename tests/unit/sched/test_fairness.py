"""The bound that ``Vaultline`` states: who waits how long at most, whoever else is popular."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from vaultline.sched.balancer import RoundRobin
from vaultline.sched.events import Action, Answer, Arrived, Event, Request
from vaultline.sched.facts import ModelFacts
from vaultline.sched.local import FAIR_SHARES, Vaultline
from vaultline.sched.server import Server
from vaultline.sim.cluster import Simulation
from vaultline.testing.serving import group, model, poisson, server

MODELS = {
    each.name: each
    for each in (
        model("quick", group(2, run_s=0.003)),
        model("mid", group(6, run_s=0.01, four_s=0.03), group(6, run_s=0.01)),
        model("slow", group(4, run_s=0.04), group(18, run_s=0.03, four_s=0.05, output_mib=2)),
        model("big", group(40, run_s=0.02, four_s=0.03), group(60, run_s=0.01, four_s=0.012)),
    )
}


@dataclass
class Watch:
    """The longest time in which each model had requests and answered none."""

    since_s: dict[str, float] = field(default_factory=dict)
    longest_s: dict[str, float] = field(default_factory=dict)
    open: dict[int, str] = field(default_factory=dict)
    runs: int = 0

    def __call__(self, one: Server, event: Event, actions: list[Action]) -> None:
        one.check()
        if isinstance(event, Arrived):
            name = event.request.model
            if name not in self.open.values():
                self.since_s[name] = event.now_s
            self.open[event.request.number] = name
        for action in actions:
            if isinstance(action, Answer):
                name = self.open.pop(action.request)
                gap_s = event.now_s - self.since_s[name]
                self.longest_s[name] = max(self.longest_s.get(name, 0.0), gap_s)
                self.since_s[name] = event.now_s


def bound_s(name: str, cores: int, fair_shares: float = FAIR_SHARES) -> float:
    """As the docstring of ``Vaultline`` says."""
    all_s = sum(each.full_s for each in MODELS.values())
    own: ModelFacts = MODELS[name]
    more = len(own.groups) if cores > 1 else 0
    return fair_shares * len(MODELS) * own.full_s + (2 + more) * all_s


def watched(
    requests: list[Request], cores: int, mib: float, fair_shares: float = FAIR_SHARES
) -> Watch:
    watch = Watch()
    facts = server("s", list(MODELS), cores=cores, mib=mib)
    simulation = Simulation(
        [facts], MODELS, RoundRobin(), lambda: Vaultline(fair_shares), observe=watch
    )
    simulation.run(requests)
    return watch


def preferring(requests: list[Request], priorities: dict[str, int]) -> list[Request]:
    return [
        Request(
            number=each.number,
            model=each.model,
            arrived_s=each.arrived_s,
            priority=priorities[each.model],
        )
        for each in requests
    ]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    cores=st.sampled_from([1, 1, 2]),
    mib=st.sampled_from([22.0, 40.0, 93.0]),
    names=st.permutations(list(MODELS)),
    ranks=st.permutations([-10, 0, 3, 10]),
)
def test_no_model_waits_longer_than_the_stated_bound_at_saturation(
    seed: int, cores: int, mib: float, names: list[str], ranks: list[int]
) -> None:
    requests = poisson(names, rate=300.0, count=250, seed=seed, zipf=1.5)
    watch = watched(preferring(requests, dict(zip(MODELS, ranks, strict=True))), cores, mib)
    assert not watch.open
    for name, longest_s in watch.longest_s.items():
        assert longest_s <= bound_s(name, cores)


def test_the_bound_is_what_keeps_an_unwanted_model_going() -> None:
    chosen = random.Random(4)
    # A cold model of the lowest priority beside a flood of the highest.
    requests = [
        Request(
            number=number,
            model="slow" if number % 40 == 1 else "quick",
            arrived_s=number * 0.002 + chosen.random() * 0.001,
            priority=-10 if number % 40 == 1 else 10,
        )
        for number in range(3000)
    ]
    assert watched(requests, 1, 93).longest_s["slow"] <= bound_s("slow", 1)
    never = watched(requests, 1, 93, fair_shares=1e6)
    assert never.longest_s["slow"] > bound_s("slow", 1)
