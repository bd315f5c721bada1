"""What the search leaves out, and that it may."""

from __future__ import annotations

from random import Random

import pytest

from vaultline.planner import PlanRequest
from vaultline.planner.plan import problem_of
from vaultline.planner.problem import group_units
from vaultline.planner.search import Search, shortest_chunk
from vaultline.testing.planning import both_ways, cluster, device, profile


def test_devices_are_of_one_type_only_where_links_are_alike_too() -> None:
    links = both_ways("box", "a", 1e6) + both_ways("box", "b", 1e6) + both_ways("a", "b", 1e6)
    alike = cluster(device("x", "a"), device("y", "b"), links=links)
    layers = profile([1.0])
    assert len(group_units(layers, alike, alike.units)) == 1
    slower = both_ways("box", "a", 1e6) + both_ways("box", "b", 2e6) + both_ways("a", "b", 1e6)
    unlike = cluster(device("x", "a"), device("y", "b"), links=slower)
    assert len(group_units(layers, unlike, unlike.units)) == 2
    beside = cluster(device("x", "a"), device("z", "a"), device("y", "b"), links=links)
    # Between x and z is the loopback, between x and y a link: y cannot take the place of z.
    assert [len(group) for group in group_units(layers, beside, beside.units)] == [2, 1]


def test_all_candidates_tried_one_by_one_give_what_the_bounded_search_gives() -> None:
    rng = Random(3)
    layers = profile(
        [rng.random() for _ in range(12)],
        crossing_bytes=[rng.randint(1, 100) for _ in range(13)],
        scale={"slow": 2.0},
    )
    machines = cluster(
        device("a", count=2),
        device("b", "far", speed_class="slow", count=2),
        links=both_ways("box", "far", 150.0, 0.05),
    )
    problem = problem_of(layers, machines, PlanRequest())
    programme = Search(problem, problem.spaces[-1], None).programme
    times = {float(each) for option in problem.options for each in option[0].period_s.flat}
    times |= {time / 2 for time in times}
    times |= {float(each) for each in problem.link_s.flat}
    times |= {float(each) for each in (*problem.entry_s, *problem.exit_s)}
    for frames in (2, 5, 30):
        tried = [programme.least(limit) for limit in sorted(times)]
        best = min(found.chunk_s(frames) for found in tried if found is not None)
        quick = shortest_chunk(programme, frames)
        assert quick is not None
        assert quick.chunk_s(frames) == pytest.approx(best, rel=1e-12)
