"""Correcting a profile by what stages took, and keeping the best plan that ran."""

from __future__ import annotations

import pytest

from vaultline.bench.rig import local_cluster
from vaultline.bench.tuning import Measured, corrected, tune
from vaultline.core.plan import Plan
from vaultline.core.profile import ModelProfile
from vaultline.planner.plan import make_plan
from vaultline.testing.planning import profile as chain

#: What blocks really take, unknown to the profile, which says 1 s each.
TRUE_S = (1.0, 1.0, 1.0, 1.0, 3.0, 3.0)


def planner(profile: ModelProfile) -> Plan:
    return make_plan(profile, local_cluster(2), objective="throughput", stages=2)


def really(plan: Plan) -> Measured:
    took = tuple(sum(TRUE_S[stage.first : stage.last]) for stage in plan.stages)
    return Measured(plan=plan, fps=1 / max(took), compute_s=took)


def test_a_corrected_profile_says_what_the_stages_took() -> None:
    profile = chain([1.0] * 6)
    measured = really(planner(profile))
    fixed = corrected(profile, measured)
    for stage, took in zip(measured.plan.stages, measured.compute_s, strict=True):
        blocks = fixed.blocks[stage.first : stage.last]
        assert sum(block.compute_s[0][1] for block in blocks) == pytest.approx(took)


def test_tuning_finds_the_cut_that_a_wrong_profile_misses() -> None:
    untuned = really(planner(chain([1.0] * 6)))
    tuned = tune(chain([1.0] * 6), planner, really)
    assert untuned.compute_s == (3.0, 7.0)
    assert tuned.compute_s == (4.0, 6.0)


def test_the_fastest_measured_plan_is_kept_even_if_a_later_one_is_slower() -> None:
    speeds = iter([5.0, 1.0, 2.0, 3.0])

    def measure(plan: Plan) -> Measured:
        return Measured(plan=plan, fps=next(speeds), compute_s=really(plan).compute_s)

    assert tune(chain([1.0] * 6), planner, measure).fps == 5.0


def test_turns_bound_the_runs() -> None:
    runs: list[Plan] = []

    def measure(plan: Plan) -> Measured:
        runs.append(plan)
        return really(plan)

    tune(chain([1.0] * 6), planner, measure, turns=1)
    assert len(runs) == 1
