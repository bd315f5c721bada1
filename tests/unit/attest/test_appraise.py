"""Appraisal: what is accepted, and the reason for each refusal; simulated and recorded evidence."""

from __future__ import annotations

import datetime
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultline.attest import refusals
from vaultline.attest.appraise import Verdict, appraise
from vaultline.attest.evidence import PUBLIC_KEY_BYTES, Evidence
from vaultline.attest.intel import check_attributes, check_dates, check_length
from vaultline.attest.mismatch import Known
from vaultline.attest.policy import INTEL_ROOT, Accepted, Grace, Policy, Signer, TrustDomain
from vaultline.attest.sgx_quote import Platform, build_quote, report_body
from vaultline.core.errors import InputError, RefusedError
from vaultline.core.serde import from_json
from vaultline.testing.attestation import (
    MEASUREMENT,
    NOW_S,
    challenge,
    devroot,
    evidence,
    policy,
    recorded,
)

EVIDENCE = evidence()
DAY_S = 86_400


@dataclass(frozen=True)
class Case:
    """One appraisal; what is not given is right."""

    evidence: Evidence = EVIDENCE
    policy: Policy = field(default_factory=policy)
    collateral: bytes = field(default_factory=lambda: devroot().collateral)
    now_s: int = NOW_S
    allow_simulated: bool = True

    def run(self) -> Verdict:
        return appraise(
            self.evidence,
            challenge(),
            self.policy,
            self.collateral,
            self.now_s,
            self.allow_simulated,
        )


def quoted(body: bytes) -> Evidence:
    platform = from_json(devroot().platform, Platform, what="the platform")
    return msgspec.structs.replace(EVIDENCE, quote=build_quote(platform, body))


def altered(position: int) -> Evidence:
    quote = bytearray(EVIDENCE.quote)
    quote[position] ^= 1
    return msgspec.structs.replace(EVIDENCE, quote=bytes(quote))


def both(*entries: Policy) -> Policy:
    return Policy(version=1, accept=tuple(e for p in entries for e in p.accept))


def test_a_simulated_enclave_is_accepted_with_its_verdict() -> None:
    verdict = Case().run()
    assert verdict.kind == "simulated"
    assert verdict.simulated
    assert verdict.measurement == MEASUREMENT.hex()
    assert verdict.tcb_status == "UpToDate"
    assert verdict.collateral_until_s == NOW_S - DAY_S + 365 * DAY_S


def test_an_entry_must_be_satisfied_entirely() -> None:
    # One entry has the root and the other the measurement: neither accepts.
    halves = both(policy(measurements=("00" * 32,)), policy(devroot("b")))
    with pytest.raises(refusals.MeasurementRefused):
        Case(policy=halves).run()
    assert Case(policy=both(halves, policy())).run().entry == 2


DEBUGGABLE = report_body(measurement=MEASUREMENT, report_data=b"", attributes=0x7)
OTHER_CODE = report_body(measurement=bytes(32), report_data=b"")
AS_SGX = msgspec.structs.replace(EVIDENCE, kind="sgx")
AS_TDX = msgspec.structs.replace(EVIDENCE, kind="tdx")
TDX = {
    "kind": "tdx",
    "measurements": (),
    "trust_domains": (TrustDomain(mrtd="00" * 48, rtmr1="00" * 48, rtmr2="00" * 48),),
}
OUTDATED = devroot("a", "OutOfDate")
REVOKED = devroot("a", "Revoked")

REFUSED: dict[str, tuple[Case, type[RefusedError]]] = {
    "simulated evidence without consent": (
        Case(allow_simulated=False),
        refusals.SimulatedNotAllowed,
    ),
    "a kind that the policy does not name": (Case(evidence=AS_SGX), refusals.KindRefused),
    "snp evidence, which nothing verifies yet": (
        Case(evidence=msgspec.structs.replace(EVIDENCE, kind="snp")),
        refusals.KindRefused,
    ),
    "a simulated platform that claims to be real": (
        Case(evidence=AS_SGX, policy=policy(kind="sgx"), allow_simulated=True),
        refusals.SimulatedNotAllowed,
    ),
    "an SGX quote that claims to be of a trust domain": (
        Case(evidence=AS_TDX, policy=policy(**TDX)),
        refusals.KindRefused,
    ),
    "another development root": (
        Case(policy=policy(devroot("b"))),
        refusals.RootRefused,
    ),
    "collateral of a root that is not named": (
        Case(collateral=devroot("b").collateral),
        refusals.RootRefused,
    ),
    "a platform of another root with collateral of the named one": (
        Case(evidence=evidence(root=devroot("b"))),
        refusals.RootRefused,
    ),
    "evidence before the collateral was issued": (
        Case(now_s=NOW_S - 2 * DAY_S),
        refusals.CollateralExpired,
    ),
    "evidence after the collateral ended": (
        Case(now_s=NOW_S + 365 * DAY_S),
        refusals.CollateralExpired,
    ),
    "a debuggable enclave": (Case(evidence=quoted(DEBUGGABLE)), refusals.DebugRefused),
    "an out-of-date platform": (
        Case(evidence(root=OUTDATED), policy(OUTDATED), OUTDATED.collateral),
        refusals.TcbRefused,
    ),
    "a revoked platform": (
        Case(evidence(root=REVOKED), policy(REVOKED), REVOKED.collateral),
        refusals.TcbRefused,
    ),
    "a platform that is silent about a refused property": (
        Case(policy=policy(refused_platforms=("smt",))),
        refusals.PlatformRefused,
    ),
    "other code": (Case(evidence=quoted(OTHER_CODE)), refusals.MeasurementRefused),
    "other code than any of several": (
        Case(policy=policy(measurements=("00" * 32, "11" * 32))),
        refusals.MeasurementRefused,
    ),
    "a changed header": (Case(evidence=altered(12)), refusals.VendorRefused),
    "a changed version": (Case(evidence=altered(0)), refusals.QuoteInvalid),
    "a changed measurement": (Case(evidence=altered(48 + 64)), refusals.QuoteInvalid),
    "changed report data": (Case(evidence=altered(48 + 383)), refusals.QuoteInvalid),
    "a changed signature": (Case(evidence=altered(436)), refusals.QuoteInvalid),
    "a changed attestation key": (Case(evidence=altered(500)), refusals.QuoteInvalid),
    "a changed report of the quoting enclave": (Case(evidence=altered(600)), refusals.QuoteInvalid),
    "a changed signature of the platform": (Case(evidence=altered(960)), refusals.QuoteInvalid),
    "a changed certificate": (Case(evidence=altered(1400)), refusals.QuoteInvalid),
    "a byte after the quote": (
        Case(evidence=msgspec.structs.replace(EVIDENCE, quote=EVIDENCE.quote + b"\0")),
        refusals.QuoteTrailingBytes,
    ),
    "a quote that was cut short": (
        Case(evidence=msgspec.structs.replace(EVIDENCE, quote=EVIDENCE.quote[:-1])),
        refusals.QuoteTrailingBytes,
    ),
    "a quote of a few bytes": (
        Case(evidence=msgspec.structs.replace(EVIDENCE, quote=b"\3\0abc")),
        refusals.QuoteInvalid,
    ),
    "a genuine quote over nothing": (
        Case(evidence=quoted(report_body(measurement=MEASUREMENT, report_data=b""))),
        refusals.ReportDataMismatch,
    ),
}


@pytest.mark.parametrize("case, error", REFUSED.values(), ids=REFUSED.keys())
def test_refused(case: Case, error: type[RefusedError]) -> None:
    with pytest.raises(RefusedError) as caught:
        case.run()
    assert type(caught.value) is error
    assert caught.value.message


def test_an_out_of_date_platform_is_accepted_where_the_policy_says_so() -> None:
    lenient = policy(OUTDATED, tcb_statuses=("UpToDate", "OutOfDate"))
    verdict = Case(evidence(root=OUTDATED), lenient, OUTDATED.collateral).run()
    assert verdict.tcb_status == "OutOfDate"


def test_bytes_hidden_inside_the_signature_section_are_refused() -> None:
    quote = bytearray(EVIDENCE.quote + b"hidden")
    (size,) = struct.unpack_from("<I", quote, 432)
    struct.pack_into("<I", quote, 432, size + 6)
    with pytest.raises(refusals.QuoteTrailingBytes):
        Case(evidence=msgspec.structs.replace(EVIDENCE, quote=bytes(quote))).run()


def test_dates_are_checked_by_us_too() -> None:
    for now_s in (100, 150, 200):
        check_dates(100, 200, now_s)
    for now_s in (99, 201):
        with pytest.raises(refusals.CollateralExpired):
            check_dates(100, 200, now_s)


def test_debug_bits_are_checked_by_us_too() -> None:
    check_attributes(0, {"attributes": "05" + "00" * 15})
    check_attributes(0x81, {"td_attributes": "0000001000000000"})
    for tee_type, report in (
        (0, {"attributes": "07" + "00" * 15}),
        (0x81, {"td_attributes": "0100001000000000"}),
        (0x81, {"td_attributes": "8000001000000000"}),
    ):
        with pytest.raises(refusals.DebugRefused):
            check_attributes(tee_type, report)


BROKEN_COLLATERAL: dict[str, Callable[[dict[str, Any]], object]] = {
    "nothing in it": lambda c: c.clear(),
    "no issuer chain": lambda c: c.pop("tcb_info_issuer_chain"),
    "a chain that is not PEM": lambda c: c.update(tcb_info_issuer_chain="x"),
    "no QE identity": lambda c: c.pop("qe_identity"),
}


@pytest.mark.parametrize("change", BROKEN_COLLATERAL.values(), ids=BROKEN_COLLATERAL.keys())
def test_collateral_is_the_users_mistake_with(change: Callable[[dict[str, Any]], object]) -> None:
    collateral = json.loads(devroot().collateral)
    change(collateral)
    with pytest.raises(InputError):
        Case(collateral=json.dumps(collateral).encode()).run()


FORGED: dict[str, Callable[[str], str]] = {
    "tcb_info": lambda text: text.replace('"svn":0', '"svn":1', 1),
    "qe_identity": lambda text: text.replace('"isvsvn":8', '"isvsvn":1'),
    "tcb_info_signature": lambda text: "00" * 64,
    "root_ca_crl": lambda text: json.loads(devroot("b").collateral)["root_ca_crl"],
    "pck_crl": lambda text: json.loads(devroot("b").collateral)["pck_crl"],
}


@pytest.mark.parametrize("name, change", FORGED.items(), ids=FORGED.keys())
def test_forged_collateral_is_refused(name: str, change: Callable[[str], str]) -> None:
    collateral = json.loads(devroot().collateral)
    collateral[name] = change(collateral[name])
    with pytest.raises(refusals.QuoteInvalid):
        Case(collateral=json.dumps(collateral).encode()).run()


@given(st.integers(0, len(EVIDENCE.quote) - 1), st.integers(1, 255))
@settings(derandomize=True, deadline=None, max_examples=100)
def test_a_quote_with_a_changed_byte_is_refused_or_says_the_same(position: int, flip: int) -> None:
    # Line ends between certificates, and the copy of the root (not what is trusted), may change.
    quote = bytearray(EVIDENCE.quote)
    quote[position] ^= flip
    try:
        verdict = Case(evidence=msgspec.structs.replace(EVIDENCE, quote=bytes(quote))).run()
    except RefusedError:
        return
    assert position >= EVIDENCE.quote.index(b"-----BEGIN")
    assert verdict == Case().run()


@given(st.binary(min_size=1, max_size=1200))
@settings(derandomize=True, deadline=None)
def test_any_bytes_for_a_quote_are_refused(data: bytes) -> None:
    for quote in (data, EVIDENCE.quote[:436] + data):
        with pytest.raises(RefusedError):
            Case(evidence=msgspec.structs.replace(EVIDENCE, quote=quote)).run()


# Recorded evidence of real platforms, through the same function.


def load(name: str) -> bytes:
    data = recorded(name, Path(__file__))
    if data is None:
        pytest.skip("shared/data/attestation is not here")
    return data


def moment(text: str) -> int:
    return int(datetime.datetime.fromisoformat(text).timestamp())


IN_VALIDITY_S = moment("2025-07-01T00:00:00+00:00")
MRENCLAVE = "33d8736db756ed4997e04ba358d27833188f1932ff7b1d156904d3f560452fbb"
SIGNER = Signer(
    mrsigner="815f42f11cf64430c30bab7816ba596a1da0130c3b028b673133a66cf9a3e0e6",
    product_id=0,
    svn_min=0,
)
SGX: dict[str, Any] = {
    "kind": "sgx",
    "roots": ("intel",),
    "measurements": (MRENCLAVE,),
    "tcb_statuses": ("UpToDate", "ConfigurationAndSWHardeningNeeded"),
    "accepted_advisories": ("INTEL-SA-00289", "INTEL-SA-00615"),
}


def appraise_sgx(
    entry: dict[str, Any], *, now_s: int = IN_VALIDITY_S, alter: int | None = None
) -> Verdict:
    quote = bytearray(load("sgx_quote_v3.bin"))
    if alter is not None:
        quote[alter] ^= 1
    presented = Evidence(kind="sgx", public_key=bytes(PUBLIC_KEY_BYTES), quote=bytes(quote))
    accept = Policy(version=1, accept=(Accepted(**entry),))
    collateral = load("sgx_quote_v3.collateral.json")
    return appraise(presented, challenge(), accept, collateral, now_s, False)


ACCEPTED_SGX = {
    "by its measurement": SGX,
    "by its signer": SGX | {"measurements": (), "signers": (SIGNER,)},
    "by its root's key id": SGX | {"roots": (INTEL_ROOT.upper(),)},
}


@pytest.mark.parametrize("entry", ACCEPTED_SGX.values(), ids=ACCEPTED_SGX.keys())
def test_a_recorded_sgx_quote_passes_all_but_our_challenge(entry: dict[str, Any]) -> None:
    # The last check refuses it: it was made for "Hello, world!" and for no challenge of ours.
    with pytest.raises(refusals.ReportDataMismatch) as caught:
        appraise_sgx(entry)
    assert caught.value.got == b"Hello, world!".ljust(64, b"\0").hex()


REFUSED_SGX: dict[str, tuple[dict[str, Any], type[RefusedError]]] = {
    "other code": (SGX | {"measurements": ("00" * 32,)}, refusals.MeasurementRefused),
    "another signer": (
        SGX
        | {
            "measurements": (),
            "signers": (Signer(mrsigner="00" * 32, product_id=0, svn_min=0),),
        },
        refusals.MeasurementRefused,
    ),
    "another product of the signer": (
        SGX | {"measurements": (), "signers": (msgspec.structs.replace(SIGNER, product_id=1),)},
        refusals.MeasurementRefused,
    ),
    "an older version of the product": (
        SGX | {"measurements": (), "signers": (msgspec.structs.replace(SIGNER, svn_min=1),)},
        refusals.MeasurementRefused,
    ),
    "its TCB status": (SGX | {"tcb_statuses": ("UpToDate",)}, refusals.TcbRefused),
    "one of its advisories": (
        SGX | {"accepted_advisories": ("INTEL-SA-00615",)},
        refusals.TcbRefused,
    ),
    "its root": (SGX | {"roots": ("00" * 48,)}, refusals.RootRefused),
}


@pytest.mark.parametrize("entry, error", REFUSED_SGX.values(), ids=REFUSED_SGX.keys())
def test_a_recorded_sgx_quote_is_refused_for(
    entry: dict[str, Any], error: type[RefusedError]
) -> None:
    with pytest.raises(error):
        appraise_sgx(entry)


@pytest.mark.parametrize("position", [4, 60, 112, 400, 431, 436, 500, 600, 960, 1500])
def test_a_recorded_sgx_quote_with_a_changed_byte_is_invalid(position: int) -> None:
    with pytest.raises(refusals.QuoteInvalid):
        appraise_sgx(SGX, alter=position)


@pytest.mark.parametrize("when", ["2025-06-01", "2025-08-01", "2040-01-01"])
def test_a_recorded_sgx_quote_is_refused_outside_its_collaterals_validity(when: str) -> None:
    with pytest.raises(refusals.CollateralExpired):
        appraise_sgx(SGX, now_s=moment(f"{when}T00:00:00+00:00"))


TRUST_DOMAIN = TrustDomain(
    mrtd=(
        "91eb2b44d141d4ece09f0c75c2c53d247a3c68edd7fafe8a3520c942a604a407"
        "de03ae6dc5f87f27428b2538873118b7"
    ),
    rtmr1=(
        "0084452c01668329d4bc06acdf58a7205c26743304509973949e5619bf81a6a7"
        "aea8c323c173019b3093d54e579e9378"
    ),
    rtmr2=(
        "d833feef2cd945148aa38ead2c53e9b7f138190aaaebfc551dccd829fc207aa3"
        "ba80b70870d7330733642e01d48c3132"
    ),
)


def appraise_tdx(quote: bytes, domain: TrustDomain, **changes: Any) -> Verdict:
    entry = Accepted(kind="tdx", roots=("intel",), trust_domains=(domain,), **changes)
    presented = Evidence(kind="tdx", public_key=bytes(PUBLIC_KEY_BYTES), quote=quote)
    accept = Policy(version=1, accept=(entry,))
    collateral = load("tdx_quote_v4.collateral.json")
    return appraise(presented, challenge(), accept, collateral, IN_VALIDITY_S, False)


def trimmed_tdx() -> bytes:
    return load("tdx_quote_v4.bin")[:4936]


def test_a_recorded_tdx_quote_passes_all_but_our_challenge() -> None:
    with pytest.raises(refusals.ReportDataMismatch):
        appraise_tdx(trimmed_tdx(), TRUST_DOMAIN)


def test_the_padding_after_the_recorded_tdx_quote_is_refused() -> None:
    with pytest.raises(refusals.QuoteTrailingBytes):
        appraise_tdx(load("tdx_quote_v4.bin"), TRUST_DOMAIN)


@pytest.mark.parametrize("register", ["mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"])
def test_a_recorded_tdx_quote_is_refused_for_each_register(register: str) -> None:
    domain = msgspec.structs.replace(TRUST_DOMAIN, **{register: "11" * 48})
    with pytest.raises(refusals.MeasurementRefused):
        appraise_tdx(trimmed_tdx(), domain)


@pytest.mark.parametrize("flag", ["dynamic-platform", "cached-keys", "smt"])
def test_a_recorded_tdx_platform_is_refused_for_each_property(flag: str) -> None:
    with pytest.raises(refusals.TcbRefused, match="state"):
        appraise_tdx(trimmed_tdx(), TRUST_DOMAIN, refused_platforms=(flag,))


def test_the_lengths_of_every_recorded_quote_add_up() -> None:
    check_length(load("sgx_quote_v3.bin"))
    check_length(trimmed_tdx())
    check_length(load("tdx_quote_v5_outdated.bin"))


OUTDATED_DOMAIN = TrustDomain(
    mrtd=(
        "273828c46252fcbdd8ad2dd907130222b03466d52a2911d70c1a5950895d6bd1"
        "ae451d382d5a9b1b4c0ed0e5ae9a3dbd"
    ),
    rtmr1="00" * 48,
    rtmr2="00" * 48,
)
#: The lowest level that the collateral lists is of 2018-01-04, 2,978 days before.
GRACE: dict[str, Any] = {
    "tcb_grace": (Grace(status="Unlisted", days=2_978),),
    "unsafe_any_advisory": True,
}


def appraise_outdated(when: str, *, alter: int | None = None, **changes: Any) -> Verdict:
    entry = Accepted(kind="tdx", roots=("intel",), trust_domains=(OUTDATED_DOMAIN,), **changes)
    quote = bytearray(load("tdx_quote_v5_outdated.bin"))
    if alter is not None:
        quote[alter // 8] ^= 1 << alter % 8
    presented = Evidence(kind="tdx", public_key=bytes(PUBLIC_KEY_BYTES), quote=bytes(quote))
    collateral = load("tdx_quote_v5_outdated.collateral.json")
    now_s = moment(f"{when}T00:00:00+00:00")
    accept = Policy(version=1, accept=(entry,))
    return appraise(presented, challenge(), accept, collateral, now_s, False)


def test_an_outdated_recorded_tdx_quote_passes_by_explicit_grace_alone() -> None:
    with pytest.raises(refusals.ReportDataMismatch):
        appraise_outdated("2026-03-01", **GRACE)


OUTDATED_REFUSED: dict[str, tuple[str, dict[str, Any], type[RefusedError]]] = {
    "by default": ("2026-03-01", {}, refusals.TcbRefused),
    "even if outdated ones are accepted": (
        "2026-03-01",
        {"tcb_statuses": ("UpToDate", "OutOfDate")},
        refusals.TcbRefused,
    ),
    "a day after its grace": ("2026-03-02", GRACE, refusals.TcbRefused),
    "in its grace, for its advisories": (
        "2026-03-01",
        GRACE | {"unsafe_any_advisory": False},
        refusals.AdvisoryRefused,
    ),
    "before its collateral": ("2026-02-01", GRACE, refusals.CollateralExpired),
    "after its collateral": ("2026-04-01", GRACE, refusals.CollateralExpired),
}


@pytest.mark.parametrize(
    "when, changes, error", OUTDATED_REFUSED.values(), ids=OUTDATED_REFUSED.keys()
)
def test_an_outdated_recorded_tdx_quote_is_refused(
    when: str, changes: dict[str, Any], error: type[RefusedError]
) -> None:
    with pytest.raises(RefusedError) as caught:
        appraise_outdated(when, **changes)
    assert type(caught.value) is error


@pytest.mark.parametrize("bit", range(0, 8 * 1318, 211))
def test_bit_flips_of_the_outdated_recorded_quote_are_refused(bit: int) -> None:
    # Header, body, signature, key, the quoting enclave's report; the length field is among them.
    with pytest.raises(RefusedError) as caught:
        appraise_outdated("2026-03-01", alter=bit, **GRACE)
    assert not isinstance(caught.value, refusals.ReportDataMismatch)


def test_known_challenges_do_not_make_wrong_evidence_right() -> None:
    other = challenge(stage=2)
    known = Known(challenges=(other,), public_keys=(EVIDENCE.public_key,))
    with pytest.raises(refusals.EvidenceForAnotherStage):
        appraise(EVIDENCE, other, policy(), devroot().collateral, NOW_S, True, known)
