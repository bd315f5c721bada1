"""Report data against a challenge: a hash says only yes or no, so no is explained by trying."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec

from vaultline.attest.challenge import RECEIPTS_VERSION, Challenge, report_data
from vaultline.attest.evidence import Evidence
from vaultline.attest.refusals import (
    EvidenceForAnotherDeployment,
    EvidenceForAnotherEpoch,
    EvidenceForAnotherKey,
    EvidenceForAnotherPlan,
    EvidenceForAnotherStage,
    EvidenceReplayed,
    ReceiptKeyRefused,
    ReportDataMismatch,
)
from vaultline.core.limits import STAGES_MAX
from vaultline.core.serde import Struct

#: How far to look for the epoch that mismatched report data was made for.
_EPOCHS_AROUND = 16


class Known(Struct, frozen=True, kw_only=True):
    """What the owner has sent and received before: only used to explain a mismatch."""

    challenges: tuple[Challenge, ...] = ()
    public_keys: tuple[bytes, ...] = ()


def committed_keys(evidence: Evidence) -> bytes:
    """What report data has to commit to besides the challenge."""
    return evidence.public_key + evidence.signing_key


def check_signing_key(evidence: Evidence, challenge: Challenge) -> None:
    """There is a key for receipts if, and only if, the challenge asked for it.

    Raises:
        ReceiptKeyRefused: as named.
    """
    asked = challenge.version == RECEIPTS_VERSION
    if asked != bool(evidence.signing_key):
        raise ReceiptKeyRefused(
            "the evidence has no key that signs receipts, which was asked for"
            if asked
            else "the evidence has a key that signs receipts, which nobody asked for",
            remedy="run the worker of this version; no key is released",
        )


def check_report_data(found: bytes, challenge: Challenge, public_key: bytes, known: Known) -> None:
    """Check that report data commits to a challenge and keys; say what else if not.

    Raises:
        ReportDataMismatch: a subclass where it is known what the evidence was made for.
    """
    if found == report_data(challenge, public_key):
        return
    for other in _similar(challenge, known.challenges):
        if found == report_data(other, public_key):
            raise _explain(challenge, other)
    for key in dict.fromkeys(known.public_keys):
        if any(found == report_data(other, key) for other in (challenge, *known.challenges)):
            raise EvidenceForAnotherKey(
                "the evidence commits to a key that another enclave presented",
                remedy="somebody relays evidence; no key is released",
            )
    raise ReportDataMismatch(
        "the evidence is genuine, and not for this challenge and key",
        got=found.hex(),
        expected=report_data(challenge, public_key).hex(),
        remedy="it was replayed from elsewhere or relayed for another key; no key is released",
    )


def _similar(challenge: Challenge, known: tuple[Challenge, ...]) -> Iterator[Challenge]:
    """Challenges that are known, and the challenge with one field changed."""
    yield from known
    replace = msgspec.structs.replace
    for stage in range(STAGES_MAX):
        yield replace(challenge, stage=stage)
    first = max(0, challenge.epoch - _EPOCHS_AROUND)
    for epoch in range(first, min(challenge.epoch + _EPOCHS_AROUND, (1 << 64) - 1) + 1):
        yield replace(challenge, epoch=epoch)
    for plan_digest in {other.plan_digest for other in known}:
        yield replace(challenge, plan_digest=plan_digest)
    for deployment in {other.deployment for other in known}:
        yield replace(challenge, deployment=deployment)


def _explain(challenge: Challenge, other: Challenge) -> ReportDataMismatch:
    fields: tuple[tuple[str, type[ReportDataMismatch], str], ...] = (
        ("deployment", EvidenceForAnotherDeployment, "another deployment"),
        ("plan_digest", EvidenceForAnotherPlan, "another plan"),
        ("stage", EvidenceForAnotherStage, "another stage"),
        ("epoch", EvidenceForAnotherEpoch, "another epoch"),
        ("nonce", EvidenceReplayed, "an earlier challenge"),
    )
    name, error, text = next(f for f in fields if getattr(challenge, f[0]) != getattr(other, f[0]))
    return error(
        f"the evidence was made for {text}",
        got=_show(getattr(other, name)),
        expected=_show(getattr(challenge, name)),
        remedy="somebody replays evidence, or the host mixed up its workers; no key is released",
    )


def _show(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else json.dumps(value)
