"""Evidence verified with whichever collateral of a bundle is for its platform and for its time."""

from __future__ import annotations

from vaultline.attest.claims import Claims
from vaultline.attest.collateral import candidates
from vaultline.attest.judging import Judgement, entries_of, judge
from vaultline.attest.policy import Policy
from vaultline.attest.refusals import (
    CertificateRefused,
    ChipMismatch,
    CollateralExpired,
    CollateralMismatch,
    EvidenceRefused,
    RootRefused,
    SigningKeyMismatch,
    TcbMismatch,
)
from vaultline.attest.verifiers import verify

#: What is refused with collateral for another platform, or with that of another time.
_NOT_ITS_OWN = (
    CollateralMismatch,
    RootRefused,
    CertificateRefused,
    ChipMismatch,
    TcbMismatch,
    SigningKeyMismatch,
    CollateralExpired,
)


def verify_by_newest(
    kind: str, evidence: bytes, policy: Policy, collateral: bytes, now_s: int
) -> tuple[Claims, Judgement]:
    """Verify and judge by the newest collateral that is for this platform and this time.

    Any other refusal counts, whichever collateral shows it: an older revocation list in the bundle
    does not outweigh a newer one.

    Args:
        collateral: a bundle, or a file for one platform; empty where there is none.

    Raises:
        EvidenceRefused: it does not verify. What the policy has against it is in the judgement.
        InputError: the collateral is not readable, or has none of this kind.
    """
    texts = candidates(kind, collateral) if collateral else (b"",)
    held: list[tuple[Claims, Judgement]] = []
    refused: list[EvidenceRefused] = []
    for text in texts:
        try:
            held.append(verify_and_judge(kind, evidence, policy, text, now_s))
        except _NOT_ITS_OWN as error:
            refused.append(error)
    if held:
        return max(held, key=_newest)
    raise min(refused, key=_distance)


def verify_and_judge(
    kind: str, evidence: bytes, policy: Policy, collateral: bytes, now_s: int
) -> tuple[Claims, Judgement]:
    """Verify evidence under the roots that a policy names, and judge what it claims.

    Raises:
        EvidenceRefused: it does not verify. What the policy has against it is in the judgement.
        InputError: there is no collateral, or it is not readable.
    """
    entries = entries_of(policy, kind)
    roots = frozenset().union(*(entry.root_ids for _, entry in entries))
    claims = verify(kind, evidence, collateral, roots, now_s)
    return claims, judge(policy, kind, claims, now_s)


def _newest(pair: tuple[Claims, Judgement]) -> tuple[int, int, int]:
    """By the vendor's statements, which a newer certificate or list of another's does not renew;
    of equally new ones the strictest."""
    claims, judged = pair
    return claims.stated_s, claims.issued_s, len(judged.refusals)


def _distance(error: EvidenceRefused) -> bool:
    """Expired collateral is closer than another platform's: it may be this one's."""
    return not isinstance(error, CollateralExpired)
