"""Attestation results as JSON in the manner of EAR (draft-ietf-rats-ear), one submodule a device.

The trustworthiness vector has AR4SI's names and numbers (draft-ietf-rats-ar4si): 2 affirming, 32
warning, 96 contraindicated, 99 where the cryptography does not hold; what was not looked at is left
out. What EAR has no name for stands under ``vaultline.*``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from vaultline.attest.examine import Outcome
from vaultline.attest.judging import Check

PROFILE = "urn:vaultline:ear:1"
Status = Literal["affirming", "warning", "contraindicated"]
_AFFIRMING, _WARNING, _CONTRAINDICATED, _BROKEN = 2, 32, 96, 99
#: Claim of AR4SI -> the checks that decide it.
_VECTOR: dict[str, tuple[str, ...]] = {
    "instance-identity": ("evidence", "root", "platform", "revocation", "report data"),
    "configuration": ("debug", "migration", "options", "privilege"),
    "executables": ("measurement",),
    "hardware": ("tcb", "advisories", "freshness"),
}
#: Unsafe option -> the claim that it weakens.
_WEAKENED = {
    "unsafe_allow_debug": "configuration",
    "unsafe_allow_migration": "configuration",
    "unsafe_any_advisory": "hardware",
    "unsafe_skip_revocation": "instance-identity",
}


def status_of(outcome: Outcome) -> Status:
    """``warning`` is what passes only by an unsafe option, in grace, or as a simulation."""
    if outcome.refusals:
        return "contraindicated"
    return "warning" if warnings_of(outcome) else "affirming"


def reasons(checks: Iterable[Check]) -> list[dict[str, str | None]]:
    """Of each failed check: what was found, why it matters, what to do."""
    return [
        {
            "check": check.name,
            "code": check.refusal.code,
            "what": check.refusal.message,
            "got": check.refusal.got,
            "expected": check.refusal.expected,
            "why": check.refusal.why,
            "fix": check.refusal.remedy,
        }
        for check in checks
        if check.refusal
    ]


def attestation_result(
    outcomes: Mapping[str, Outcome], *, issued_s: int, valid_s: int, build: str, nonce: str | None
) -> dict[str, Any]:
    """The result for several devices, or one.

    Args:
        outcomes: by a name for each device.
        issued_s: Unix time.
        valid_s: for how long somebody else may rely on it, counted from the time that it was
            verified for, and ended by that of the collateral.
        build: of this verifier.
        nonce: what a relying party asked for, if one did.
    """
    ends = [o.now_s + valid_s for o in outcomes.values()]
    ends += [o.claims.expires_s for o in outcomes.values() if o.claims]
    result: dict[str, Any] = {
        "eat_profile": PROFILE,
        "iat": issued_s,
        "exp": min(ends, default=issued_s),
        "ear.verifier-id": {"developer": "vaultline", "build": build},
        "submods": {name: _submodule(outcome) for name, outcome in outcomes.items()},
    }
    return result | ({} if nonce is None else {"eat_nonce": nonce})


def _submodule(outcome: Outcome) -> dict[str, Any]:
    checks = {c.name: state_of(c) for c in outcome.checks}
    return {
        "ear.status": status_of(outcome),
        "ear.trustworthiness-vector": _vector(outcome),
        "ear.appraisal-policy-id": f"sha256:{outcome.policy_id}",
        "vaultline.kind": outcome.kind,
        "vaultline.simulated": outcome.kind == "simulated",
        "vaultline.verified-at": outcome.now_s,
        "vaultline.evidence": f"sha256:{outcome.evidence_digest}",
        "vaultline.fresh": outcome.fresh,
        "vaultline.unsafe": list(outcome.unsafe),
        "vaultline.warnings": warnings_of(outcome),
        "vaultline.checks": checks,
        "vaultline.reasons": reasons(outcome.checks),
        "vaultline.claims": msgspec.to_builtins(outcome.claims) if outcome.claims else None,
    }


def state_of(check: Check) -> Literal["passed", "waived", "failed"]:
    """``waived``: it would have failed without an unsafe option of the policy."""
    if check.refusal:
        return "failed"
    return "waived" if check.waived else "passed"


def warnings_of(outcome: Outcome) -> list[str]:
    """What keeps accepted evidence from being affirmed."""
    found = list(outcome.unsafe)
    if outcome.kind == "simulated":
        found.append("simulated")
    claims = outcome.claims
    if claims and claims.tcb_status not in ("UpToDate", "Unrated"):
        found.append(f"tcb status {claims.tcb_status}")
    if claims and claims.advisories:
        found.append("advisories")
    return found


def _vector(outcome: Outcome) -> dict[str, int]:
    states: dict[str, list[bool]] = {}
    for check in outcome.checks:
        name = check.name.split(": ")[-1]
        states.setdefault(name, []).append(check.refusal is None)
    if not all(states.get("evidence", [False])):
        return {"instance-identity": _BROKEN}
    weakened = {_WEAKENED[name] for name in outcome.unsafe}
    if any(w.startswith("tcb status") or w == "advisories" for w in warnings_of(outcome)):
        weakened.add("hardware")
    if outcome.kind == "simulated":
        weakened.add("instance-identity")
    vector = {}
    for claim, names in _VECTOR.items():
        passed = [state for name in names for state in states.get(name, [])]
        if not all(passed):
            vector[claim] = _CONTRAINDICATED
        else:
            vector[claim] = _WARNING if claim in weakened else _AFFIRMING
    return vector
