"""The search against brute force: all segmentations on all assignments of devices."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isclose

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planner_cases import Case, brute_force, fronts, random_case

from vaultline.core.errors import InfeasibleError
from vaultline.core.plan import read_plan, write_plan
from vaultline.planner import PlanRequest, plan_request
from vaultline.planner.bands import ROWS

MEASURE = {"latency": "latency_s", "throughput": "bottleneck_s", "chunk": "chunk_s"}
SEEDS = st.integers(0, 2**32 - 1)


def value_of(case: Case, objective: str, frames: int) -> float:
    request = PlanRequest(
        objective=objective,
        chunk_frames=frames,
        stages=case.stages,
        settings=case.settings,
        release=case.release,
    )
    try:
        plan = plan_request(case.profile, case.cluster, request)
    except InfeasibleError as error:
        assert error.remedy or error.expected
        return inf
    assert read_plan(write_plan(plan)) == plan
    devices = [device.name for stage in plan.stages for device in stage.devices]
    assert len(set(devices)) == len(devices)
    assert all(len(stage.devices) <= case.settings.replicas_max for stage in plan.stages)
    assert plan.stages[-1].last == case.profile.positions[-1]
    return plan.predicted[MEASURE[objective]]


def check(seed: int, objective: str) -> None:
    case = random_case(seed)
    frames = (2, 10, 100)[seed % 3]
    found, best = value_of(case, objective, frames), brute_force(case, objective, frames)
    assert isclose(found, best, rel_tol=1e-9) or found == best


def check_long(seed: int) -> None:
    """Models of more cuts than the search combines at a time, on fewer devices."""
    case = random_case(seed, blocks_min=ROWS + 3, blocks_max=2 * ROWS + 3, devices_max=4)
    alone = min((latency for latency, _ in fronts(case, alone=True)), default=inf)
    assert isclose(value_of(case, "latency", 1), alone, rel_tol=1e-9) or alone == inf
    busy = fronts(case, alone=False)
    for frames in (1, 3, 10, 50, 1000):
        best = min((latency + (frames - 1) * worst for latency, worst in busy), default=inf)
        found = value_of(case, "chunk", frames)
        assert isclose(found, best, rel_tol=1e-9) or found == best
    least = min((worst for _, worst in busy), default=inf)
    assert isclose(value_of(case, "throughput", 1), least, rel_tol=1e-9) or least == inf


def sampled(examples: int) -> Callable[..., Callable[..., None]]:
    return settings(max_examples=examples, derandomize=True, deadline=None, database=None)


@pytest.mark.parametrize("objective", sorted(MEASURE))
@sampled(150)
@given(seed=SEEDS)
def test_the_search_finds_what_brute_force_finds(objective: str, seed: int) -> None:
    check(seed, objective)


@pytest.mark.full
@pytest.mark.parametrize("objective", sorted(MEASURE))
@sampled(2000)
@given(seed=SEEDS)
def test_the_search_finds_what_brute_force_finds_in_many_cases(objective: str, seed: int) -> None:
    check(seed, objective)


@sampled(5)
@given(seed=SEEDS)
def test_long_models_get_what_keeping_every_tradeoff_finds(seed: int) -> None:
    check_long(seed)


@pytest.mark.full
@sampled(100)
@given(seed=SEEDS)
def test_long_models_get_what_keeping_every_tradeoff_finds_in_many_cases(seed: int) -> None:
    check_long(seed)


@sampled(30)
@given(seed=SEEDS)
def test_both_references_agree(seed: int) -> None:
    case = random_case(seed, blocks_max=7)
    busy = fronts(case, alone=False)
    best = min((latency + 9 * worst for latency, worst in busy), default=inf)
    assert isclose(brute_force(case, "chunk", 10), best, rel_tol=1e-9) or best == inf
