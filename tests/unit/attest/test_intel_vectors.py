"""Synthetic SGX v3, TDX v4 and TDX v5 evidence: each fault is refused for its own reason."""

from __future__ import annotations

import base64
import datetime
import json
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from vaultline.attest import refusals as r
from vaultline.attest.bundled import verify_and_judge
from vaultline.attest.chains import to_pem
from vaultline.attest.claims import Claims
from vaultline.attest.intel_statements import check_statements
from vaultline.attest.intel_unlisted import unlisted_claims
from vaultline.attest.judging import Judgement
from vaultline.attest.policy import Accepted, Grace, Policy, Signer, TrustDomain
from vaultline.core.errors import InputError, RefusedError
from vaultline.testing.certificates import ISSUED, NOW_S, crl, new_key, pem
from vaultline.testing.intel_vectors import (
    MRENCLAVE,
    MRSIGNER,
    MRTD,
    RTMR1,
    RTMR2,
    Vector,
    sign_statement,
)

DAY = datetime.timedelta(days=1)
HOUR = datetime.timedelta(hours=1)
DOMAIN = TrustDomain(mrtd=MRTD.hex(), rtmr1=RTMR1.hex(), rtmr2=RTMR2.hex())
SIGNED = Signer(mrsigner=MRSIGNER.hex(), product_id=3, svn_min=4)
VERSIONS = (3, 4, 5)


def accepts(version: int, **changes: Any) -> Policy:
    """A policy for the vector of this version under its own root, with changes to the entry."""
    entry: dict[str, Any] = {"roots": (Vector(version=version).root_id,)}
    if version == 3:
        entry |= {"kind": "sgx", "measurements": (MRENCLAVE.hex(),)}
    else:
        entry |= {"kind": "tdx", "trust_domains": (DOMAIN,)}
    return Policy(version=1, accept=(Accepted(**entry | changes),))


def run(
    vector: Vector,
    policy: Policy | None = None,
    *,
    quote: bytes | None = None,
    collateral: bytes | None = None,
    now_s: int = NOW_S,
) -> tuple[Claims, Judgement]:
    policy = policy or accepts(vector.version)
    collateral = vector.collateral() if collateral is None else collateral
    kind = policy.accept[0].kind
    return verify_and_judge(
        kind, vector.quote() if quote is None else quote, policy, collateral, now_s
    )


def refusal(
    vector: Vector, policy: Policy | None = None, **given: Any
) -> tuple[type[RefusedError], ...]:
    """The reasons for which it is refused; evidence that does not verify has one."""
    try:
        _, judged = run(vector, policy, **given)
    except r.EvidenceRefused as error:
        assert error.message
        assert error.remedy
        return (type(error),)
    assert all(each.message and each.remedy for each in judged.refusals)
    return tuple(type(each) for each in judged.refusals)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_vector_without_a_fault_is_accepted(version: int) -> None:
    claims, judged = run(Vector(version=version))
    assert not judged.refusals
    assert claims.report_data == bytes(range(64)).hex()
    assert claims.format == f"{'sgx' if version == 3 else 'tdx'}-quote-{version}"


#: Fault -> (changes to the vector, reason), for quotes of every version.
FAULTS: dict[str, tuple[dict[str, Any], type[RefusedError]]] = {
    "a foreign root": ({"family": "b"}, r.RootRefused),
    "a revoked PCK": ({"revoked": ("pck",)}, r.CertificateRevoked),
    "a revoked authority of the PCK": ({"revoked": ("ca",)}, r.CertificateRevoked),
    "a revoked signer of the collateral": ({"revoked": ("signer",)}, r.CertificateRevoked),
    "an expired list by the root": ({"crl_end": ISSUED + HOUR}, r.CollateralExpired),
    "an expired list by the authority": ({"pck_crl_end": ISSUED + HOUR}, r.CollateralExpired),
    "a list that somebody else signed for the root": ({"crl_signer": "root"}, r.CertificateRefused),
    "one for the authority": ({"crl_signer": "ca"}, r.CertificateRefused),
    "expired TCB info": ({"statement_end": ISSUED + HOUR}, r.CollateralExpired),
    "an expired QE identity": ({"identity_end": ISSUED + HOUR}, r.CollateralExpired),
    "an expired PCK": ({"pck_end": ISSUED + HOUR}, r.CollateralExpired),
    "a PCK that is not valid yet": ({"pck_start": ISSUED + 2 * DAY}, r.CollateralExpired),
    "a PCK that somebody else issued": ({"pck_issuer": "nobody"}, r.CertificateRefused),
    "an authority that may not issue": ({"ca_authority": False}, r.CertificateRefused),
    "another vendor's quoting enclave": ({"vendor": bytes(16)}, r.VendorRefused),
    "a type of attestation key that is not ECDSA": ({"key_type": 3}, r.QuoteInvalid),
    "another signer of the quoting enclave": ({"qe_signer": b"x" * 32}, r.QuotingEnclaveRefused),
    "another product of its signer": ({"qe_product": 9}, r.QuotingEnclaveRefused),
    "a quoting enclave with other attributes": (
        {"qe_attributes": 0x17},
        r.QuotingEnclaveRefused,
    ),
    "an identity of a revoked quoting enclave": ({"identity_status": "Revoked"}, r.TcbRefused),
    "an outdated quoting enclave": ({"identity_status": "OutOfDate"}, r.TcbRefused),
    "the identity of another kind of enclave": ({"identity_id": "QVE"}, r.CollateralMismatch),
    "collateral of another platform": ({"tcb_fmspc": "B0C06F000000"}, r.CollateralMismatch),
    "an outdated platform": ({"tcb_status": "OutOfDate"}, r.TcbRefused),
    "a platform to be configured": ({"tcb_status": "ConfigurationNeeded"}, r.TcbRefused),
    "a revoked level": ({"tcb_status": "Revoked"}, r.TcbRefused),
    "a component below every level": ({"svns": (4, *[5] * 15)}, r.TcbRefused),
    "the last component below": ({"svns": (*[5] * 15, 4)}, r.TcbRefused),
    "a PCE below every level": ({"pce_svn": 4}, r.TcbRefused),
    "an advisory": ({"advisories": ("INTEL-SA-00001",)}, r.AdvisoryRefused),
    "a byte after the quote": ({"tail": b"\0"}, r.QuoteTrailingBytes),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("changes, reason", FAULTS.values(), ids=FAULTS.keys())
def test_refused_for_its_reason(
    version: int, changes: dict[str, Any], reason: type[RefusedError]
) -> None:
    assert refusal(Vector(version=version, **changes))[:1] == (reason,)


ONLY_SGX: dict[str, tuple[dict[str, Any], dict[str, Any], type[RefusedError]]] = {
    "code in 32-bit mode": ({"attributes": 0x1}, {}, r.MeasurementRefused),
    "an enclave that was never initialised": ({"attributes": 0x4}, {}, r.MeasurementRefused),
    "debug": ({"attributes": 0x7}, {}, r.DebugRefused),
    "other code": ({"mrenclave": bytes(32)}, {}, r.MeasurementRefused),
    "another signer": (
        {"mrsigner": bytes(32)},
        {"measurements": (), "signers": (SIGNED,)},
        r.MeasurementRefused,
    ),
    "another product": (
        {"product_id": 4},
        {"measurements": (), "signers": (SIGNED,)},
        r.MeasurementRefused,
    ),
    "an older version": ({"svn": 3}, {"measurements": (), "signers": (SIGNED,)}, r.SvnRefused),
    "collateral for trust domains": ({"tcb_id": "TDX"}, {}, r.CollateralMismatch),
    "the type of a trust domain": ({"tee_type": 0x81}, {}, r.QuoteInvalid),
}


@pytest.mark.parametrize("changes, entry, reason", ONLY_SGX.values(), ids=ONLY_SGX.keys())
def test_sgx_refused_for_its_reason(
    changes: dict[str, Any], entry: dict[str, Any], reason: type[RefusedError]
) -> None:
    assert refusal(Vector(**changes), accepts(3, **entry))[:1] == (reason,)


ONLY_TDX: dict[str, tuple[dict[str, Any], type[RefusedError]]] = {
    "debug": ({"td_attributes": 1 << 28 | 1}, r.DebugRefused),
    "another bit under debug": ({"td_attributes": 1 << 28 | 0x80}, r.QuoteInvalid),
    "a domain that its host may move": ({"td_attributes": 3 << 28}, r.MigrationRefused),
    "memory that faults silently": ({"td_attributes": 0}, r.QuoteInvalid),
    "other firmware": ({"mrtd": bytes(48)}, r.MeasurementRefused),
    "another kernel": (
        {"registers": (bytes(48), bytes(48), RTMR2, bytes(48))},
        r.MeasurementRefused,
    ),
    "another command line": (
        {"registers": (bytes(48), RTMR1, bytes(48), bytes(48))},
        r.MeasurementRefused,
    ),
    "a component of the TDX module below": (
        {"tee_tcb_svn": bytes([5, 1, 4, *[5] * 13])},
        r.TcbRefused,
    ),
    "an old TDX module": ({"tee_tcb_svn": bytes([4, 1, *[5] * 14])}, r.TcbRefused),
    "a TDX module of an unknown version": (
        {"tee_tcb_svn": bytes([5, 9, *[5] * 14])},
        r.TcbRefused,
    ),
    "a TDX module of another signer": ({"mrsigner_seam": b"x" * 48}, r.TcbRefused),
    "collateral for enclaves": ({"tcb_id": "SGX"}, r.CollateralMismatch),
    "the type of an enclave": ({"tee_type": 0}, r.QuoteInvalid),
}


@pytest.mark.parametrize("version", VERSIONS[1:])
@pytest.mark.parametrize("changes, reason", ONLY_TDX.values(), ids=ONLY_TDX.keys())
def test_tdx_refused_for_its_reason(
    version: int, changes: dict[str, Any], reason: type[RefusedError]
) -> None:
    found = refusal(Vector(version=version, **changes))[:1]
    assert found and issubclass(found[0], reason), found


@pytest.mark.parametrize("version", VERSIONS[1:])
def test_grace_for_unlisted_platforms_covers_no_migration(version: int) -> None:
    policy = accepts(version, tcb_grace=(Grace(status="Unlisted", days=30_000),))
    vector = Vector(version=version, td_attributes=3 << 28, svns=(4, *[5] * 15))
    assert refusal(vector, policy) == (r.MigrationRefused,)


def swapped(name: str) -> Callable[[Vector], bytes]:
    """Collateral of the vector, with one part of another family's."""

    def swap(vector: Vector) -> bytes:
        mine, other = (json.loads(v.collateral()) for v in (vector, vector.with_(family="b")))
        return json.dumps(mine | {name: other[name]}).encode()

    return swap


SWAPPED = {
    "tcb_info_signature": r.QuoteInvalid,
    "qe_identity_signature": r.QuoteInvalid,
    "root_ca_crl": r.QuoteInvalid,
    "pck_crl": r.QuoteInvalid,
    "qe_identity_issuer_chain": r.QuoteInvalid,
    "tcb_info_issuer_chain": r.RootRefused,
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name, reason", SWAPPED.items(), ids=SWAPPED.keys())
def test_swapped_collateral_is_refused(version: int, name: str, reason: type[RefusedError]) -> None:
    vector = Vector(version=version)
    found = refusal(vector, collateral=swapped(name)(vector))
    assert len(found) == 1 and issubclass(found[0], (reason, r.RootRefused)), found


POLICIES: dict[str, tuple[dict[str, Any], dict[str, Any], type[RefusedError]]] = {
    "a refused advisory that is let pass otherwise": (
        {"advisories": ("INTEL-SA-00001",)},
        {"unsafe_any_advisory": True, "refused_advisories": ("INTEL-SA-00001",)},
        r.AdvisoryRefused,
    ),
    "a refused advisory in other letters": (
        {"advisories": ("INTEL-SA-00001",)},
        {"unsafe_any_advisory": True, "refused_advisories": ("intel-sa-00001",)},
        r.AdvisoryRefused,
    ),
    "dynamic platforms": (
        {"flags": (True, False, False)},
        {"refused_platforms": ("dynamic-platform",)},
        r.PlatformRefused,
    ),
    "cached keys": (
        {"flags": (False, True, False)},
        {"refused_platforms": ("cached-keys",)},
        r.PlatformRefused,
    ),
    "hyperthreading": (
        {"flags": (False, False, True)},
        {"refused_platforms": ("smt",)},
        r.PlatformRefused,
    ),
    "silence about hyperthreading": (
        {"flags": None},
        {"refused_platforms": ("smt",)},
        r.PlatformRefused,
    ),
    "old rules": ({}, {"tcb_evaluation_min": 8}, r.FreshnessRefused),
    "grace that is over": (
        {"tcb_status": "OutOfDate", "tcb_date": ISSUED - 30 * DAY},
        {"tcb_grace": (Grace(status="OutOfDate", days=30),)},
        r.TcbRefused,
    ),
    "grace for another status": (
        {"svns": (4, *[5] * 15)},
        {"tcb_grace": (Grace(status="OutOfDate", days=30_000),)},
        r.TcbRefused,
    ),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("changes, entry, reason", POLICIES.values(), ids=POLICIES.keys())
def test_refused_by_policy(
    version: int, changes: dict[str, Any], entry: dict[str, Any], reason: type[RefusedError]
) -> None:
    assert refusal(Vector(version=version, **changes), accepts(version, **entry)) == (reason,)


ALLOWED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a status that is listed": ({"tcb_status": "OutOfDate"}, {"tcb_statuses": ("OutOfDate",)}),
    "an advisory that is listed": (
        {"advisories": ("INTEL-SA-00001",)},
        {"accepted_advisories": ("INTEL-SA-00001",)},
    ),
    "an outdated platform in its grace": (
        {"tcb_status": "OutOfDate", "tcb_date": ISSUED - 28 * DAY},
        {"tcb_grace": (Grace(status="OutOfDate", days=30),)},
    ),
    "one below every level, in its grace": (
        {"svns": (4, *[5] * 15)},
        {"tcb_grace": (Grace(status="Unlisted", days=30),)},
    ),
    "fresh collateral": ({}, {"collateral_days_max": 1}),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("changes, entry", ALLOWED.values(), ids=ALLOWED.keys())
def test_accepted_by_policy(version: int, changes: dict[str, Any], entry: dict[str, Any]) -> None:
    assert not refusal(Vector(version=version, **changes), accepts(version, **entry))


def test_collateral_that_grew_old_is_refused_where_the_policy_says_so() -> None:
    policy = accepts(3, collateral_days_max=30)
    assert refusal(Vector(), policy, now_s=NOW_S + 60 * 86_400) == (r.FreshnessRefused,)


def test_every_failed_check_is_told_at_once() -> None:
    vector = Vector(tcb_status="OutOfDate", advisories=("INTEL-SA-00001",), mrenclave=bytes(32))
    assert refusal(vector) == (r.TcbRefused, r.AdvisoryRefused, r.MeasurementRefused)


UNLISTED = {"svns": (4, *[5] * 15)}
#: What dcap-qvl may not have looked at where no level matches is looked at here.
UNLISTED_FAULTS = {
    **{
        name: FAULTS[name]
        for name in (
            "a revoked PCK",
            "an expired list by the root",
            "a list that somebody else signed for the root",
            "expired TCB info",
            "an expired QE identity",
            "another signer of the quoting enclave",
            "another product of its signer",
            "a quoting enclave with other attributes",
            "another vendor's quoting enclave",
            "collateral of another platform",
            "an outdated quoting enclave",
        )
    },
    "another kind of key": ({"key_type": 3}, r.QuoteInvalid),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("changes, reason", UNLISTED_FAULTS.values(), ids=UNLISTED_FAULTS.keys())
def test_grace_for_unlisted_platforms_covers_no_other_fault(
    version: int, changes: dict[str, Any], reason: type[RefusedError]
) -> None:
    policy = accepts(version, tcb_grace=(Grace(status="Unlisted", days=30_000),))
    found = refusal(Vector(version=version, **UNLISTED | changes), policy)
    assert len(found) == 1 and issubclass(found[0], (reason, r.QuotingEnclaveRefused)), found


#: Faults that are the policy's to refuse, or that an unlisted platform has anyway.
JUDGED = {
    "a foreign root",
    "an outdated platform",
    "a platform to be configured",
    "a component below every level",
    "the last component below",
    "a PCE below every level",
    "an advisory",
    "a byte after the quote",
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("fault", sorted(FAULTS.keys() - JUDGED))
def test_what_is_unlisted_is_refused_without_dcap_qvl_too(version: int, fault: str) -> None:
    """Nothing rests on what that library looks at before it says that there is no level."""
    good, (changes, _) = Vector(version=version, **UNLISTED), FAULTS[fault]
    root = good.authority("root").certificate()
    vector = good.with_(**changes)
    assert unlisted_claims(good.quote(), good.collateral(), root, NOW_S)
    with pytest.raises(r.EvidenceRefused):
        unlisted_claims(vector.quote(), vector.collateral(), root, NOW_S)
        check_statements(vector.quote(), vector.collateral(), root)


@pytest.mark.parametrize("version", VERSIONS)
def test_grace_for_unlisted_platforms_covers_no_debug(version: int) -> None:
    debug = {"attributes": 0x7, "td_attributes": 1 << 28 | 1}
    policy = accepts(version, tcb_grace=(Grace(status="Unlisted", days=30_000),))
    assert refusal(Vector(version=version, **UNLISTED | debug), policy) == (r.DebugRefused,)


def signed_by(vector: Vector, *names: str) -> bytes:
    """Its collateral, with the statements signed anew by the first of these certificates."""
    fields = json.loads(vector.collateral())
    for name in ("tcb_info", "qe_identity"):
        fields[f"{name}_issuer_chain"] = pem([vector.authority(each) for each in names])
        signature = sign_statement(vector.authority(names[0]).key, fields[name].encode())
        fields[f"{name}_signature"] = signature.hex()
    return json.dumps(fields).encode()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("changes", [{}, UNLISTED], ids=["listed", "unlisted"])
def test_no_platform_rates_itself(version: int, changes: dict[str, Any]) -> None:
    """With the key of its own certificate, which is under the same root as the vendor's signer."""
    vector = Vector(version=version, **changes)
    policy = accepts(version, tcb_grace=(Grace(status="Unlisted", days=30_000),))
    assert not refusal(vector, policy, collateral=signed_by(vector, "signer", "root"))
    for names in (("pck", "ca", "root"), ("ca", "root")):
        found = refusal(vector, policy, collateral=signed_by(vector, *names))
        assert found == (r.CertificateRefused,), names


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("label", ["NOTE", "TRUSTED CERTIFICATE", "CERTIFICATE "])
def test_no_platform_rates_itself_under_another_label(version: int, label: str) -> None:
    """dcap-qvl takes any PEM block for a certificate, and the first one for the signer."""
    vector = Vector(version=version)
    fields = json.loads(signed_by(vector, "pck", "ca"))
    before = fields["tcb_info_issuer_chain"].replace("CERTIFICATE", label)
    whole = pem([vector.authority(name) for name in ("signer", "root")])
    for name in ("tcb_info", "qe_identity"):
        fields[f"{name}_issuer_chain"] = before + whole
    assert refusal(vector, collateral=json.dumps(fields).encode()) == (r.QuoteInvalid,)


def recertified(vector: Vector, text: bytes) -> bytes:
    """Its quote, with another text in place of its certificates, and every length right."""
    names = ("pck", "ca", "root")
    chain = pem([vector.authority(name) for name in names]).encode()
    quote, grown = bytearray(vector.quote()), len(text) - len(chain)
    at = quote.index(chain)
    end = {3: 432, 4: 632, 5: 48 + 6 + 648}[vector.version]
    for place in (at - 4, end) + ((end + 4 + 128 + 2,) if vector.version > 3 else ()):
        (length,) = struct.unpack_from("<I", quote, place)
        struct.pack_into("<I", quote, place, length + grown)
    return bytes(quote[:at] + text + quote[at + len(chain) :])


CHAINS: dict[str, tuple[Callable[[str], str], type[RefusedError] | None]] = {
    "as it was": (lambda text: text, None),
    "other line ends": (lambda text: text.replace("\n", "\r\n"), None),
    "zeros at the end": (lambda text: text + "\0\0", None),
    "text before": (lambda text: "hello\n" + text, r.QuoteTrailingBytes),
    "text between": (
        lambda text: text.replace("E-----\n-----B", "E-----\nhello\n-----B"),
        r.QuoteTrailingBytes,
    ),
    "a block of another label": (
        lambda text: text[: len(text) // 3].replace("CERTIFICATE", "NOTE") + text,
        r.QuoteInvalid,
    ),
    "nothing but other labels": (
        lambda text: text.replace("CERTIFICATE", "X509 CRL"),
        r.QuoteInvalid,
    ),
    "too many": (lambda text: text * 8, r.QuoteInvalid),
    "none": (lambda text: "", r.QuoteInvalid),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("changes", [{}, UNLISTED], ids=["listed", "unlisted"])
@pytest.mark.parametrize("edit, reason", CHAINS.values(), ids=CHAINS.keys())
def test_a_quote_carries_certificates_alone(
    version: int,
    changes: dict[str, Any],
    edit: Callable[[str], str],
    reason: type[RefusedError] | None,
) -> None:
    vector = Vector(version=version, **changes)
    text = edit(pem([vector.authority(name) for name in ("pck", "ca", "root")]))
    policy = accepts(version, tcb_grace=(Grace(status="Unlisted", days=30_000),))
    found = refusal(vector, policy, quote=recertified(vector, text.encode()))
    assert bool(found) == bool(reason)
    assert not reason or issubclass(found[0], reason)


def restated(vector: Vector, **changes: Any) -> bytes:
    """Its collateral, with changes to the quoting enclave's identity."""
    fields = json.loads(vector.collateral())
    identity = json.loads(fields["qe_identity"])
    fields["qe_identity"] = json.dumps(identity | changes)
    signature = sign_statement(vector.authority("signer").key, fields["qe_identity"].encode())
    return json.dumps(fields | {"qe_identity_signature": signature.hex()}).encode()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("days, reasons", [(30, ()), (31, (r.TcbRefused,))])
def test_grace_counts_from_the_quoting_enclave_s_level_too(
    version: int, days: int, reasons: tuple[type[RefusedError], ...]
) -> None:
    moment = datetime.datetime.fromtimestamp(NOW_S, datetime.UTC) - days * DAY
    level = {
        "tcb": {"isvsvn": 8},
        "tcbDate": moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "tcbStatus": "OutOfDate",
    }
    vector = Vector(version=version)
    policy = accepts(version, tcb_grace=(Grace(status="OutOfDate", days=30),))
    assert refusal(vector, policy, collateral=restated(vector, tcbLevels=[level])) == reasons


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("status", ["ConfigurationNeeded", "OutOfDateConfigurationNeeded"])
def test_a_quoting_enclave_is_up_to_date_or_it_is_not(version: int, status: str) -> None:
    """dcap-qvl lets other states of it pass for up to date."""
    level = {"tcb": {"isvsvn": 8}, "tcbDate": "2026-06-01T00:00:00Z", "tcbStatus": status}
    vector = Vector(version=version)
    found = refusal(vector, collateral=restated(vector, tcbLevels=[level]))
    assert found == (r.QuotingEnclaveRefused,)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("changes", [{}, UNLISTED], ids=["listed", "unlisted"])
def test_what_is_said_of_each_part_of_the_platform_counts(
    version: int, changes: dict[str, Any]
) -> None:
    """Advisories of all, the oldest rules, the oldest level of platform and module."""
    old = "2025-01-01T00:00:00Z"
    quoting = {
        "tcb": {"isvsvn": 8},
        "tcbDate": "2026-06-01T00:00:00Z",
        "tcbStatus": "UpToDate",
        "advisoryIDs": ["INTEL-SA-00002"],
    }
    vector = Vector(version=version, advisories=("INTEL-SA-00001",), **changes)
    expected = {"INTEL-SA-00001", "INTEL-SA-00002"}
    if version > 3:
        (module,) = json.loads(json.loads(vector.collateral())["tcb_info"])["tdxModuleIdentities"]
        module["tcbLevels"][0] |= {"tcbDate": old, "advisoryIDs": ["INTEL-SA-00003"]}
        vector = vector.with_(statements=(("tdxModuleIdentities", [module]),))
        expected.add("INTEL-SA-00003")
    collateral = restated(vector, tcbLevels=[quoting], tcbEvaluationDataNumber=6)
    claims, _ = run(vector, collateral=collateral)
    assert set(claims.advisories) == expected
    assert claims.tcb_evaluation == 6
    oldest = ISSUED if version == 3 else datetime.datetime.fromisoformat(old)
    assert claims.tcb_date_s == oldest.timestamp()


@pytest.mark.parametrize("version", VERSIONS)
def test_collateral_brings_no_certificates_in_place_of_the_quote_s(version: int) -> None:
    """dcap-qvl would prefer them, and everything else here reads the quote's."""
    vector = Vector(version=version)
    pck = vector.authority("pck")
    assert pck.issuer is not None
    forged = pck.with_(issuer=pck.issuer.with_(key=new_key("somebody else")))
    certificates = pem([forged, *map(vector.authority, ("ca", "root"))])
    genuine = pem([vector.authority(name) for name in ("pck", "ca", "root")])
    fields = json.loads(vector.collateral()) | {"pck_certificate_chain": genuine}
    collateral = json.dumps(fields).encode()
    assert not refusal(vector, collateral=collateral)
    quote = recertified(vector, certificates.encode())
    assert refusal(vector, quote=quote, collateral=collateral) == (r.CertificateRefused,)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_oldest_statement_s_age_counts(version: int) -> None:
    vector, policy = Vector(version=version), accepts(version, collateral_days_max=30)
    issued = (ISSUED - 30 * DAY).strftime("%Y-%m-%dT%H:%M:%SZ")
    old = vector.with_(statements=(("issueDate", issued),)).collateral()
    for collateral in (old, restated(vector, issueDate=issued)):
        assert refusal(vector, policy, collateral=collateral) == (r.FreshnessRefused,)


LISTS_OF_OTHERS = {
    "the list of another authority in place of the platform's": ("pck_crl", "other"),
    "the root's list in place of the platform's": ("pck_crl", "root_ca_crl"),
    "the platform's list in place of the root's": ("root_ca_crl", "pck_crl"),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("changes", [{}, UNLISTED], ids=["listed", "unlisted"])
@pytest.mark.parametrize("into, of", LISTS_OF_OTHERS.values(), ids=LISTS_OF_OTHERS.keys())
def test_a_list_by_another_authority_is_refused(
    version: int, changes: dict[str, Any], into: str, of: str
) -> None:
    vector = Vector(version=version, revoked=("pck", "ca"), **changes)
    fields = json.loads(vector.with_(revoked=()).collateral())
    other = vector.authority("ca").with_(name="Test PCK Processor CA", key=new_key("processor"))
    fields[into] = (fields | {"other": crl(other).hex()})[of]
    policy = accepts(version, tcb_grace=(Grace(status="Unlisted", days=30_000),))
    found = refusal(vector, policy, collateral=json.dumps(fields).encode())
    assert found == (r.CollateralMismatch,)


STATEMENTS: dict[str, tuple[tuple[str, Any], type[RefusedError]]] = {
    "of a version that nobody knows": (("version", 4), r.CollateralMismatch),
    "of another provisioning enclave": (("pceId", "0001"), r.CollateralMismatch),
    "that compare in an unknown way": (("tcbType", 1), r.TcbRefused),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("changes", [{}, UNLISTED], ids=["listed", "unlisted"])
@pytest.mark.parametrize("change, reason", STATEMENTS.values(), ids=STATEMENTS.keys())
def test_levels_are_refused(
    version: int, changes: dict[str, Any], change: tuple[str, Any], reason: type[RefusedError]
) -> None:
    vector = Vector(version=version, statements=(change,), **changes)
    policy = accepts(version, tcb_grace=(Grace(status="Unlisted", days=30_000),))
    assert refusal(vector, policy) == (reason,)


@pytest.mark.parametrize("version", VERSIONS)
def test_below_a_revoked_level_there_is_no_grace(version: int) -> None:
    vector = Vector(version=version, tcb_status="Revoked", **UNLISTED)
    policy = accepts(version, tcb_grace=(Grace(status="Unlisted", days=30_000),))
    with pytest.raises(r.TcbRefused, match="the vendor has revoked"):
        run(vector, policy)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_revoked_level_counts_wherever_it_is_listed(version: int) -> None:
    vector = Vector(version=version, **UNLISTED)
    (level,) = json.loads(json.loads(vector.collateral())["tcb_info"])["tcbLevels"]
    levels = [level | {"tcbStatus": "Revoked"}, level | {"tcbStatus": "OutOfDate"}]
    policy = accepts(version, tcb_grace=(Grace(status="Unlisted", days=30_000),))
    assert not refusal(vector.with_(statements=(("tcbLevels", levels[1:]),)), policy)
    found = refusal(vector.with_(statements=(("tcbLevels", levels),)), policy)
    assert found == (r.TcbRefused,)


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("part", range(2, 16))
def test_each_part_of_a_trust_domain_s_level_counts_alone(version: int, part: int) -> None:
    """One part below is below, however much higher the others are (no lexical order)."""
    svns = bytearray([5, 1, *[200] * 14])
    svns[part] = 4
    low = Vector(version=version, tee_tcb_svn=bytes(svns))
    (found,) = refusal(low)
    assert found is r.TcbRefused
    claims, _ = run(low, accepts(version, tcb_grace=(Grace(status="Unlisted", days=30_000),)))
    assert claims.tcb_status == "Unlisted"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("part", range(17))
def test_each_part_of_a_processor_s_level_counts_alone(version: int, part: int) -> None:
    parts = [255] * 17
    parts[part] = 4
    low = Vector(version=version, svns=tuple(parts[:16]), pce_svn=parts[16])
    claims, _ = run(low, accepts(version, tcb_grace=(Grace(status="Unlisted", days=30_000),)))
    assert claims.tcb_status == "Unlisted"


def signed_regions(quote: bytes, version: int) -> list[range]:
    """Header and body, their signature and key; the quoting enclave's report with its signature
    and its authentication data. What follows are certificates, which are signed by themselves."""
    end = {3: 432, 4: 632, 5: 48 + 6 + 648}[version]
    (section,) = struct.unpack_from("<I", quote, end)
    assert end + 4 + section == len(quote)
    qe = end + 4 + 128 + (6 if version > 3 else 0)
    return [range(end), range(end + 4, end + 132), range(qe, qe + 448 + 2 + 32)]


def flips(version: int, step: int) -> None:
    vector = Vector(version=version)
    quote, collateral, policy = vector.quote(), vector.collateral(), accepts(version)
    positions = [
        bit
        for region in signed_regions(quote, version)
        for bit in range(8 * region.start, 8 * region.stop)
    ]
    for bit in positions[::step]:
        changed = bytearray(quote)
        changed[bit // 8] ^= 1 << bit % 8
        assert refusal(vector, policy, quote=bytes(changed), collateral=collateral), bit


def flipped(encoded: bytes, step: int) -> Iterator[bytes]:
    for bit in range(0, 8 * len(encoded), step):
        changed = bytearray(encoded)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


def rejected(vector: Vector, quote: bytes, fields: dict[str, str]) -> bool:
    """It is refused, or so broken that it is no collateral at all."""
    try:
        return bool(refusal(vector, quote=quote, collateral=json.dumps(fields).encode()))
    except InputError:
        return True


def flips_of_certificates(step: int) -> None:
    """Of the quote's, and of those behind the vendor's statements: the roots as well, whose
    signatures nothing else rests on."""
    vector = Vector()
    quote, fields = vector.quote(), json.loads(vector.collateral())
    for name in ("quote", "tcb_info_issuer_chain", "qe_identity_issuer_chain"):
        start = quote.index(b"-----BEGIN")
        text = quote[start:].rstrip(b"\0") if name == "quote" else fields[name].encode()
        for certificate in x509.load_pem_x509_certificates(text):
            before = certificate.public_bytes(Encoding.PEM)
            assert before in text
            for encoded in flipped(certificate.public_bytes(Encoding.DER), step):
                lines = base64.encodebytes(encoded).replace(b"\n", b"")
                wrapped = b"\n".join(lines[at : at + 64] for at in range(0, len(lines), 64))
                after = b"\n".join((before.split(b"\n")[0], wrapped, before.split(b"\n")[-2], b""))
                assert len(after) == len(before)
                if name == "quote":
                    assert rejected(vector, quote.replace(before, after), fields)
                else:
                    changed = {name: text.replace(before, after).decode()}
                    assert rejected(vector, quote, fields | changed), certificate.subject


def flips_of_lists(step: int) -> None:
    vector = Vector()
    quote, fields = vector.quote(), json.loads(vector.collateral())
    for name in ("pck_crl", "root_ca_crl"):
        for encoded in flipped(bytes.fromhex(fields[name]), step):
            assert rejected(vector, quote, fields | {name: encoded.hex()}), name


@pytest.mark.parametrize("name", ["tcb_info_issuer_chain", "qe_identity_issuer_chain"])
def test_a_root_of_another_name_is_refused_before_a_library_sees_it(name: str) -> None:
    """The vendor's key and nothing else of its certificate: dcap-qvl would end the process."""
    vector = Vector()
    fields = json.loads(vector.collateral())
    *below, root = x509.load_pem_x509_certificates(fields[name].encode())
    encoded = root.public_bytes(Encoding.DER)
    where = encoded.rindex(b"Test Root CA")
    renamed = encoded[:where] + b"Some" + encoded[where + 4 :]
    fields[name] = to_pem([*below, x509.load_der_x509_certificate(renamed)])
    collateral = json.dumps(fields).encode()
    assert refusal(vector, collateral=collateral) == (r.CertificateRefused,)


def test_bit_flips_of_certificates_and_lists_are_refused() -> None:
    flips_of_certificates(67)
    flips_of_lists(61)


@pytest.mark.parametrize("version", VERSIONS)
def test_bit_flips_of_signed_regions_are_refused(version: int) -> None:
    flips(version, 61)


@pytest.mark.full
def test_every_bit_flip_of_certificates_and_lists_is_refused() -> None:
    flips_of_certificates(1)
    flips_of_lists(1)


@pytest.mark.full
@pytest.mark.parametrize("version", VERSIONS)
def test_every_bit_flip_of_every_signed_region_is_refused(version: int) -> None:
    flips(version, 1)
