"""Clusters in virtual time, and what schedulers make of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from vaultline.sched.balancer import (
    Chooser,
    Earliest,
    LeastLoaded,
    ModelAffinity,
    PowerOfTwo,
    RoundRobin,
)
from vaultline.sched.baselines import Fifo
from vaultline.sched.local import Vaultline
from vaultline.sched.server import Server
from vaultline.sim.cluster import Simulation, Timing, Trace
from vaultline.testing.serving import group, model, poisson, server

MODELS = {
    each.name: each
    for each in (
        model("quick", group(2, run_s=0.003)),
        model("mid", group(6, run_s=0.01, four_s=0.03), group(6, run_s=0.01)),
        model("slow", group(4, run_s=0.04), group(18, run_s=0.03, four_s=0.05)),
    )
}
NAMES = list(MODELS)
CHOOSERS: dict[str, Callable[[], Chooser]] = {
    "round robin": RoundRobin,
    "least loaded": LeastLoaded,
    "power of two": PowerOfTwo,
    "model affinity": ModelAffinity,
    "earliest": Earliest,
}


def simulated(
    rate: float,
    count: int = 400,
    *,
    chooser: Callable[[], Chooser] = Earliest,
    fifo: bool = False,
    zipf: float = 1.0,
    delay_s: float = 0.0,
    keep_events: bool = False,
) -> Trace:
    servers = [server(f"s{k}", NAMES, mib=40) for k in range(2)]
    timing = Timing(delay_s=delay_s, keep_events=keep_events)
    simulation = Simulation(servers, MODELS, chooser(), Fifo if fifo else Vaultline, timing)
    return simulation.run(poisson(NAMES, rate=rate, count=count, seed=3, zipf=zipf))


def seconds(trace: Trace) -> float:
    return max(outcome.ended_s for outcome in trace.outcomes)


@pytest.mark.parametrize("name", CHOOSERS)
@pytest.mark.parametrize("delay_s", [0.0, 1.0])
def test_every_request_is_answered_once_also_with_stale_reports(name: str, delay_s: float) -> None:
    trace = simulated(60.0, chooser=CHOOSERS[name], delay_s=delay_s)
    assert Counter(outcome.request.number for outcome in trace.outcomes) == Counter(range(400))
    assert not any(outcome.reason for outcome in trace.outcomes)


def test_the_same_seed_gives_the_same_trace() -> None:
    assert simulated(60.0) == simulated(60.0)


def test_an_event_log_replayed_gives_the_same_actions() -> None:
    trace = simulated(60.0, keep_events=True)
    again = {f"s{k}": Server(server(f"s{k}", NAMES, mib=40), MODELS, Vaultline()) for k in range(2)}
    actions = [(name, act) for name, event in trace.events for act in again[name].handle(event)]
    assert actions == trace.actions


def test_batches_and_resident_weights_beat_whole_requests_in_turn_at_saturation() -> None:
    ours, theirs = simulated(500.0), simulated(500.0, chooser=RoundRobin, fifo=True)
    assert seconds(ours) < 0.9 * seconds(theirs)


def test_a_hot_model_never_starves_a_cold_one() -> None:
    trace = simulated(200.0, count=1500, zipf=1.5)
    cold = [each for each in trace.outcomes if each.request.model == "slow"]
    assert cold
    # Its fair share of the backlog, and not its end: well before the hot one is through.
    hot_s = max(each.ended_s for each in trace.outcomes if each.request.model == "quick")
    answered_before = sum(each.ended_s < hot_s for each in cold)
    assert answered_before > 0.3 * len(cold)
