"""The files around `vaultline.attest.appraise`: the policy and the collateral of each kind."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vaultline.attest.appraise import Verdict, appraise
from vaultline.attest.challenge import Challenge
from vaultline.attest.evidence import Evidence
from vaultline.attest.mismatch import Known, committed_keys
from vaultline.attest.policy import Policy
from vaultline.attest.refusals import EvidenceReplayed
from vaultline.core.errors import InputError
from vaultline.core.yaml import from_yaml

#: Collateral with its certificate revocation lists takes 10 to 20 KiB.
COLLATERAL_BYTES_MAX = 1 << 20


def load_policy(path: Path) -> Policy:
    """Read a policy file.

    Raises:
        InputError: missing, or not a policy; with the line of what is wrong.
    """
    text = _read(path, "the policy").decode("utf-8", errors="replace")
    return from_yaml(text, Policy, what="the policy", path=str(path))


def load_collateral(paths: Mapping[str, Path]) -> dict[str, bytes]:
    """Read a collateral file (JSON) for each kind of enclave.

    Raises:
        InputError: missing or too long.
    """
    return {kind: _read(path, f"the collateral for `{kind}`") for kind, path in paths.items()}


def _read(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(COLLATERAL_BYTES_MAX + 1)
    except OSError as error:
        raise InputError(
            f"cannot read {what}",
            got=f"{path}: {error.strerror}",
            remedy="name the right file; `vaultline policy dev` makes both for simulated enclaves",
        ) from error
    if len(data) > COLLATERAL_BYTES_MAX:
        raise InputError(
            f"{what} is too long", got=f"{path}: more than {COLLATERAL_BYTES_MAX} bytes"
        )
    return data


#: Challenges and keys that are remembered: the last epoch or two of the largest plan.
_REMEMBERED = 128


@dataclass(slots=True, kw_only=True)
class Appraiser:
    """Appraises the enclaves of a deployment; each challenge counts for one answer.

    It remembers what was asked and presented, to say what mismatched evidence was made for.
    """

    policy: Policy
    collateral: Mapping[str, bytes]
    allow_simulated: bool
    _known: Known = field(default_factory=Known, init=False)

    def appraise(self, evidence: Evidence, challenge: Challenge, now_s: int) -> Verdict:
        """Decide on one enclave's evidence.

        Raises:
            EvidenceRefused: a subclass for each reason.
            InputError: there is no collateral for this kind.
        """
        known = self._known
        if challenge in known.challenges:
            raise EvidenceReplayed(
                "this challenge has been answered before",
                remedy="send a challenge with a fresh nonce",
            )
        self._known = Known(
            challenges=(*known.challenges, challenge)[-_REMEMBERED:],
            public_keys=(*known.public_keys, committed_keys(evidence))[-_REMEMBERED:],
        )
        collateral = self.collateral.get(evidence.kind, b"")
        allowed = self.allow_simulated
        return appraise(evidence, challenge, self.policy, collateral, now_s, allowed, known)

    def appraise_now(self, evidence: Evidence, challenge: Challenge) -> Verdict:
        """`appraise` by this machine's clock: what a session is given."""
        now = datetime.datetime.now(datetime.UTC)
        return self.appraise(evidence, challenge, int(now.timestamp()))
