from __future__ import annotations

from math import isclose

import pytest

from vaultline.bench.planning import (
    PlannerTime,
    fit_growth,
    model_seconds,
    planner_times,
    random_cluster,
    random_profile,
)
from vaultline.planner import PlanRequest, plan_request
from vaultline.planner.plan import problem_of


def point(cuts: int, devices: int, seconds: float) -> PlannerTime:
    return PlannerTime(
        cuts=cuts,
        devices=devices,
        types=1,
        chunk_frames=100,
        runs=1,
        seconds=seconds,
        search_s=seconds,
        seconds_max=seconds,
    )


def test_the_fit_finds_the_exponents_of_a_power_law() -> None:
    points = [
        point(cuts, devices, 1e-6 * cuts**2 * devices**1.5)
        for cuts in (50, 200, 1000)
        for devices in (2, 4, 8)
    ]
    growth = fit_growth(points)
    assert isclose(growth.in_cuts, 2.0)
    assert isclose(growth.in_devices, 1.5)
    assert isclose(growth.seconds(500, 3), 1e-6 * 500**2 * 3**1.5)


def test_random_problems_repeat_differ_by_seed_and_have_the_size_asked_for() -> None:
    profile, cluster = random_profile(1, cuts=40), random_cluster(1, devices=7, per_type=2)
    assert profile == random_profile(1, cuts=40) != random_profile(2, cuts=40)
    assert len(profile.positions) == 40
    problem = problem_of(profile, cluster, PlanRequest())
    assert problem.counts == (2, 2, 2, 1)
    assert {kind.speed.estimated for kind in problem.types} == {True, False}
    plan = plan_request(profile, cluster, PlanRequest(objective="throughput"))
    assert any(len(stage.devices) > 1 for stage in plan.stages)


def test_times_are_taken_for_every_size_and_chunk() -> None:
    seen: list[PlannerTime] = []
    times = planner_times(
        cuts=(10, 20), devices=(2, 4), chunks=(100,), seeds=(1, 2), progress=seen.append
    )
    assert [(each.cuts, each.devices, each.types) for each in times.points] == [
        (10, 2, 1),
        (10, 4, 2),
        (20, 2, 1),
        (20, 4, 2),
    ]
    assert seen == list(times.points)
    assert all(0 < each.search_s < each.seconds <= each.seconds_max for each in seen)
    assert model_seconds(random_profile(1, cuts=10), random_cluster(1, devices=2, per_type=1)) > 0


@pytest.mark.full
@pytest.mark.parametrize(("per_type", "frames"), [(2, 100), (2, 1000), (1, 10)])
def test_a_thousand_cuts_on_eight_devices_take_seconds(per_type: int, frames: int) -> None:
    times = planner_times(
        cuts=(1000,), devices=(8,), chunks=(frames,), per_type=per_type, seeds=(1, 2, 3)
    )
    # Two or three seconds where this was written; the bound is loose, since machines differ.
    assert times.points[0].seconds < 15
