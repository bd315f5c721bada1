"""Servers of one machine in virtual time: how they slow each other, and that logs show it."""

from __future__ import annotations

from collections import Counter

import pytest
import simpy
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from vaultline.core.errors import InputError
from vaultline.sched.logs import read_logs
from vaultline.sched.policies import policy
from vaultline.sched.replay import LogEntry, LogHeader
from vaultline.sim.cluster import Simulation, Timing, Trace
from vaultline.sim.sharing import SharedCores, Sharing, measured_sharing
from vaultline.testing.serving import poisson, server, small_models

MODELS = small_models()
NAMES = list(MODELS)
SERVERS = [server(f"s{k}", NAMES, mib=40) for k in range(2)]


def ends(sharing: Sharing, cores: int, *runs: tuple[str, float, float]) -> dict[str, float]:
    """When runs end, of (server, start, seconds alone)."""
    env, found = simpy.Environment(), dict[str, float]()
    machine = SharedCores(env, sharing, cores)

    def run(name: str, at_s: float, alone_s: float) -> simpy.events.ProcessGenerator:
        yield env.timeout(at_s)
        machine.start(name, 0, alone_s, lambda: found.update({name: env.now}))

    for each in runs:
        env.process(run(*each))
    env.run()
    return found


def test_a_run_is_slower_for_as_long_as_others_run() -> None:
    sharing = Sharing(loss=0.2)
    assert ends(sharing, 2, ("a", 0.0, 1.0)) == pytest.approx({"a": 1.0})
    both = ends(sharing, 2, ("a", 0.0, 1.0), ("b", 0.0, 1.0))
    assert both == pytest.approx({"a": 1.25, "b": 1.25})
    # 0.5 s alone, 0.625 s in company, in which b does 0.5 s of its work, and the rest of it alone.
    late = ends(sharing, 2, ("a", 0.0, 1.0), ("b", 0.5, 1.0))
    assert late == pytest.approx({"a": 1.125, "b": 1.625})
    few = ends(sharing, 5, ("a", 0.0, 1.0), ("b", 0.0, 1.0))
    assert few["a"] == pytest.approx(1 / 0.95), "one core of four others is busy"


def test_an_arrival_holds_up_its_server_and_the_other_one() -> None:
    env, found = simpy.Environment(), dict[str, float]()
    machine = SharedCores(env, Sharing(arrival_s=0.2, elsewhere_s=0.05), 2)
    machine.start("a", 0, 1.0, lambda: found.update(a=env.now))
    machine.start("b", 0, 1.0, lambda: found.update(b=env.now))
    env.run(until=0.5)
    machine.arrived("a")
    env.run()
    assert found == pytest.approx({"a": 1.2, "b": 1.05})


def test_runs_of_a_lost_server_do_not_end_and_slow_nobody() -> None:
    env, found = simpy.Environment(), dict[str, float]()
    machine = SharedCores(env, Sharing(loss=0.5), 2)
    machine.start("a", 0, 1.0, lambda: found.update(a=env.now))
    machine.start("b", 0, 1.0, lambda: found.update(b=env.now))
    env.run(until=1.0)
    machine.lost("b")
    env.run()
    assert found == pytest.approx({"a": 1.5})


def simulated(sharing: Sharing, log: list[LogEntry] | None = None, loss_s: float = 0.0) -> Trace:
    chosen = policy("vaultline")
    simulation = Simulation(
        SERVERS,
        MODELS,
        chosen.chooser(),
        chosen.local,
        Timing(sharing=sharing),
        losses={"s1": loss_s} if loss_s else None,
        log=log.append if log is not None else None,
    )
    return simulation.run(poisson(NAMES, rate=45.0, count=400, seed=3, zipf=1.0))


SHARINGS = st.builds(
    Sharing,
    pace=st.floats(0.7, 1.3),
    run_s=st.floats(0, 0.002),
    loss=st.floats(0, 0.3),
    arrival_s=st.floats(0, 0.002),
    elsewhere_s=st.floats(0, 0.001),
)


@settings(max_examples=10, deadline=None, derandomize=True, phases=[Phase.generate])
@given(SHARINGS)
def test_a_log_shows_how_its_servers_shared_their_machine(sharing: Sharing) -> None:
    log: list[LogEntry] = [
        LogHeader(policy="vaultline", servers=tuple(SERVERS), models=tuple(MODELS.values()))
    ]
    simulated(sharing, log)
    timeline = read_logs([("log", log)])
    found = measured_sharing(timeline, [log], range(400), MODELS)
    assert found.pace == pytest.approx(sharing.pace, abs=0.01)
    assert found.loss == pytest.approx(sharing.loss, abs=0.02)
    for of in ("run_s", "arrival_s", "elsewhere_s"):
        assert getattr(found, of) == pytest.approx(getattr(sharing, of), abs=1e-4), of
    with pytest.raises(InputError, match="too few runs"):
        measured_sharing(timeline, [log], {0}, MODELS)


@pytest.mark.parametrize("loss_s", [0.0, 1.0])
def test_every_request_is_answered_once_on_a_shared_machine(loss_s: float) -> None:
    trace = simulated(Sharing(loss=0.3, arrival_s=0.001, elsewhere_s=0.001), loss_s=loss_s)
    assert Counter(each.request.number for each in trace.outcomes) == Counter(range(400))


def test_sharing_takes_time() -> None:
    apart, shared = (
        sum(each.latency_s for each in simulated(sharing).outcomes)
        for sharing in (Sharing(), Sharing(loss=0.1, arrival_s=1e-4))
    )
    assert shared > 1.05 * apart


@pytest.mark.parametrize(
    "wrong",
    [{"pace": 0.0}, {"loss": 1.0}, {"loss": -0.1}, {"run_s": -1.0}, {"arrival_s": float("nan")}],
)
def test_impossible_sharing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="can't share"):
        Sharing(**wrong)
