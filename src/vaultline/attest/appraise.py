"""Evidence to verdict: the relying party's checks, in order, each with its own refusal.

The order goes from what costs nothing to what needs signatures, and nothing of the evidence is
believed before its verifier has followed it to a root that the policy names:

1. the policy knows this kind of enclave; simulated ones need the owner's consent as well
2. the kind's verifier: exact length, signatures, certificates, revocation lists, validity at the
   given time, under roots that entries of the policy name (`verifiers`)
3. one entry of the policy accepts what was verified, entirely (`judging`)
4. the report data commits to this challenge and this key

Simulated and real enclaves take the same path. An accelerator shows no quote but a signature by a
key that the policy pins: `pinning` checks that in place of 2 and 3, and it vouches for nothing.
"""

from __future__ import annotations

from vaultline.attest.bundled import verify_by_newest
from vaultline.attest.challenge import Challenge
from vaultline.attest.evidence import Evidence
from vaultline.attest.judging import entries_of
from vaultline.attest.mismatch import Known, check_report_data, check_signing_key, committed_keys
from vaultline.attest.pinning import check_pinned
from vaultline.attest.policy import Policy
from vaultline.attest.refusals import SimulatedNotAllowed
from vaultline.core.serde import Struct


class Verdict(Struct, frozen=True, kw_only=True):
    """Why an enclave or an accelerator was accepted, for results and logs.

    Of an accelerator only kind, entry and root are known; the other texts are empty.

    Attributes:
        simulated: true where the evidence protects from mistakes and not from the host.
        entry: index of the policy's entry that was satisfied.
        measurement: MRENCLAVE, MRTD or launch digest (hex).
        root: key id of the root (hex); an accelerator's own public key.
        collateral_until_s: Unix time at which the collateral ends.
        unsafe: unsafe options of the entry, by name.
    """

    kind: str
    simulated: bool
    entry: int
    measurement: str
    root: str
    tcb_status: str
    advisories: tuple[str, ...]
    collateral_until_s: int
    unsafe: tuple[str, ...] = ()


def appraise(
    evidence: Evidence,
    challenge: Challenge,
    policy: Policy,
    collateral: bytes,
    now_s: int,
    allow_simulated: bool,
    known: Known | None = None,
) -> Verdict:
    """Decide whether evidence answers a challenge and satisfies a policy.

    Args:
        evidence: what the enclave answered.
        challenge: what this enclave was asked, never another one.
        policy: reference values.
        collateral: JSON of certificates, revocation lists and TCB levels: a bundle, or one kind's.
        now_s: Unix time.
        allow_simulated: the owner's consent to simulated enclaves, beside the policy.
        known: earlier challenges and keys, to name what mismatched evidence was made for.

    Raises:
        EvidenceRefused: a subclass for each reason.
        InputError: the collateral is not readable.
    """
    known = known or Known()
    check_consent(evidence.kind, policy, allow_simulated)
    check_signing_key(evidence, challenge)
    if evidence.kind == "accelerator":
        return _appraise_pinned(evidence, challenge, policy, known)
    claims, judgement = verify_by_newest(evidence.kind, evidence.quote, policy, collateral, now_s)
    if judgement.refusals:
        raise judgement.refusals[0]
    found = bytes.fromhex(claims.report_data)
    check_report_data(found, challenge, committed_keys(evidence), known)
    return Verdict(
        kind=evidence.kind,
        simulated=evidence.kind == "simulated",
        entry=judgement.entry,
        measurement=claims.measurement,
        root=claims.root,
        tcb_status=claims.tcb_status,
        advisories=claims.advisories,
        collateral_until_s=claims.expires_s,
        unsafe=judgement.unsafe,
    )


def check_consent(kind: str, policy: Policy, allow_simulated: bool) -> None:
    """The policy has an entry of this kind, and the owner consents if it is a simulated one.

    Raises:
        KindRefused, SimulatedNotAllowed: as named.
    """
    entries_of(policy, kind)
    if kind == "simulated" and not allow_simulated:
        raise SimulatedNotAllowed(
            "this enclave is simulated: nothing protects it from its host",
            remedy="say --allow-simulated if that is what you want, beside naming the root",
        )


def _appraise_pinned(
    evidence: Evidence, challenge: Challenge, policy: Policy, known: Known
) -> Verdict:
    entry, key, found = check_pinned(evidence.quote, entries_of(policy, evidence.kind))
    check_report_data(found, challenge, committed_keys(evidence), known)
    return Verdict(
        kind=evidence.kind,
        simulated=False,
        entry=entry,
        measurement="",
        root=key,
        tcb_status="",
        advisories=(),
        collateral_until_s=0,
    )
