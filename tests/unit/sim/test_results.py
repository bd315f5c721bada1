"""Results: sums over a run agree with each other and with what was simulated."""

from __future__ import annotations

import pytest

from vaultline.core.cluster_file import parse_cluster
from vaultline.core.errors import InfeasibleError, InputError
from vaultline.sched.events import Answer, Arrived, Finished, Request
from vaultline.sched.policies import policy
from vaultline.sched.replay import ActionEntry, EventEntry, LogEntry
from vaultline.sched.timeline import Timeline
from vaultline.sim.cluster import Outcome, Timing
from vaultline.sim.fidelity import measured_hop_s, service_times
from vaultline.sim.results import means, policy_result
from vaultline.sim.study import servers_of, simulation_result, study
from vaultline.testing.serving import group, model, poisson

CLUSTER = parse_cluster(
    """\
owner: here
hosts:
  - {name: here, cores: 8, memory: 8GiB}
devices:
  - {name: box, host: here, kind: simulated, trust: attested, memory: 40MiB, cores: 2, count: 2}
  - {name: gpu, host: here, kind: accelerator, trust: none, memory: unlimited}
""",
    "c.yaml",
)
MODELS = {
    each.name: each
    for each in (
        model("quick", group(2, run_s=0.003)),
        model("slow", group(4, run_s=0.04), group(18, run_s=0.03, four_s=0.05)),
    )
}
SERVERS = servers_of(CLUSTER, list(MODELS), lambda _: 0)
REQUESTS = poisson(list(MODELS), rate=80.0, count=300, seed=1)


def outcome(number: int, arrived_s: float, ended_s: float, **more: object) -> Outcome:
    request = Request(
        number=number,
        model="m",
        arrived_s=arrived_s,
        deadline_s=more.pop("deadline_s", None),  # type: ignore[arg-type]
    )
    return Outcome(request=request, server="s", ended_s=ended_s, **more)  # type: ignore[arg-type]


def test_refused_requests_count_for_nothing_but_themselves() -> None:
    found = policy_result(
        "p",
        [
            outcome(0, 1.0, 2.0),
            outcome(1, 1.5, 4.5, deadline_s=2.0),
            outcome(2, 2.0, 2.0, reason="no"),
            outcome(3, 2.0, 2.0, reason="no"),
            outcome(4, 2.0, 2.5, deadline_s=3.0),
        ],
        Timeline(),
    )
    assert (found.answered, found.refused, found.missed) == (3, 2, 1)
    assert found.refusals == {"no": 2}
    assert found.seconds == 3.5
    assert found.throughput_per_s == pytest.approx(3 / 3.5)
    assert found.latency is not None
    assert (found.latency.mean_s, found.latency.max_s) == (pytest.approx(1.5), 3.0)


def test_a_run_without_answers_has_no_latency() -> None:
    found = policy_result("p", [outcome(0, 1.0, 1.0, reason="no")], Timeline())
    assert found.latency is None
    assert found.throughput_per_s == 0.0


def test_means_of_a_step_function_keep_its_area() -> None:
    times, values = [1.0, 2.0, 2.0, 5.0], [3.0, 9.0, 1.0, 4.0]
    assert means(times, values, [0, 1, 2, 3, 6]) == pytest.approx((3.0, 3.0, 1.0, 2.0))
    assert means([], [], [0, 1, 2]) == (0.0, 0.0)
    assert means(times, values, [3.0, 3.0]) == (1.0,)


def test_sums_over_servers_agree_with_what_happened() -> None:
    for name in ("vaultline", "model-affinity"):
        found = study(policy(name), SERVERS, MODELS, REQUESTS, Timing()).result
        assert found.answered + found.refused == 300
        assert sum(each.answered for each in found.servers) == found.answered
        assert sum(each.latency.count for each in found.models if each.latency) == found.answered
        for each in found.servers:
            assert 0 < each.busy_share <= 1
            assert each.peak_held_bytes <= each.memory_bytes
            assert sum(h.what == "load" for h in each.happened) == each.loads
            assert sum(h.what == "evict" for h in each.happened) == each.evictions
            assert each.series is not None
            assert max(each.series.busy_cores) <= each.cores + 1e-9
            tops = zip(*each.series.held_bytes.values(), strict=True)
            assert max(sum(kinds) for kinds in tops) <= each.peak_held_bytes + 1


def test_a_hop_is_added_twice() -> None:
    alone = [Request(number=0, model="quick", arrived_s=0.0)]
    near, far = (
        study(policy("vaultline"), SERVERS, MODELS, alone, Timing(hop_s=hop_s)).outcomes[0]
        for hop_s in (0.0, 0.25)
    )
    assert far.latency_s == pytest.approx(near.latency_s + 0.5)


def test_servers_are_the_attested_devices_with_all_models() -> None:
    servers = servers_of(CLUSTER, ["quick"], lambda device: device.cores << 20)
    assert [(each.name, each.cores, each.models, each.fixed_bytes) for each in servers] == [
        ("box-0", 2, ("quick",), 2 << 20),
        ("box-1", 2, ("quick",), 2 << 20),
    ]


def test_what_can_not_be_simulated_is_refused() -> None:
    models = {"big": model("big", group(10, workspace_mib=60))}
    servers = servers_of(CLUSTER, ["big"], lambda _: 0)
    requests = [Request(number=0, model="big", arrived_s=0.0)]
    with pytest.raises(InfeasibleError, match="box-0"):
        study(policy("vaultline"), servers, models, requests, Timing())
    with pytest.raises(InputError, match="fifo needs facts of every model, for paged memory"):
        study(policy("fifo"), SERVERS, MODELS, requests, Timing())


def test_all_policies_are_compared_on_the_same_requests() -> None:
    names = ("vaultline", "round-robin")
    studies = [study(policy(name), SERVERS, MODELS, REQUESTS, Timing()) for name in names]
    found = simulation_result(REQUESTS, Timing(), studies)
    assert found.requests == 300
    assert sum(found.models.values()) == 300
    assert [each.policy for each in found.policies] == list(names)


def test_what_requests_spend_outside_of_servers_is_measured_by_durations() -> None:
    """The log's clock is far from the client's."""
    log: list[LogEntry] = []
    for number, (arrived_s, answered_s) in enumerate(((100.0, 100.5), (101.0, 101.1))):
        request = Request(number=number, model="m", arrived_s=arrived_s)
        log.append(EventEntry(server="s", event=Arrived(now_s=arrived_s, request=request)))
        log.append(EventEntry(server="s", event=Finished(now_s=answered_s, core=0)))
        log.append(ActionEntry(server="s", action=Answer(request=number)))
    assert measured_hop_s({0: 0.52, 1: 0.12, 7: 9.0}, [log]) == pytest.approx(0.01)
    with pytest.raises(InputError, match="not of this run"):
        measured_hop_s({7: 1.0}, [log])


def test_service_times_of_a_simulation_are_the_facts() -> None:
    ran = study(policy("vaultline"), SERVERS, MODELS, REQUESTS, Timing())
    found = service_times(ran.timeline, MODELS)
    assert set(found) == {"quick/0", "slow/0", "slow/1"}
    for each in found.values():
        assert each.runs > 0
        assert each.median == pytest.approx(1.0)
        assert each.total == pytest.approx(1.0)
        assert each.command_s is None
