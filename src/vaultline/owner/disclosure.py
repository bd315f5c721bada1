"""The owner's own check of what a plan shows to untrusted devices, and what its enclaves are told.

Everything here comes from the owner's privacy policy and leakage report. What a plan claims of its
released tensors is not read: a plan that somebody edited claims what it likes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vaultline.attest.stage_grant import HopRelease, TensorNotReleased, check_released
from vaultline.core.errors import InputError, RefusedError
from vaultline.core.leakage import LeakageReport, read_leakage
from vaultline.core.plan import Plan
from vaultline.core.privacy import PrivacyPolicy, parse_privacy
from vaultline.owner.release import StageSecrets
from vaultline.planner.release import ReportForAnotherModelError

#: A report has a few numbers and names for each of at most some thousands of cuts.
_FILE_BYTES_MAX = 64 << 20


class WeightsNotDisclosed(RefusedError):  # noqa: N818 - named after what happened
    """An untrusted stage would get weights that the model policy does not disclose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disclosure:
    """What an owner allows, and what was measured; by default nothing and nothing."""

    policy: PrivacyPolicy = field(default_factory=PrivacyPolicy)
    report: LeakageReport | None = None

    def hop_release(self, plan: Plan, stage: int) -> HopRelease | None:
        """What the hop into an untrusted stage may carry.

        With its weights a device computes every later tensor of its stage, and untrusted stages
        in a row may share what they see: the worst leakage of all their cuts counts.

        Returns:
            None where the policy releases nothing or the cut was not measured.
        """
        if self.policy.input is None or self.report is None:
            return None
        first, last = plan.stages[stage].first, plan.stages[_run_end(plan, stage)].last
        cuts = [cut for cut in self.report.cuts if first <= cut.position <= last]
        bounds = {each.first for each in plan.stages if first <= each.first < last} | {last}
        if not bounds.issubset(cut.position for cut in cuts):
            return None
        return HopRelease(
            tensors=cuts[0].tensors,
            leakage=max(cut.value(self.policy.input.metric) for cut in cuts),
            limit=self.policy.input.limit,
        )

    def attach(self, plan: Plan, secrets: Sequence[StageSecrets]) -> tuple[StageSecrets, ...]:
        """Secrets whose grants say what may go to an untrusted next stage."""
        return tuple(
            replace(each, release=self.hop_release(plan, stage + 1))
            if stage + 1 in untrusted_stages(plan)
            else each
            for stage, each in enumerate(secrets)
        )

    def check(self, plan: Plan) -> None:
        """Refuse a plan that shows untrusted devices more than is allowed.

        Raises:
            WeightsNotDisclosed: an untrusted stage would get weights that stay secret.
            TensorNotReleased: one would see tensors (the frame itself, at stage 0) that were not
                measured, or that leak more than the limit.
            ReportForAnotherModelError: the report is not about the plan's model.
        """
        if not untrusted_stages(plan):
            return
        check_disclosed(plan, self.policy)
        if self.report is not None and self.report.model_digest != plan.model_digest:
            raise ReportForAnotherModelError(
                "the leakage report was made for another model than the plan",
                got=f"{self.report.model_name} with digest {self.report.model_digest}",
                expected=f"{plan.model_name} with digest {plan.model_digest}",
                remedy="run `vaultline privacy` on the plan's model",
            )
        for stage in untrusted_stages(plan):
            self._check_stage(plan, stage)

    def _check_stage(self, plan: Plan, stage: int) -> None:
        planned, found = plan.stages[stage], self.hop_release(plan, stage)
        names = [tensor.name for tensor in planned.inputs]
        try:
            check_released(found, names)
        except TensorNotReleased as error:
            limits = self.policy.input
            raise TensorNotReleased(
                f"stage {stage} on {planned.device.name} is untrusted, and what it would see may "
                "not be released",
                got=f"{', '.join(names)}: "
                + (f"{limits.metric} {found.leakage:g}" if found and limits else "not measured"),
                expected=f"at most {limits.limit:g}, measured at every cut of the stage"
                if limits
                else "a policy with an `input` section: by default nothing is released",
                remedy="plan with --privacy and --leakage, and name both here; or keep the stage "
                "on attested devices",
            ) from error


def untrusted_stages(plan: Plan) -> tuple[int, ...]:
    """The stages that run on devices which nothing vouches for."""
    return tuple(n for n, stage in enumerate(plan.stages) if stage.device.untrusted)


def _run_end(plan: Plan, stage: int) -> int:
    """The last of the untrusted stages that follow one another from this one."""
    while stage + 1 < len(plan.stages) and plan.stages[stage + 1].device.untrusted:
        stage += 1
    return stage


def check_disclosed(plan: Plan, policy: PrivacyPolicy) -> None:
    """Refuse to give untrusted devices weights that the model policy keeps secret.

    Raises:
        WeightsNotDisclosed: naming the first such node.
    """
    for number in untrusted_stages(plan):
        stage = plan.stages[number]
        node = policy.undisclosed(stage.first, stage.last)
        if node is not None:
            allowed = policy.model.disclose if policy.model else ()
            raise WeightsNotDisclosed(
                f"stage {number} on {stage.device.name} is untrusted, and its weights may not be "
                "disclosed",
                got=f"nodes {stage.first}:{stage.last}, of which {node} is not disclosed",
                expected=f"nodes of {', '.join(allowed)}" if allowed else "nothing is disclosed",
                remedy="name a policy with --privacy whose `model: disclose:` holds these nodes, "
                "or keep the stage on attested devices",
            )


def load_disclosure(privacy: Path | None, leakage: Path | None) -> Disclosure:
    """Read a privacy policy and a leakage report; what is absent allows nothing.

    Raises:
        InputError: a file can't be read or is not valid; with the policy's line.
    """
    policy, report = PrivacyPolicy(), None
    if privacy is not None:
        text = _read(privacy, "the privacy policy").decode("utf-8", errors="replace")
        policy = parse_privacy(text, str(privacy))
    if leakage is not None:
        report = read_leakage(_read(leakage, "the leakage report"))
    return Disclosure(policy=policy, report=report)


def _read(path: Path, what: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {what}", got=f"{path}: {error.strerror}") from error
    if len(data) > _FILE_BYTES_MAX:
        raise InputError(f"{what} is too long", got=f"{path}: {len(data)} bytes")
    return data
