"""The privacy options of ``vaultline plan``: from two files to what may be released."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vaultline.cli.files import named, read_file, read_text
from vaultline.core.cluster import Cluster
from vaultline.core.errors import InfeasibleError, InputError
from vaultline.core.leakage import LeakageReport, read_leakage
from vaultline.core.privacy import parse_privacy
from vaultline.core.profile import ModelProfile
from vaultline.planner.problem import Release
from vaultline.planner.release import release_of
from vaultline.planner.request import Part, units_named


def load_release(profile: ModelProfile, privacy: Path | None, leakage: Path | None) -> Release:
    """What a privacy policy releases of a model, by what was measured of it; else nothing.

    Raises:
        InputError: a leakage report without a policy, a file that is not valid, or a policy that
            limits what nobody measured.
    """
    if privacy is None:
        if leakage is not None:
            raise InputError(
                "a leakage report releases nothing by itself",
                got="`--leakage` without `--privacy`",
                remedy="write a privacy policy that says how much may leak, and name it",
            )
        return Release()
    policy = parse_privacy(read_text(privacy, "the privacy policy"), str(privacy))
    report: LeakageReport | None = None
    if leakage is not None:
        remedy = "make one with `vaultline privacy`"
        report = named(leakage, read_file(leakage, "the leakage report", remedy), read_leakage)
    elif policy.input is not None:
        raise InputError(
            "the privacy policy limits a leakage that nobody measured",
            got=f"a limit on {policy.input.metric}, and no leakage report",
            remedy="measure with `vaultline privacy`, and name its report with `--leakage`",
        )
    return release_of(profile, policy, report)


def release_line(release: Release, profile: ModelProfile) -> str:
    """How much of a model a privacy policy releases."""
    return (
        f"{sum(release.cuts)} of {len(profile.positions)} cuts leak at most {release.limit:g} "
        f"({release.metric}), and the weights of {sum(release.blocks)} of {len(profile.blocks)} "
        "blocks may be disclosed; nothing else reaches an untrusted device"
    )


def release_document(release: Release, profile: ModelProfile) -> dict[str, Any]:
    """What ``--json`` prints of it."""
    return {
        "metric": release.metric,
        "limit": release.limit,
        "cuts_released": sum(release.cuts),
        "cuts": len(profile.positions),
        "blocks_disclosed": sum(release.blocks),
        "blocks": len(profile.blocks),
    }


def check_parts(
    parts: tuple[Part, ...], release: Release, profile: ModelProfile, cluster: Cluster
) -> None:
    """Refuse a partition of the user's own that shows an untrusted device too much, with figures.

    Raises:
        InputError: a part names no device of the cluster.
        InfeasibleError: a part on an untrusted device has a cut above the limit.
    """
    for part in parts:
        units = [unit for name in part.devices for unit in units_named(cluster, name)]
        cuts = [
            (value, position)
            for value, released, position in zip(
                release.leakage, release.cuts, profile.positions, strict=False
            )
            if part.first <= position <= part.last and not released
        ]
        if cuts and any(unit.trust == "none" for unit in units):
            value, position = max(cuts)
            raise InfeasibleError(
                f"nodes {part.first}:{part.last} may not run on {', '.join(part.devices)}: trust",
                got=f"{release.metric} {value:.4g} at the cut after {position} nodes",
                expected=f"at most {release.limit:g} at every cut that the device can compute",
                remedy="cut later, use an attested device, or raise the limit in the policy",
            )


def with_release(
    error: InfeasibleError, release: Release, profile: ModelProfile
) -> InfeasibleError:
    """An error that no plan exists, with what the policy releases where that may be why."""
    if type(error) is not InfeasibleError:
        return error
    remedy = "; ".join(filter(None, (error.remedy, f"released: {release_line(release, profile)}")))
    return InfeasibleError(error.message, got=error.got, expected=error.expected, remedy=remedy)
