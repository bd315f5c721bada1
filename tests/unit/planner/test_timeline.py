"""The predicted timeline: nothing does two things at once, and the rhythm is the bottleneck's."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import pytest
from msgspec.structs import replace

from vaultline.core.plan import Plan, PlannedDevice
from vaultline.planner import make_plan
from vaultline.planner.timeline import Busy, timeline
from vaultline.testing.planning import both_ways, cluster, device, profile

MACHINES = cluster(
    device("a"), device("b", "far"), device("c", "far"), links=both_ways("box", "far", 1e9, 0.2)
)
LAYERS = profile([0.5, 1.0, 0.7, 0.4])


def plan_of(stages: int) -> Plan:
    plan = make_plan(LAYERS, MACHINES, stages=stages)
    alone = (replace(stage, devices=stage.devices[:1]) for stage in plan.stages)
    return replace(plan, stages=tuple(alone))


def with_replicas(plan: Plan, stage: int, count: int) -> Plan:
    """The same plan with more devices for one stage."""
    own = plan.stages[stage]
    more = tuple(replace(own.device, name=f"extra-{n}") for n in range(1, count))
    stages = list(plan.stages)
    stages[stage] = replace(own, devices=(own.device, *more))
    assert all(isinstance(each, PlannedDevice) for each in more)
    return replace(plan, stages=tuple(stages))


PLANS = {
    "one stage": plan_of(1),
    "three stages": plan_of(3),
    "a stage on three replicas": with_replicas(plan_of(3), 1, 3),
    "the whole model on two replicas": with_replicas(plan_of(1), 0, 2),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_a_place_does_one_thing_at_a_time_and_a_frame_one_after_the_other(plan: Plan) -> None:
    places: dict[tuple[str, int, int], list[Busy]] = defaultdict(list)
    frames: dict[int, list[Busy]] = defaultdict(list)
    for busy in timeline(plan, 12):
        places[busy.what, busy.number, busy.replica].append(busy)
        frames[busy.frame].append(busy)
    for line in (*places.values(), *frames.values()):
        assert all(a.stop_s <= b.start_s for a, b in pairwise(line))
    replicas = sum(len(stage.devices) for stage in plan.stages)
    assert len(places) == replicas + len(plan.hop_s)
    for (what, number, replica), line in places.items():
        if what == "stage":
            count = len(plan.stages[number].devices)
            assert [busy.frame for busy in line] == list(range(replica, 12, count))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_frames_come_out_in_the_bottlenecks_rhythm(plan: Plan) -> None:
    last = len(plan.hop_s) - 1
    out_s = [
        busy.stop_s for busy in timeline(plan, 60) if (busy.what, busy.number) == ("hop", last)
    ]
    alone_s = sum(stage.predicted_s for stage in plan.stages) + sum(plan.hop_s)
    assert out_s[0] == pytest.approx(alone_s)
    period_s = max(*(stage.period_s for stage in plan.stages), *plan.hop_s)
    assert (out_s[-1] - out_s[11]) / 48 == pytest.approx(period_s)


def test_a_hop_waits_for_a_free_buffer() -> None:
    plan = make_plan(LAYERS, cluster(device("a")))
    starts = [busy.start_s for busy in timeline(plan, 40) if (busy.what, busy.number) == ("hop", 0)]
    queue = plan.stages[0].queue_frames
    assert starts[queue] >= plan.stages[0].predicted_s
    assert starts[-1] > (40 - queue - 2) * plan.stages[0].predicted_s
