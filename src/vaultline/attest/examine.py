"""A verifier's work on one piece of evidence: every check, told at once (RFC 9334: appraisal).

`appraise` decides on an enclave that answers a challenge, and stops at the first refusal. This is
for evidence in a file: it is verified and judged by every policy given, and whoever reads the
outcome sees each check that failed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import dcap_qvl

from vaultline.attest.appraise import check_consent
from vaultline.attest.bundled import verify_by_newest
from vaultline.attest.claims import Claims
from vaultline.attest.judging import Check
from vaultline.attest.policy import DEVELOPMENT_FMSPC, Policy
from vaultline.attest.refusals import (
    EvidenceRefused,
    ReportDataMismatch,
    ReportDataUnknown,
)
from vaultline.attest.verifiers import VerifiedKind, detect_kind
from vaultline.core.errors import InputError
from vaultline.core.serde import canonical_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be verified.

    Attributes:
        evidence: as the hardware gave it.
        policies: each must accept; none refuses.
        collateral: a bundle, or a platform's; may be empty where the evidence carries it all.
        now_s: Unix time at which it has to hold.
        report_data: what it must commit to, without the zeros at its end; ``None``: not checked.
            Nothing but zeros is what evidence has that answers no question: it shows no freshness.
        allow_simulated: the owner's consent to simulated enclaves.
    """

    evidence: bytes
    policies: tuple[Policy, ...]
    collateral: bytes
    now_s: int
    report_data: bytes | None = None
    allow_simulated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was found.

    Attributes:
        kind: by what the evidence is.
        claims: ``None`` where it does not verify.
        checks: in order; the first is whether the evidence verifies.
        unsafe: names of unsafe options: of the entries that accepted, or of all policies.
        policy_id: SHA-256 (hex) of the policies' canonical texts.
        evidence_digest: SHA-256 (hex).
        fresh: it commits to the report data that was asked for.
    """

    kind: str
    claims: Claims | None
    checks: tuple[Check, ...]
    unsafe: tuple[str, ...]
    policy_id: str
    evidence_digest: str
    fresh: bool
    now_s: int

    @property
    def refusals(self) -> tuple[EvidenceRefused, ...]:
        """Those of the failed checks; empty where the evidence is accepted."""
        return tuple(check.refusal for check in self.checks if check.refusal)


def policy_id(policies: Sequence[Policy]) -> str:
    """What results call policies: SHA-256 (hex) of their canonical texts, in order."""
    return hashlib.sha256(b"\n".join(canonical_json(policy) for policy in policies)).hexdigest()


def examine(request: Request) -> Outcome:
    """Verify evidence and judge it by all policies.

    Raises:
        InputError: no policy, or the collateral is not readable.
    """
    if not request.policies:
        raise InputError("without a policy nothing is accepted", remedy="name one with --policy")
    kind = kind_of(request.evidence)
    checks: list[Check] = []
    unsafe: set[str] = set()
    claims: Claims | None = None
    for number, policy in enumerate(request.policies):
        prefix = f"policy {number + 1}: " if len(request.policies) > 1 else ""
        try:
            check_consent(kind, policy, request.allow_simulated)
            claims, judged = verify_by_newest(
                kind, request.evidence, policy, request.collateral, request.now_s
            )
        except EvidenceRefused as error:
            checks.append(Check(name=prefix + "evidence", refusal=error))
            unsafe |= set(policy.unsafe)
            continue
        checks.append(Check(name=prefix + "evidence"))
        checks += [replace(check, name=prefix + check.name) for check in judged.checks]
        unsafe |= set(judged.unsafe)
    checks += _check_report_data(kind, claims, request)
    return Outcome(
        kind=kind,
        claims=claims,
        checks=tuple(checks),
        unsafe=tuple(sorted(unsafe)),
        policy_id=policy_id(request.policies),
        evidence_digest=hashlib.sha256(request.evidence).hexdigest(),
        fresh=any(request.report_data or b"") and not any(c.refusal for c in checks[-1:]),
        now_s=request.now_s,
    )


def kind_of(evidence: bytes) -> VerifiedKind:
    """What evidence says it is; a development platform's quote is ``simulated``.

    Raises:
        QuoteInvalid: none that is known.
    """
    kind = detect_kind(evidence)
    if kind == "sgx":
        try:
            family = dcap_qvl.parse_quote(evidence).fmspc()
        except ValueError:
            return kind
        return "simulated" if family.upper() == DEVELOPMENT_FMSPC else "sgx"
    return kind


def _check_report_data(kind: str, claims: Claims | None, request: Request) -> list[Check]:
    if claims is None:
        return []
    needed = any(
        entry.require_report_data
        for policy in request.policies
        for entry in policy.accept
        if entry.kind == kind
    )
    if needed and not any(request.report_data or b""):
        unknown = ReportDataUnknown("the policy wants fresh evidence: say what it must commit to")
        return [Check(name="report data", refusal=unknown)]
    if request.report_data is None:
        return []
    found = bytes.fromhex(claims.report_data)
    if len(request.report_data) > len(found):
        raise InputError(
            "the expected report data is too long",
            got=f"{len(request.report_data)} bytes",
            expected=f"at most {len(found)} for {kind}",
        )
    if found == request.report_data.ljust(len(found), b"\0"):
        return [Check(name="report data")]
    refusal = ReportDataMismatch(
        "the evidence is genuine, and commits to something else than expected",
        got=found.hex(),
        expected=request.report_data.hex(),
    )
    return [Check(name="report data", refusal=refusal)]
