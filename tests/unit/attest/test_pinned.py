"""An accelerator's signature: accepted for the key, challenge and grant key it was made for."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from vaultline.attest import refusals
from vaultline.attest.appraise import Verdict, appraise
from vaultline.attest.challenge import Challenge
from vaultline.attest.evidence import Evidence
from vaultline.attest.mismatch import Known
from vaultline.attest.pinned import PINNED_LABEL, PINNED_QUOTE_BYTES, AcceleratorKey
from vaultline.attest.policy import Accepted, Policy
from vaultline.core.serde import canonical_json
from vaultline.enclave.evidence import answer, fresh_key
from vaultline.enclave.pinned_quotes import PinnedProvider
from vaultline.testing.attestation import NOW_S, challenge, evidence
from vaultline.testing.attestation import policy as enclaves

KEY = AcceleratorKey(version=1, private_key=bytes(range(32)))
OTHER = AcceleratorKey(version=1, private_key=bytes(range(1, 33)))
FRESH = b"fresh nonce-" + bytes(20)


def pinned(*keys: AcceleratorKey) -> Policy:
    public = tuple(key.public_key.hex() for key in keys)
    return Policy(version=1, accept=(Accepted(kind="accelerator", public_keys=public),))


def signed(asked: Challenge | None = None, key: AcceleratorKey = KEY) -> Evidence:
    provider = PinnedProvider(canonical_json(key))
    return answer(provider, asked or challenge(), fresh_key())


def judge(
    answered: Evidence,
    policy: Policy,
    asked: Challenge | None = None,
    known: Known | None = None,
) -> Verdict:
    return appraise(answered, asked or challenge(), policy, b"", NOW_S, False, known)


def test_the_pinned_key_is_accepted_and_vouches_for_nothing() -> None:
    verdict = judge(signed(), pinned(OTHER, KEY))
    assert (verdict.kind, verdict.simulated) == ("accelerator", False)
    assert verdict.root == KEY.public_key.hex()
    assert verdict.measurement == ""
    assert verdict.tcb_status == ""


def test_a_policy_may_write_keys_in_capitals() -> None:
    entry = Accepted(kind="accelerator", public_keys=(KEY.public_key.hex().upper(),))
    assert judge(signed(), Policy(version=1, accept=(entry,))).entry == 0


def test_the_first_entry_that_names_the_key_is_given() -> None:
    accept = (*enclaves().accept, *pinned(OTHER).accept, *pinned(KEY).accept)
    assert judge(signed(), Policy(version=1, accept=accept)).entry == 2


def test_another_key_is_refused_by_name() -> None:
    with pytest.raises(refusals.PinnedKeyRefused) as caught:
        judge(signed(), pinned(OTHER))
    assert caught.value.got == KEY.public_key.hex()
    assert caught.value.expected == OTHER.public_key.hex()


def quote(change: Callable[[bytes], bytes]) -> Evidence:
    good = signed()
    return msgspec.structs.replace(good, quote=change(good.quote))


def flip(at: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


NOT_SIGNED = {
    "a changed report": quote(flip(40)),
    "a changed signature": quote(flip(120)),
    "another key's signature under this key's name": quote(
        lambda data: KEY.public_key + OTHER.quote(data[32:96])[32:]
    ),
    "no signature": quote(lambda data: data[:96]),
    "more behind it": quote(lambda data: data + b"\0"),
    "an enclave's quote": msgspec.structs.replace(evidence(), kind="accelerator"),
}


@pytest.mark.parametrize("case", NOT_SIGNED)
def test_evidence_is_invalid_with(case: str) -> None:
    with pytest.raises(refusals.QuoteInvalid):
        judge(NOT_SIGNED[case], pinned(KEY))


def test_a_signature_over_report_data_alone_is_none() -> None:
    """The label keeps apart what else the key may ever sign."""
    good = signed()
    bare = KEY._signer().sign(good.quote[32:96])
    labelled = KEY._signer().sign(PINNED_LABEL + good.quote[32:96])
    assert good.quote[96:] == labelled != bare
    with pytest.raises(refusals.QuoteInvalid):
        judge(msgspec.structs.replace(good, quote=good.quote[:96] + bare), pinned(KEY))


#: What it was made for -> refusal, asked with a fresh nonce.
REPLAYED = {
    "an earlier challenge": ({}, refusals.EvidenceReplayed),
    "another epoch": ({"epoch": 6}, refusals.EvidenceForAnotherEpoch),
    "another stage": ({"stage": 0}, refusals.EvidenceForAnotherStage),
    "another plan": ({"plan_digest": bytes(32)}, refusals.EvidenceForAnotherPlan),
    "another deployment": ({"deployment": bytes(16)}, refusals.EvidenceForAnotherDeployment),
}


@pytest.mark.parametrize("case", REPLAYED)
def test_evidence_is_refused_that_was_made_for(case: str) -> None:
    changes, refusal = REPLAYED[case]
    old = challenge(**changes)
    with pytest.raises(refusals.ReportDataMismatch) as caught:
        judge(signed(old), pinned(KEY), challenge(nonce=FRESH), Known(challenges=(old,)))
    assert type(caught.value) is refusal


def test_a_signature_beside_another_grant_key_is_refused() -> None:
    relayed = msgspec.structs.replace(signed(), public_key=signed().public_key)
    with pytest.raises(refusals.ReportDataMismatch):
        judge(relayed, pinned(KEY))


def test_no_kind_stands_in_for_another() -> None:
    with pytest.raises(refusals.KindRefused):
        judge(signed(), enclaves())
    with pytest.raises(refusals.KindRefused):
        judge(evidence(), pinned(KEY))
    both = Policy(version=1, accept=(*enclaves().accept, *pinned(KEY).accept))
    posing = msgspec.structs.replace(signed(), kind="sgx")
    with pytest.raises(refusals.KindRefused):
        judge(posing, both)
    posing = msgspec.structs.replace(signed(), kind="simulated")
    with pytest.raises(refusals.EvidenceRefused):
        appraise(posing, challenge(), both, b"", NOW_S, True)


def test_the_quote_is_as_long_as_it_says() -> None:
    assert len(signed().quote) == PINNED_QUOTE_BYTES == 160
