"""Clusters in virtual time, and what schedulers make of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pytest
from msgspec.structs import replace

from vaultline.core.errors import InputError
from vaultline.sched.events import Finished, Installing, Removing
from vaultline.sched.facts import ModelFacts
from vaultline.sched.logs import read_logs
from vaultline.sched.policies import POLICIES
from vaultline.sched.replay import (
    ActionEntry,
    BalancerEntry,
    EventEntry,
    LogEntry,
    LogHeader,
    Lost,
    SentEntry,
    decode,
    encode,
)
from vaultline.sched.replicas import ReplicaSettings
from vaultline.sim.cluster import Simulation, Timing, Trace
from vaultline.testing.serving import group, model, poisson, server, small_models

MODELS = small_models()
NAMES = list(MODELS)
SERVERS = [server(f"s{k}", NAMES, mib=40) for k in range(2)]


def simulated(
    rate: float,
    count: int = 400,
    *,
    policy: str = "vaultline",
    zipf: float = 1.0,
    timing: Timing | None = None,
    losses: Mapping[str, float] | None = None,
    log: list[LogEntry] | None = None,
) -> Trace:
    chosen = POLICIES[policy]
    simulation = Simulation(
        SERVERS,
        MODELS,
        chosen.chooser(),
        chosen.local,
        timing,
        lambda one, _event, _actions: one.check(),
        losses=losses,
        log=log.append if log is not None else None,
    )
    return simulation.run(poisson(NAMES, rate=rate, count=count, seed=3, zipf=zipf))


def seconds(trace: Trace) -> float:
    return max(outcome.ended_s for outcome in trace.outcomes)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("delay_s", [0.0, 1.0])
def test_every_request_is_answered_once_also_with_stale_reports(
    policy: str, delay_s: float
) -> None:
    trace = simulated(60.0, policy=policy, timing=Timing(delay_s=delay_s, hop_s=0.001))
    assert Counter(outcome.request.number for outcome in trace.outcomes) == Counter(range(400))
    assert not any(outcome.reason for outcome in trace.outcomes)


@pytest.mark.parametrize("policy", POLICIES)
def test_what_a_lost_server_held_is_answered_once_by_the_other(policy: str) -> None:
    trace = simulated(60.0, policy=policy, losses={"s1": 1.0}, timing=Timing(delay_s=0.3))
    assert Counter(outcome.request.number for outcome in trace.outcomes) == Counter(range(400))
    assert not any(outcome.reason for outcome in trace.outcomes)
    assert all(each.server == "s0" for each in trace.outcomes if each.ended_s > 1.0)
    moved = [each for each in trace.outcomes if each.request.arrived_s < 1.0 < each.ended_s]
    assert moved


def test_the_same_seed_gives_the_same_trace() -> None:
    assert simulated(60.0) == simulated(60.0)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_log_replayed_gives_the_same_decisions(policy: str) -> None:
    header = LogHeader(policy=policy, servers=tuple(SERVERS), models=tuple(MODELS.values()))
    log: list[LogEntry] = [header]
    timing = Timing(hop_s=0.001, delay_s=0.05)
    simulated(90.0, 150, policy=policy, timing=timing, losses={"s1": 1.0}, log=log)
    lines = [encode(entry) for entry in log]
    assert list(decode(lines)) == log, "to the last bit"
    read_logs([("log", decode(lines))])
    for kind, message in (
        (ActionEntry, "leaves out"),
        (SentEntry, "leaves out"),
        (EventEntry, "would not be"),
        (BalancerEntry, "would not be"),
    ):
        place = next(k for k, entry in enumerate(log) if isinstance(entry, kind))
        with pytest.raises(InputError, match=message):
            read_logs([("log", [*log[:place], *log[place + 1 :]])])


def test_a_log_that_says_what_cannot_be_is_refused() -> None:
    header = LogHeader(policy="lasagna", servers=tuple(SERVERS), models=tuple(MODELS.values()))
    for entries, message in (
        ([replace(header, models=())], "does not describe"),
        ([header, BalancerEntry(event=Lost(now_s=0.0, server="s9"))], "names no server"),
        (
            [header, EventEntry(server="s0", event=Finished(now_s=0.0, core=0))],
            "core 0 of server s0 is not running",
        ),
    ):
        with pytest.raises(InputError, match=message):
            read_logs([("log", decode(encode(entry) for entry in entries))])


def test_batches_and_resident_weights_beat_whole_requests_in_turn_at_saturation() -> None:
    ours, theirs = simulated(500.0), simulated(500.0, policy="round-robin")
    assert seconds(ours) < 0.9 * seconds(theirs)


def test_a_hot_model_never_starves_a_cold_one() -> None:
    trace = simulated(200.0, count=1500, zipf=1.5)
    cold = [each for each in trace.outcomes if each.request.model == "slow"]
    assert cold
    # Its fair share of the backlog, and not its end: well before the hot one is through.
    hot_s = max(each.ended_s for each in trace.outcomes if each.request.model == "quick")
    answered_before = sum(each.ended_s < hot_s for each in cold)
    assert answered_before > 0.3 * len(cold)


def moving(rate: float, count: int, zipf: float = 2.0) -> tuple[Trace, set[type]]:
    """Three servers with room for two of three models each; what the servers were told."""
    models: dict[str, ModelFacts] = {
        each.name: each
        for each in (
            model("quick", group(2, run_s=0.02), fixed_mib=12),
            model("mid", group(6, run_s=0.01), fixed_mib=12),
            model("slow", group(4, run_s=0.01), fixed_mib=12),
        )
    }
    servers = [
        server("a", ["quick", "mid"], mib=34),
        server("b", ["slow", "mid"], mib=34),
        server("c", ["slow", "mid"], mib=34),
    ]
    told: set[type] = set()
    policy = POLICIES["vaultline"]
    simulation = Simulation(
        servers,
        models,
        policy.chooser(),
        policy.local,
        Timing(hop_s=0.001, control_s=0.5),
        lambda one, event, _actions: (told.add(type(event)), one.check())[1],
        replicas=ReplicaSettings(memory_s=2.0, hold_s=4.0),
    )
    names = list(models)
    return simulation.run(poisson(names, rate=rate, count=count, seed=3, zipf=zipf)), told


def test_models_that_come_and_go_under_load_lose_no_request() -> None:
    trace, told = moving(60.0, 2500)
    assert Counter(outcome.request.number for outcome in trace.outcomes) == Counter(range(2500))
    assert not any(outcome.reason for outcome in trace.outcomes)
    grown = {change.server for _, change in trace.changes if change.there}
    assert grown & {"b", "c"}, "the hot model has come to where it was not"
    assert {Installing, Removing} <= told
    served = {each.server for each in trace.outcomes if each.request.model == "quick"}
    assert len(served) > 1


def test_a_steady_load_moves_models_a_few_times_and_then_no_more() -> None:
    trace, _ = moving(60.0, 4000)
    late = [change for now_s, change in trace.changes if now_s > 40]
    assert len(trace.changes) <= 6
    assert not late
