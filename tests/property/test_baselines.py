"""Baselines: never better than the search, and each the best of its own space."""

from __future__ import annotations

from itertools import combinations
from math import inf, isclose

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planner_cases import Case, hop_s, random_case, ways

from vaultline.core.cluster import Device
from vaultline.core.errors import InfeasibleError
from vaultline.planner import PlanRequest
from vaultline.planner.baselines import BASELINES, compare, price

OBJECTIVES = ("latency", "throughput", "chunk")
SEEDS = st.integers(0, 2**32 - 1)
SAMPLED = settings(max_examples=60, derandomize=True, deadline=None, database=None)


def request_of(case: Case, seed: int, objective: str) -> PlanRequest:
    return PlanRequest(
        objective=objective,
        chunk_frames=(1, 2, 10, 100)[seed % 4],
        settings=case.settings,
        release=case.release,
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
@SAMPLED
@given(seed=SEEDS)
def test_no_baseline_that_can_be_run_is_better_than_ours(objective: str, seed: int) -> None:
    case = random_case(seed)
    request = request_of(case, seed, objective)
    rows = {row.name: row for row in compare(case.profile, case.cluster, request)}
    assert list(rows) == list(BASELINES)
    ours = rows["vaultline"].priced
    for row in rows.values():
        assert (row.priced is None) == bool(row.reason)
        if row.priced is None or row.priced.plan is None:
            continue
        assert ours is not None
        assert ours.value_s(objective) <= row.priced.value_s(objective) * (1 + 1e-12)
        assert row.priced.plan.stages[-1].last == case.profile.positions[-1]


def brute_force(case: Case, units: tuple[Device, ...], measure: str, frames: int) -> float:
    """The best contiguous split over every subsequence of some devices, in their order."""
    best, last = inf, len(case.profile.blocks)
    for count in range(1, len(units) + 1):
        for chosen in combinations(units, count):
            for cuts in combinations(range(1, last), count - 1):
                best = min(best, split_value(case, chosen, (0, *cuts, last), measure, frames))
    return best


def split_value(
    case: Case, units: tuple[Device, ...], ends: tuple[int, ...], measure: str, frames: int
) -> float:
    places = [case.cluster.owner, *(unit.host for unit in units), case.cluster.owner]
    hops = [hop_s(case, a, b, cut) for a, b, cut in zip(places, places[1:], ends, strict=False)]
    points = [(sum(hops), max(hops))]
    for unit, start, end in zip(units, ends, ends[1:], strict=False):
        found = set(ways(case, unit, start, end, alone=measure == "latency", neighbours=1))
        points = [(a + x, max(b, y)) for a, b in points for x, y in found]
    if measure == "latency":
        return min((latency for latency, _ in points), default=inf)
    return min((latency + (frames - 1) * worst for latency, worst in points), default=inf)


def value_of(name: str, case: Case, request: PlanRequest) -> float:
    try:
        found = price(name, case.profile, case.cluster, request)
    except InfeasibleError as error:
        assert error.expected or error.remedy
        return inf
    return found.latency_s if request.objective == "latency" else found.chunk_s


@SAMPLED
@given(seed=SEEDS)
def test_serdab_is_the_best_split_in_the_listed_order(seed: int) -> None:
    case = random_case(seed, blocks_max=7, devices_max=4)
    request = request_of(case, seed, "chunk")
    best = brute_force(case, case.cluster.units, "chunk", request.chunk_frames)
    found = value_of("serdab", case, request)
    assert found == best or isclose(found, best, rel_tol=1e-9)


@SAMPLED
@given(seed=SEEDS)
def test_neurosurgeon_is_the_best_single_cut_over_the_first_two(seed: int) -> None:
    case = random_case(seed, blocks_max=7, devices_max=4)
    best = brute_force(case, case.cluster.units[:2], "latency", 1)
    found = value_of("neurosurgeon", case, request_of(case, seed, "latency"))
    assert found == best or isclose(found, best, rel_tol=1e-9)
