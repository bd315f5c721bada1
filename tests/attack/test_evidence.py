"""A host that replays, relays and swaps evidence and grants: each attempt has its own refusal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import pytest

from vaultline.attest import refusals
from vaultline.attest.challenge import Challenge
from vaultline.attest.evidence import Evidence
from vaultline.attest.grant import (
    GrantForAnotherDeployment,
    GrantForAnotherEnclave,
    GrantForAnotherEpoch,
    GrantForAnotherPlan,
    GrantForAnotherStage,
    open_grant,
    public_key_bytes,
    transcript_hash,
)
from vaultline.attest.granting import seal_grant
from vaultline.attest.stage_grant import Grant
from vaultline.core.errors import VaultlineError
from vaultline.enclave.evidence import fresh_key
from vaultline.owner.appraisal import Appraiser
from vaultline.testing.attestation import NOW_S, challenge, devroot, evidence, grant, policy

FRESH = b"fresh nonce-" + bytes(20)


def owner() -> Appraiser:
    collateral = {"simulated": devroot().collateral}
    return Appraiser(policy=policy(), collateral=collateral, allow_simulated=True)


def with_key_of(quoted: Evidence, other: Evidence) -> Evidence:
    """The quote of one enclave beside the key of another."""
    return msgspec.structs.replace(quoted, public_key=other.public_key)


@dataclass(frozen=True)
class Attack:
    """What the owner saw before, what it asks now, and what the host makes of it."""

    before: Challenge
    asked: Challenge
    answer: Callable[[Evidence], Evidence]
    refusal: type[VaultlineError]


def replay(seen: Evidence) -> Evidence:
    return seen


def relay(seen: Evidence) -> Evidence:
    """Genuine evidence for the challenge, with the key swapped for the attacker's own."""
    return with_key_of(evidence(challenge(nonce=FRESH)), evidence())


ASKED = challenge(nonce=FRESH)
ATTACKS = {
    "evidence replayed to a fresh nonce": Attack(
        challenge(), ASKED, replay, refusals.EvidenceReplayed
    ),
    "evidence of another epoch": Attack(
        challenge(epoch=6), ASKED, replay, refusals.EvidenceForAnotherEpoch
    ),
    "evidence of an epoch long ago": Attack(
        challenge(epoch=7), challenge(nonce=FRESH, epoch=7000), replay,
        refusals.EvidenceForAnotherEpoch,
    ),
    "evidence of another stage": Attack(
        challenge(stage=0), ASKED, replay, refusals.EvidenceForAnotherStage
    ),
    "evidence for another plan": Attack(
        challenge(plan_digest=bytes(32)), ASKED, replay, refusals.EvidenceForAnotherPlan
    ),
    "evidence of another deployment": Attack(
        challenge(deployment=bytes(16)), ASKED, replay, refusals.EvidenceForAnotherDeployment
    ),
    "evidence relayed for a key that nobody has seen": Attack(
        challenge(), ASKED, relay, refusals.ReportDataMismatch
    ),
    "another stage's quote beside this stage's key": Attack(
        challenge(stage=0), ASKED, lambda seen: with_key_of(seen, evidence(ASKED)),
        refusals.EvidenceForAnotherKey,
    ),
    "this stage's quote beside another stage's key": Attack(
        challenge(stage=0), ASKED, lambda seen: with_key_of(evidence(ASKED), seen),
        refusals.ReportDataMismatch,
    ),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_the_owner_refuses(attack: Attack) -> None:
    appraiser = owner()
    seen = evidence(attack.before)
    appraiser.appraise(seen, attack.before, NOW_S)
    with pytest.raises(refusals.EvidenceRefused) as caught:
        appraiser.appraise(attack.answer(seen), attack.asked, NOW_S)
    assert type(caught.value) is attack.refusal
    assert caught.value.remedy


def test_one_challenge_counts_for_one_answer() -> None:
    appraiser = owner()
    appraiser.appraise(evidence(), challenge(), NOW_S)
    with pytest.raises(refusals.EvidenceReplayed, match="answered before"):
        appraiser.appraise(evidence(), challenge(), NOW_S)


def test_two_stages_that_were_asked_cannot_swap_their_answers() -> None:
    one, two = challenge(stage=0), challenge(stage=1, nonce=FRESH)
    answers = {one: evidence(two), two: evidence(one)}
    for asked, answer in answers.items():
        with pytest.raises(refusals.EvidenceForAnotherStage):
            appraiser = owner()
            appraiser.appraise(evidence(other := one if asked is two else two), other, NOW_S)
            appraiser.appraise(answer, asked, NOW_S)


KEY = fresh_key()
EVIDENCE = evidence(key=KEY)
TRANSCRIPT = transcript_hash(challenge(), EVIDENCE)


def test_a_grant_of_another_enclave_is_refused() -> None:
    other = evidence(challenge(stage=0))
    to_other = seal_grant(grant(), other.public_key, transcript_hash(challenge(stage=0), other))
    with pytest.raises(GrantForAnotherEnclave):
        open_grant(to_other, KEY, TRANSCRIPT, Grant, challenge=challenge())


def test_a_grant_of_an_earlier_exchange_is_refused() -> None:
    old = seal_grant(grant(), public_key_bytes(KEY), TRANSCRIPT)
    later = challenge(nonce=FRESH)
    transcript = transcript_hash(later, evidence(later, key=KEY))
    with pytest.raises(GrantForAnotherEnclave):
        open_grant(old, KEY, transcript, Grant, challenge=later)


SWAPPED = {
    "another stage": ({"stage": 0}, GrantForAnotherStage),
    "another epoch": ({"epoch": 6}, GrantForAnotherEpoch),
    "another plan": ({"plan_digest": bytes(32)}, GrantForAnotherPlan),
    "another deployment": ({"deployment": bytes(16)}, GrantForAnotherDeployment),
}


@pytest.mark.parametrize("changes, refusal", SWAPPED.values(), ids=SWAPPED.keys())
def test_an_owner_that_mixes_up_grants_is_refused_for(
    changes: dict[str, object], refusal: type[VaultlineError]
) -> None:
    sealed = seal_grant(grant(**changes), public_key_bytes(KEY), TRANSCRIPT)
    with pytest.raises(refusal):
        open_grant(sealed, KEY, TRANSCRIPT, Grant, challenge=challenge())
