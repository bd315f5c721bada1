"""From an owner's privacy policy and a leakage report to what the search may place on untrusted
devices.

Cut by cut and block by block; that a stage on such a device needs *all* of its cuts (with disclosed
weights it can compute every later tensor) is the search's to see to.
"""

from __future__ import annotations

from itertools import pairwise
from math import inf

from vaultline.core.errors import InputError
from vaultline.core.leakage import CutLeakage, LeakageReport
from vaultline.core.privacy import PrivacyPolicy
from vaultline.core.profile import ModelProfile
from vaultline.planner.problem import Release

_AGAIN = "run `vaultline profile` and `vaultline privacy` again, on the same model"


class ReportForAnotherModelError(InputError):
    """The leakage report was made for another model than the profile or the plan."""


def release_of(
    profile: ModelProfile, policy: PrivacyPolicy, report: LeakageReport | None
) -> Release:
    """What a policy releases of a profiled model.

    Args:
        report: what was measured; a cut that it lacks is not released, so without one none is.

    Raises:
        ReportForAnotherModelError: report and profile are of two models, or of other cuts.
    """
    found = [None] * len(profile.positions) if report is None else _matched(profile, report)
    metric = policy.input.metric if policy.input else "reconstruction"
    limit = policy.input.limit if policy.input else 0.0
    leakage = [inf if cut is None else cut.value(metric) for cut in found]
    return Release(
        cuts=tuple(policy.input is not None and value <= limit for value in leakage),
        blocks=tuple(policy.undisclosed(a, b) is None for a, b in pairwise(profile.positions)),
        leakage=tuple(leakage),
        metric=metric,
        limit=limit,
    )


def _matched(profile: ModelProfile, report: LeakageReport) -> list[CutLeakage | None]:
    """The report's cut at each position of the profile."""
    if report.model_digest != profile.model_digest:
        raise ReportForAnotherModelError(
            "the leakage report was made for another model than the profile",
            got=f"{report.model_name} with digest {report.model_digest}",
            expected=f"{profile.model_name} with digest {profile.model_digest}",
            remedy=_AGAIN,
        )
    strange = sorted(set(report.positions) - set(profile.positions))
    if strange:
        raise ReportForAnotherModelError(
            "the leakage report has cuts that the profile does not have",
            got=f"cuts after {', '.join(map(str, strange))} nodes",
            expected="only positions of the profile",
            remedy=_AGAIN,
        )
    found = [report.at(position) for position in profile.positions]
    for cut, crossing in zip(found, profile.crossing, strict=True):
        names = {tensor.name for tensor in crossing}
        if cut is not None and set(cut.tensors) != names:
            raise ReportForAnotherModelError(
                f"other tensors cross the cut after {cut.position} nodes than were measured",
                got=", ".join(cut.tensors) or "none",
                expected=", ".join(sorted(names)),
                remedy=_AGAIN,
            )
    return found
