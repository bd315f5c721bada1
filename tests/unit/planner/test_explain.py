from __future__ import annotations

from math import isclose

import msgspec
import pytest

from vaultline.core.errors import InputError
from vaultline.core.frames import FrameLayout, record_buffer_bytes
from vaultline.planner import PlanRequest, explain, parse_partition, plan_request
from vaultline.testing.planning import MIB, both_ways, cluster, device, profile

MACHINES = cluster(device("edge"), device("cloud", "far"), links=both_ways("box", "far", 1e9, 0.01))
LAYERS = profile([1.0, 2.0, 1.5], weight_bytes=10 * MIB, activation_bytes=MIB)


def test_an_explanation_adds_up_to_the_plan() -> None:
    request = PlanRequest(chunk_frames=50)
    plan = plan_request(LAYERS, MACHINES, request)
    spelt = explain(plan, LAYERS, MACHINES, request)
    assert [stage.device for stage in spelt.stages] == [each.device.name for each in plan.stages]
    assert sum(stage.weight_bytes for stage in spelt.stages) == 30 * MIB
    assert all(stage.need_bytes <= stage.memory_bytes for stage in spelt.stages)
    assert max(stage.share for stage in spelt.stages) == 1.0
    assert spelt.bottleneck.startswith("stage ")
    assert isclose(spelt.balance, (2.25) / 3.0)
    assert spelt.value_s == spelt.chunk_s


def test_the_runner_up_loses_and_says_why() -> None:
    request = PlanRequest(chunk_frames=50)
    rival = explain(plan_request(LAYERS, MACHINES, request), LAYERS, MACHINES, request).runner_up
    assert rival is not None
    assert rival.devices == ("edge",)
    assert rival.ratio > 1
    assert rival.reason == "its bottleneck (stage 0 on edge) is 1500.00 ms longer"


def test_replicas_are_spelt_out() -> None:
    """On both devices in turn 2.25 s a frame; cut in two, the longer half takes 3 s."""
    equal = cluster(device("a", count=2))
    request = PlanRequest(objective="throughput")
    spelt = explain(plan_request(LAYERS, equal, request), LAYERS, equal, request)
    (stage,) = spelt.stages
    assert (stage.device, stage.host, stage.replicas) == ("a-0+a-1", "box", 2)
    assert isclose(stage.predicted_s, 4.5)
    assert isclose(stage.period_s, 2.25)
    assert stage.share == 1.0
    assert not stage.estimated
    assert spelt.bottleneck == "stage 0 on a-0, a-1 (2 replicas)"
    (rival,) = spelt.rivals
    assert (rival.kind, rival.devices, rival.cuts) == ("no replicas", ("a-0", "a-1"), (2,))
    assert rival.reason == "its bottleneck (stage 0 on a-0) is 750.00 ms longer"


def test_rivals_are_of_other_kinds_and_the_next_best_comes_first() -> None:
    machines = cluster(device("a", count=3), device("z", cores=2))
    request = PlanRequest(chunk_frames=100)
    spelt = explain(plan_request(LAYERS, machines, request), LAYERS, machines, request)
    assert [stage.device for stage in spelt.stages] == ["z", "a-0+a-1+a-2"]
    assert {rival.kind for rival in spelt.rivals} == {
        "replicas of the whole model",
        "more stages",
        "no replicas",
    }
    values = [rival.value_s for rival in spelt.rivals]
    assert values == sorted(values)
    assert min(values) > spelt.value_s
    assert spelt.runner_up == spelt.rivals[0]
    assert "(stage 0 on a-0, a-1, a-2 (3 replicas)) is 333.33 ms longer" in next(
        rival.reason for rival in spelt.rivals if rival.kind == "replicas of the whole model"
    )


def test_what_the_user_fixed_is_not_varied() -> None:
    equal = cluster(device("a", count=3))
    fixed = PlanRequest(objective="throughput", stages=2)
    spelt = explain(plan_request(LAYERS, equal, fixed), LAYERS, equal, fixed)
    assert [len(rival.devices) for rival in spelt.rivals] == [2]
    assert spelt.rivals[0].kind == "no replicas"


def test_each_neighbour_that_a_replica_talks_to_has_its_record_buffer() -> None:
    """Stages of two and of three replicas: each talks to all of the other; the owner is one."""
    equal = cluster(device("a", count=5))
    single = PlanRequest(partition=parse_partition("0:1@a,1:3@a"))
    many = PlanRequest(partition=parse_partition("0:1@a*2,1:3@a*3"))
    record = record_buffer_bytes(FrameLayout(LAYERS.crossing[1], stages=2).message_bytes)
    one, more = (
        explain(plan_request(LAYERS, equal, each), LAYERS, equal, each) for each in (single, many)
    )
    assert [
        theirs.need_bytes - mine.need_bytes
        for mine, theirs in zip(one.stages, more.stages, strict=True)
    ] == [2 * record, 1 * record]


def test_a_worse_partition_of_the_user_is_compared_with_the_best() -> None:
    request = PlanRequest(objective="throughput", partition=parse_partition("0:1@edge,1:3@cloud"))
    spelt = explain(plan_request(LAYERS, MACHINES, request), LAYERS, MACHINES, request)
    assert spelt.runner_up is not None
    assert spelt.runner_up.cuts == (2,)
    assert spelt.runner_up.ratio < 1
    assert "shorter" in spelt.runner_up.reason


def test_a_slow_link_is_named_as_the_bottleneck() -> None:
    machines = cluster(device("edge", "far"), links=both_ways("box", "far", 1e9, 9.0))
    request = PlanRequest()
    spelt = explain(plan_request(LAYERS, machines, request), LAYERS, machines, request)
    assert spelt.bottleneck in ("hop 0, owner to edge", "hop 1, edge to owner")
    assert spelt.runner_up is None


def test_the_profile_of_another_model_is_refused() -> None:
    request = PlanRequest()
    plan = plan_request(LAYERS, MACHINES, request)
    other = msgspec.structs.replace(LAYERS, model_digest="cd" * 32)
    with pytest.raises(InputError, match="different models"):
        explain(plan, other, MACHINES, request)


def test_replicas_share_the_frames_of_their_stage() -> None:
    layers = profile([1.0, 1.0, 1.0, 1.2])
    machines = cluster(device("a", count=4))
    request = PlanRequest(partition=parse_partition("0:3@a+a+a,3:4@a"))
    plan = plan_request(layers, machines, request)
    spelt = explain(plan, layers, machines, request)
    assert spelt.bottleneck == "stage 1 on a-3"
    assert [stage.share for stage in spelt.stages] == pytest.approx([1 / 1.2, 1.0])
    assert spelt.balance == pytest.approx((1.0 + 1.2) / 2 / 1.2)
