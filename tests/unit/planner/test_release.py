"""From a policy and a report to what the search may place on untrusted devices."""

from __future__ import annotations

from math import inf

import pytest
from msgspec.structs import replace

from vaultline.core.errors import InfeasibleError, InputError
from vaultline.core.leakage import LeakageReport
from vaultline.core.plan import Plan
from vaultline.core.privacy import PrivacyPolicy
from vaultline.core.profile import ModelProfile
from vaultline.planner import PlanRequest, parse_partition, plan_request
from vaultline.planner.release import ReportForAnotherModelError, release_of
from vaultline.testing import planning
from vaultline.testing.privacy import RECORDED, cut_leakage, privacy

PROFILE: ModelProfile = planning.profile([1.0] * 4)


def report(leakage: dict[int, float]) -> LeakageReport:
    return LeakageReport(
        model_name="chain",
        model_digest=PROFILE.model_digest,
        images_digest="cd" * 32,
        images=8,
        decoder="ridge",
        recorded_on=RECORDED,
        positions=tuple(leakage),
        cuts=tuple(cut_leakage(at, [f"t{at}"], value) for at, value in leakage.items()),
    )


FULL = report({0: 1.0, 1: 0.6, 2: 0.3, 3: 0.31, 4: 0.1})


def test_cuts_and_blocks_are_released_one_by_one() -> None:
    release = release_of(PROFILE, privacy(0.3, "1:3"), FULL)
    assert release.cuts == (False, False, True, False, True)
    assert release.blocks == (False, True, True, False)
    assert release.leakage == (1.0, 0.6, 0.3, 0.31, 0.1)
    assert (release.metric, release.limit) == ("reconstruction", 0.3)


NOTHING = {
    "no policy": (PrivacyPolicy(), FULL),
    "no input section": (privacy(None, "all"), FULL),
    "no report": (privacy(1.0, "all"), None),
}


@pytest.mark.parametrize("case", NOTHING)
def test_no_cut_is_released_with(case: str) -> None:
    policy, measured = NOTHING[case]
    assert not any(release_of(PROFILE, policy, measured).cuts)


def test_no_weight_is_disclosed_without_a_model_section() -> None:
    release = release_of(PROFILE, privacy(1.0), FULL)
    assert all(release.cuts)
    assert not any(release.blocks)


def test_a_cut_that_was_not_measured_is_not_released() -> None:
    release = release_of(PROFILE, privacy(1.0, "all"), report({0: 0.1, 2: 0.1, 4: 0.1}))
    assert release.cuts == (True, False, True, False, True)
    assert release.leakage == (0.1, inf, 0.1, inf, 0.1)


OTHERS = {
    "of another model": replace(FULL, model_digest="00" * 32),
    "with a cut that the profile lacks": report({0: 0.1, 4: 0.1, 5: 0.1}),
    "with other tensors at a cut": replace(
        FULL, cuts=(*FULL.cuts[:2], cut_leakage(2, ["t2", "skip"], 0.1), *FULL.cuts[3:])
    ),
    "with fewer tensors at a cut": replace(
        FULL, cuts=(*FULL.cuts[:2], cut_leakage(2, [], 0.1), *FULL.cuts[3:])
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_report_is_refused(case: str) -> None:
    with pytest.raises(ReportForAnotherModelError) as caught:
        release_of(PROFILE, privacy(0.3, "all"), OTHERS[case])
    assert isinstance(caught.value, InputError)
    assert caught.value.got
    assert caught.value.expected
    assert caught.value.remedy


def plan(part: str, limit: float, *disclose: str) -> Plan:
    first, last = map(int, part.split(":"))
    parts = [f"0:{first}@enclave-0"] * (first > 0) + [f"{part}@gpu"]
    parts += [f"{last}:4@enclave-1"] * (last < 4)
    return plan_request(
        PROFILE,
        planning.cluster(
            planning.device("enclave", count=2),
            planning.device("gpu", kind="accelerator", trust="none"),
        ),
        PlanRequest(
            release=release_of(PROFILE, privacy(limit, *disclose), FULL),
            partition=parse_partition(",".join(parts)),
        ),
    )


@pytest.mark.parametrize("part", ["0:1", "0:4", "1:2", "2:3", "2:4", "3:4"])
def test_a_plan_that_releases_more_than_the_limit_cannot_be_made(part: str) -> None:
    with pytest.raises(InfeasibleError, match="trust"):
        plan(part, 0.3, "all")


def test_a_plan_states_the_worst_leakage_of_all_cuts_of_a_stage() -> None:
    (released,) = plan("2:4", 0.31, "2:4").released
    assert (released.stage, released.tensor) == (1, "t2")
    assert (released.leakage, released.limit) == (0.31, 0.31)
    with pytest.raises(InfeasibleError):
        plan("2:4", 0.31, "2:3")
