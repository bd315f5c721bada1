"""Synthetic and recorded SEV-SNP reports: each fault is refused for its own reason."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from vaultline.attest import refusals as r
from vaultline.attest.bundled import verify_and_judge, verify_by_newest
from vaultline.attest.claims import Claims
from vaultline.attest.collateral import items_of_certificates, pack
from vaultline.attest.judging import Judgement
from vaultline.attest.policy import Accepted, Policy, SnpGuest, SnpTcb
from vaultline.attest.roots import AMD_ROOTS
from vaultline.core.errors import InputError, RefusedError
from vaultline.core.serde import canonical_json
from vaultline.testing.attestation import recorded
from vaultline.testing.certificates import ISSUED, NOW_S, Issued, crl, new_key, pem
from vaultline.testing.snp_vectors import LAUNCH_DIGEST, SnpVector, guid_table

HOUR = datetime.timedelta(hours=1)
VECTOR = SnpVector()
GUEST = SnpGuest(launch_digest=LAUNCH_DIGEST.hex(), svn_min=1)
TURIN = SnpVector(
    product="Turin",
    version=3,
    chip=bytes(range(1, 9)),
    tcb=((9, 1), (1, 2), (2, 3), (3, 4), (8, 5)),
)
GOOD = {
    "a Milan report by its chip's key": SnpVector(),
    "a Genoa report of version 3": SnpVector(product="Genoa", version=3),
    "a Siena report, whose keys are Genoa's": SnpVector(
        product="Genoa", cert_product="Siena", version=3
    ),
    "a Turin report with the other layout of versions": TURIN,
    "a report by a provider's key": SnpVector(key="VLEK"),
    "a provider's report without a chip id": SnpVector(key="VLEK", chip=bytes(64)),
    "lists by both issuers": SnpVector(lists=("ark", "ask")),
}


def accepts(vector: SnpVector = VECTOR, **changes: Any) -> Policy:
    entry: dict[str, Any] = {"kind": "snp", "roots": (vector.root_id,), "guests": (GUEST,)}
    return Policy(version=1, accept=(Accepted(**entry | changes),))


def run(
    vector: SnpVector,
    policy: Policy | None = None,
    *,
    report: bytes | None = None,
    collateral: bytes | None = None,
    now_s: int = NOW_S,
) -> tuple[Claims, Judgement]:
    report = vector.report() if report is None else report
    collateral = vector.collateral() if collateral is None else collateral
    policy = policy or accepts(vector.with_(family="a"))
    return verify_and_judge("snp", report, policy, collateral, now_s)


def refusal(
    vector: SnpVector, policy: Policy | None = None, **given: Any
) -> tuple[type[RefusedError], ...]:
    try:
        _, judged = run(vector, policy, **given)
    except r.EvidenceRefused as error:
        assert error.message and error.remedy
        return (type(error),)
    assert all(each.message and each.remedy for each in judged.refusals)
    return tuple(type(each) for each in judged.refusals)


@pytest.mark.parametrize("vector", GOOD.values(), ids=GOOD.keys())
def test_accepted(vector: SnpVector) -> None:
    claims, judged = run(vector)
    assert not judged.refusals
    assert claims.product == vector.product
    assert claims.measurement == LAUNCH_DIGEST.hex()
    assert claims.revocation_checked


FAULTS: dict[str, tuple[dict[str, Any], type[RefusedError]]] = {
    "a foreign root": ({"family": "b"}, r.RootRefused),
    "another chip than the certificate's": ({"cert_chip": bytes(64)}, r.ChipMismatch),
    "a masked chip id": ({"chip": bytes(64), "cert_chip": bytes(range(64))}, r.ChipMismatch),
    "a certificate without a chip id": ({"cert_chip": b""}, r.ChipMismatch),
    "newer firmware than the certificate's": (
        {"cert_tcb": ((1, 3), (2, 0), (3, 8), (8, 114))},
        r.TcbMismatch,
    ),
    "older firmware than the certificate's": (
        {"cert_tcb": ((1, 4), (2, 0), (3, 8), (8, 115))},
        r.TcbMismatch,
    ),
    "a certificate without a version": ({"missing": ("3.8",)}, r.CertificateRefused),
    "a certificate without a product": ({"missing": ("2",)}, r.CertificateRefused),
    "a certificate of an unknown product": ({"cert_product": "Naples"}, r.CertificateRefused),
    "a chip's report with a provider's certificate": (
        {"key": "VCEK", "certified": "VLEK"},
        r.SigningKeyMismatch,
    ),
    "a provider's report with a chip's certificate": (
        {"key": "VLEK", "certified": "VCEK"},
        r.SigningKeyMismatch,
    ),
    "a chip's certificate by the authority for providers": (
        {"chain_by": "VLEK"},
        r.SigningKeyMismatch,
    ),
    "a provider's certificate by the authority for chips": (
        {"key": "VLEK", "chain_by": "VCEK"},
        r.SigningKeyMismatch,
    ),
    "a report that no key signed": (
        {"key": "none", "certified": "VCEK"},
        r.SigningKeyMismatch,
    ),
    "another key's signature": ({"report_key": "other"}, r.QuoteInvalid),
    "a certificate that somebody else issued": ({"ask_key": "other"}, r.CertificateRefused),
    "an authority that may not issue": ({"ask_authority": False}, r.CertificateRefused),
    "an expired certificate": ({"leaf_end": ISSUED + HOUR}, r.CollateralExpired),
    "a certificate of the future": (
        {"leaf_start": ISSUED + 48 * HOUR},
        r.CollateralExpired,
    ),
    "an expired authority": ({"ask_end": ISSUED + HOUR}, r.CollateralExpired),
    "a revoked authority": ({"revoked": ("ask",)}, r.CertificateRevoked),
    "a revoked chip": ({"lists": ("ark", "ask"), "revoked": ("leaf",)}, r.CertificateRevoked),
    "no revocation list": ({"lists": ()}, r.RevocationUnknown),
    "a list by the wrong issuer alone": ({"lists": ("ask",)}, r.RevocationUnknown),
    "an expired revocation list": ({"list_end": ISSUED + HOUR}, r.CollateralExpired),
    "a forged revocation list": ({"list_signer": "other"}, r.CertificateRefused),
    "debug": ({"policy": 1 << 19 | 1 << 17}, r.DebugRefused),
    "a guest policy that cannot be": ({"policy": 0}, r.QuoteInvalid),
    "a less privileged level": ({"vmpl": 1}, r.PrivilegeRefused),
    "other code": ({"measurement": bytes(48)}, r.MeasurementRefused),
    "an older guest": ({"svn": 0}, r.SvnRefused),
    "a report of an unknown version": ({"version": 9}, r.QuoteInvalid),
    "another signature algorithm": ({"algorithm": 2}, r.QuoteInvalid),
    "a byte after the report": ({"tail": b"\0"}, r.QuoteTrailingBytes),
    "a byte in what nobody signs": ({"reserved": b"\1"}, r.QuoteTrailingBytes),
    "firmware that is newer than the current": ({"body": ((0x38, bytes(8)),)}, r.TcbMismatch),
    "committed firmware that is newer": ({"body": ((0x1E0, b"\xff"),)}, r.TcbMismatch),
    "a masked chip key": ({"body": ((0x48, b"\2"),)}, r.SigningKeyMismatch),
    "a guest that its host may move": (
        {"policy": 1 << 17 | 1 << 18},
        r.MigrationRefused,
    ),
    "a processor of another family": (
        {"version": 3, "cpu_family": 0x1A},
        r.CollateralMismatch,
    ),
}


@pytest.mark.parametrize("changes, reason", FAULTS.values(), ids=FAULTS.keys())
def test_refused_for_its_reason(changes: dict[str, Any], reason: type[RefusedError]) -> None:
    assert refusal(SnpVector(**changes)) == (reason,)


POLICIES: dict[str, tuple[dict[str, Any], dict[str, Any], type[RefusedError]]] = {
    "another product": ({}, {"products": ("Turin",)}, r.PlatformRefused),
    "older microcode": ({}, {"tcb_min": SnpTcb(microcode=116)}, r.TcbRefused),
    "an older boot loader": ({}, {"tcb_min": SnpTcb(boot_loader=4)}, r.TcbRefused),
    "hyperthreading": ({}, {"refused_platforms": ("smt",)}, r.PlatformRefused),
    "a guest that may migrate": (
        {"policy": 1 << 17 | 1 << 18},
        {"refused_platforms": ("migration",), "unsafe_allow_migration": True},
        r.PlatformRefused,
    ),
    "a guest that older firmware launched": (
        {"body": ((0x1F0, bytes([3, 0, 0, 0, 0, 0, 8, 114])),)},
        {"tcb_min": SnpTcb(microcode=115)},
        r.TcbRefused,
    ),
    "older firmware to which the host can go back": (
        {"body": ((0x1E0, bytes([3, 0, 0, 0, 0, 0, 7, 115])),)},
        {"tcb_min": SnpTcb(snp=8)},
        r.TcbRefused,
    ),
    "a list that is older than the chip's certificate": (
        {"list_start": ISSUED - 720 * HOUR},
        {"collateral_days_max": 30},
        r.FreshnessRefused,
    ),
    "a provider's key": (
        {"key": "VLEK"},
        {"refused_platforms": ("shared-key",)},
        r.PlatformRefused,
    ),
    "other host data": (
        {},
        {"guests": (SnpGuest(launch_digest=LAUNCH_DIGEST.hex(), host_data="11" * 32),)},
        r.MeasurementRefused,
    ),
    "an unsigned identity": (
        {},
        {"guests": (SnpGuest(launch_digest=LAUNCH_DIGEST.hex(), id_key_digest="11" * 48),)},
        r.MeasurementRefused,
    ),
}


@pytest.mark.parametrize("changes, entry, reason", POLICIES.values(), ids=POLICIES.keys())
def test_refused_by_policy(
    changes: dict[str, Any], entry: dict[str, Any], reason: type[RefusedError]
) -> None:
    assert refusal(SnpVector(**changes), accepts(**entry)) == (reason,)


def test_unsafe_options_let_pass_and_are_named() -> None:
    names = ("unsafe_allow_debug", "unsafe_allow_migration", "unsafe_skip_revocation")
    policy = accepts(**dict.fromkeys(names, True))
    _, judged = run(SnpVector(policy=1 << 19 | 1 << 18 | 1 << 17, lists=()), policy)
    assert not judged.refusals
    assert judged.unsafe == names
    waived = {check.name: check.waived for check in judged.checks if check.waived}
    assert waived == dict(zip(("debug", "migration", "revocation"), names, strict=True))


def test_what_passes_without_an_unsafe_option_is_not_waived_by_it() -> None:
    policy = accepts(unsafe_allow_debug=True, unsafe_skip_revocation=True)
    assert not any(check.waived for check in run(SnpVector(), policy)[1].checks)


def test_a_list_of_a_part_of_the_certificates_is_refused() -> None:
    vector = SnpVector()
    fields = json.loads(vector.collateral())
    fields["crls"] = [crl(vector.authority("ark"), partial=True).hex()]
    assert refusal(vector, collateral=json.dumps(fields).encode()) == (r.CertificateRefused,)


def test_a_certificate_that_says_what_nobody_knows_is_refused() -> None:
    vector = SnpVector()
    leaf, *above = (vector.authority(name) for name in ("leaf", "ask", "ark"))
    odd = leaf.with_(extra=(*leaf.extra, ("1.2.3.4", b"\5\0")), critical=("1.2.3.4",))
    fields = json.loads(vector.collateral()) | {"certificates": pem([odd, *above])}
    assert refusal(vector, collateral=json.dumps(fields).encode()) == (r.CertificateRefused,)


def test_a_root_of_amds_vouches_for_its_own_family_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    vector = SnpVector(cert_product="Genoa")
    monkeypatch.setitem(AMD_ROOTS, "Milan", vector.root_id)
    assert refusal(vector) == (r.CollateralMismatch,)


# Certificates beside the report.

NOTHING = json.dumps({"kind": "snp", "certificates": "", "crls": []}).encode()


def lists_only(vector: SnpVector) -> bytes:
    return json.dumps(json.loads(vector.collateral()) | {"certificates": ""}).encode()


@pytest.mark.parametrize("vector", GOOD.values(), ids=GOOD.keys())
def test_the_hosts_table_of_certificates_serves(vector: SnpVector) -> None:
    report = vector.report() + vector.table()
    page = report + bytes(-len(report) % 4096)
    for form in (report, page):
        assert not refusal(vector, report=form, collateral=lists_only(vector))


def test_authorities_in_the_hosts_table_hide_no_certificate_of_the_chip() -> None:
    vector = SnpVector()
    ask, ark = (vector.authority(name).certificate() for name in ("ask", "ark"))
    guids = ("4ab7b379-bbac-4fe4-a02f-05aef327c782", "c0b406a4-a803-4952-9743-3fb6014cd0ae")
    ders = (each.public_bytes(Encoding.DER) for each in (ask, ark))
    table = guid_table(dict(zip(guids, ders, strict=True)))
    assert not refusal(vector, report=vector.report() + table)


_LEAF, _ASK, _ARK = (SnpVector().authority(name) for name in ("leaf", "ask", "ark"))
_ASVK = _ASK.with_(name="SEV-VLEK-Milan", key=new_key("other authority", "rsa"), serial=9)
_OTHER_ARK = _ARK.with_(name="ARK-Genoa", key=new_key("other root", "rsa"))
_OTHER_ASK = _ASK.with_(name="SEV-Genoa", key=new_key("of other root", "rsa"), issuer=_OTHER_ARK)
#: What else a file of certificates may hold -> all of it.
POOLS: dict[str, tuple[Issued, ...]] = {
    "the authority of loaded keys, first": (_ASVK, _ARK, _ASK, _ARK, _LEAF),
    "another family's chain, first": (_OTHER_ASK, _OTHER_ARK, _LEAF, _ASK, _ARK),
    "an authority of the same name and another key, first": (
        _LEAF,
        _ASK.with_(key=new_key("older authority", "rsa")),
        _ASK,
        _ARK,
    ),
    "a root of the same name and another key, first": (
        _LEAF,
        _ASK,
        _ARK.with_(key=new_key("older root", "rsa")),
        _ARK,
    ),
}


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS.keys())
def test_the_chip_s_chain_is_found_beside(pool: tuple[Issued, ...]) -> None:
    vector = SnpVector()
    fields = json.loads(vector.collateral()) | {"certificates": pem(pool)}
    assert not refusal(vector, collateral=json.dumps(fields).encode())


BROKEN_TABLES: dict[str, bytes] = {
    "text": b"certificates",
    "an entry that points outside": guid_table({"63da758d-e664-4564-adc5-f4b93be8accd": b"x"})[:-1],
    "no end": guid_table({"63da758d-e664-4564-adc5-f4b93be8accd": b""})[:24],
    "no certificate in it": guid_table({"63da758d-e664-4564-adc5-f4b93be8accd": b"x" * 99}),
    "bytes after it": SnpVector().table() + b"x",
    "PEM that ends early": b"-----BEGIN CERTIFICATE-----\nAAAA",
}


@pytest.mark.parametrize("table", BROKEN_TABLES.values(), ids=BROKEN_TABLES.keys())
def test_a_broken_table_is_refused(table: bytes) -> None:
    vector = SnpVector()
    report = vector.report() + table
    assert refusal(vector, report=report) == (r.QuoteTrailingBytes,)


def test_a_report_without_certificates_is_refused() -> None:
    assert refusal(SnpVector(), collateral=NOTHING) == (r.CertificateRefused,)


@pytest.mark.parametrize("text", [b"x", b"{}", b'{"kind": "snp", "certificates": "x"}'])
def test_collateral_that_is_none_is_the_users_mistake(text: bytes) -> None:
    with pytest.raises(InputError):
        run(SnpVector(), collateral=text)


# Bits.


def flips(report: bytes, collateral: bytes, policy: Policy, now_s: int, step: int) -> None:
    for bit in range(0, 8 * 0x4A0, step):
        changed = bytearray(report)
        changed[bit // 8] ^= 1 << bit % 8
        assert refusal(
            SnpVector(), policy, report=bytes(changed), collateral=collateral, now_s=now_s
        ), bit


def test_bit_flips_of_a_report_are_refused() -> None:
    flips(SnpVector().report(), SnpVector().collateral(), accepts(), NOW_S, 61)


@pytest.mark.full
def test_every_bit_flip_of_a_report_is_refused() -> None:
    flips(SnpVector().report(), SnpVector().collateral(), accepts(), NOW_S, 1)


# Recorded reports.


def load(name: str) -> bytes:
    data = recorded(name, Path(__file__))
    if data is None:
        pytest.skip("shared/data/attestation is not here")
    return data


def moment(text: str) -> int:
    return int(datetime.datetime.fromisoformat(f"{text}T00:00:00+00:00").timestamp())


DIGEST = (
    "b07af9620f3b839b47996422ddec6058338951d984e312115131ea82705eaf5b"
    "6bdf8a9ece31a5a608eb0cf2e4872b01"
)
MILAN: dict[str, Any] = {
    "kind": "snp",
    "roots": ("amd-milan",),
    "guests": (SnpGuest(launch_digest=DIGEST),),
}
UNSAFE = {"unsafe_allow_debug": True, "unsafe_skip_revocation": True}


def milan(*, product: str = "milan") -> bytes:
    files = [load(f"snp_{product}_vcek.der"), load(f"snp_{product}_ask_ark.pem")]
    return packed(files)


def packed(files: list[bytes]) -> bytes:
    (item,) = items_of_certificates("snp", files)
    return canonical_json(item.collateral)


def judged_milan(when: str, **changes: Any) -> tuple[type[RefusedError], ...]:
    policy = Policy(version=1, accept=(Accepted(**MILAN | changes),))
    report = load("snp_milan_report.bin")
    return refusal(SnpVector(), policy, report=report, collateral=milan(), now_s=moment(when))


def test_certificates_are_packed_in_any_order() -> None:
    files = [load("snp_milan_ask_ark.pem"), load("snp_milan_vcek.der")]
    assert packed(files) == milan()


def test_a_bundle_of_certificates_serves_several_chips() -> None:
    vectors = [SnpVector(chip=bytes([number]) * 64) for number in (1, 2, 3)]
    chains = [json.loads(vector.collateral()) for vector in vectors]
    files = [chain["certificates"].encode() for chain in chains]
    files += [bytes.fromhex(crl) for crl in chains[0]["crls"]]
    bundle = pack(items_of_certificates("snp", files))
    policy = accepts(vectors[0])
    for vector in vectors:
        _, judged = verify_by_newest("snp", vector.report(), policy, bundle, NOW_S)
        assert not judged.refusals
    other = SnpVector(chip=b"\4" * 64)
    with pytest.raises(r.ChipMismatch):
        verify_by_newest("snp", other.report(), policy, bundle, NOW_S)


def test_the_recorded_report_is_genuine_and_of_a_debuggable_guest() -> None:
    # Nor is there a recorded revocation list.
    assert judged_milan("2025-07-01") == (r.DebugRefused, r.RevocationUnknown)


def test_the_recorded_report_is_accepted_by_unsafe_options_alone() -> None:
    assert judged_milan("2025-07-01", **UNSAFE) == ()


RECORDED: dict[str, tuple[str, dict[str, Any], type[RefusedError]]] = {
    "before its certificate": ("2022-09-01", UNSAFE, r.CollateralExpired),
    "after its certificate": ("2029-10-01", UNSAFE, r.CollateralExpired),
    "another family's root": ("2025-07-01", UNSAFE | {"roots": ("amd-genoa",)}, r.RootRefused),
    "other code": (
        "2025-07-01",
        UNSAFE | {"guests": (SnpGuest(launch_digest="00" * 48),)},
        r.MeasurementRefused,
    ),
    "newer firmware wanted": (
        "2025-07-01",
        UNSAFE | {"tcb_min": SnpTcb(snp=6)},
        r.TcbRefused,
    ),
}


@pytest.mark.parametrize("when, changes, reason", RECORDED.values(), ids=RECORDED.keys())
def test_the_recorded_report_is_refused_for(
    when: str, changes: dict[str, Any], reason: type[RefusedError]
) -> None:
    assert judged_milan(when, **changes) == (reason,)


def test_a_recorded_turin_chain_holds_and_is_not_the_milan_reports() -> None:
    entry = MILAN | UNSAFE | {"roots": ("amd-turin",)}
    policy = Policy(version=1, accept=(Accepted(**entry),))
    found = refusal(
        SnpVector(),
        policy,
        report=load("snp_milan_report.bin"),
        collateral=milan(product="turin"),
        now_s=moment("2025-07-01"),
    )
    assert found == (r.TcbMismatch,)


def test_bit_flips_of_the_recorded_report_are_refused() -> None:
    policy = Policy(version=1, accept=(Accepted(**MILAN | UNSAFE),))
    flips(load("snp_milan_report.bin"), milan(), policy, moment("2025-07-01"), 61)
