"""Synthetic and recorded Hopper reports: each fault is refused for its own reason."""

from __future__ import annotations

import datetime
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from vaultline.attest import chains
from vaultline.attest import refusals as r
from vaultline.attest.bundled import verify_and_judge
from vaultline.attest.claims import Claims
from vaultline.attest.collateral import items_of_certificates
from vaultline.attest.judging import Judgement
from vaultline.attest.policy import Accepted, Gpu, Policy
from vaultline.attest.roots import SELF_SIGNED, root_key_id
from vaultline.core.errors import RefusedError
from vaultline.core.serde import canonical_json
from vaultline.testing.attestation import recorded
from vaultline.testing.certificates import ISSUED, NOW_S, pem
from vaultline.testing.nvidia_vectors import NvidiaVector

HOUR = datetime.timedelta(hours=1)
DIGESTS = {f"m{n:02}": hashlib.sha384(bytes([n])).hexdigest() for n in (1, 2, 3)}
GPU = Gpu(driver="550.90.07", vbios="96.00.9F.00.01", measurements=DIGESTS)


def accepts(**changes: Any) -> Policy:
    entry: dict[str, Any] = {"kind": "nvidia", "roots": (NvidiaVector().root_id,), "gpus": (GPU,)}
    return Policy(version=1, accept=(Accepted(**entry | changes),))


def run(
    vector: NvidiaVector,
    policy: Policy | None = None,
    *,
    report: bytes | None = None,
    collateral: bytes | None = None,
    now_s: int = NOW_S,
) -> tuple[Claims, Judgement]:
    report = vector.report() if report is None else report
    collateral = vector.collateral() if collateral is None else collateral
    return verify_and_judge("nvidia", report, policy or accepts(), collateral, now_s)


def refusal(
    vector: NvidiaVector, policy: Policy | None = None, **given: Any
) -> tuple[type[RefusedError], ...]:
    try:
        _, judged = run(vector, policy, **given)
    except r.EvidenceRefused as error:
        assert error.message and error.remedy
        return (type(error),)
    return tuple(type(each) for each in judged.refusals)


def test_the_vector_without_a_fault_is_accepted() -> None:
    claims, judged = run(NvidiaVector())
    assert not judged.refusals
    assert claims.report_data == bytes(range(32)).hex()
    assert claims.revocation_checked


def test_certificates_may_come_with_the_report() -> None:
    vector = NvidiaVector()
    collateral = json.loads(vector.collateral())
    report = vector.report() + collateral["certificates"].encode()
    rest = json.dumps(collateral | {"certificates": ""}).encode()
    assert not refusal(vector, report=report, collateral=rest)


def test_certificates_may_come_in_any_order() -> None:
    vector = NvidiaVector()
    collateral = json.loads(vector.collateral())
    chain = pem([vector.authority(name) for name in ("root", "model", "device")])
    turned = json.dumps(collateral | {"certificates": chain}).encode()
    assert not refusal(vector, collateral=turned)


FAULTS: dict[str, tuple[dict[str, Any], type[RefusedError]]] = {
    "a foreign root": ({"family": "b"}, r.RootRefused),
    "another key's signature": ({"report_key": "other"}, r.QuoteInvalid),
    "a certificate that somebody else issued": ({"device_issuer": "other"}, r.CertificateRefused),
    "an authority that may not issue": ({"model_authority": False}, r.CertificateRefused),
    "an expired certificate": ({"device_end": ISSUED + HOUR}, r.CollateralExpired),
    "a certificate of the future": ({"device_start": ISSUED + 48 * HOUR}, r.CollateralExpired),
    "a revoked authority": ({"revoked": ("model",)}, r.CertificateRevoked),
    "a revoked device": ({"revoked": ("device",)}, r.CertificateRevoked),
    "no list by the root": ({"lists": ("model",)}, r.RevocationUnknown),
    "no list by the authority": ({"lists": ("root",)}, r.RevocationUnknown),
    "an expired list": ({"list_end": ISSUED + HOUR}, r.CollateralExpired),
    "a forged list": ({"list_signer": "root"}, r.CertificateRefused),
    "other firmware than certified": ({"firmware": bytes(48)}, r.ChipMismatch),
    "firmware of no length": ({"firmware": b""}, r.ChipMismatch),
    "another driver": ({"driver": "550.90.08"}, r.MeasurementRefused),
    "another VBIOS": ({"vbios": bytes(8)}, r.MeasurementRefused),
    "another measurement": (
        {"measurements": tuple((n, bytes(48)) for n in (1, 2, 3))},
        r.MeasurementRefused,
    ),
    "a measurement that is missing": ({"measurements": ((1, bytes(48)),)}, r.MeasurementRefused),
    "a measurement twice": ({"measurements": ((1, bytes(48)),) * 2}, r.QuoteInvalid),
    "an opaque field twice": ({"opaque": ((3, b"550.90.07"),)}, r.QuoteInvalid),
    "a measurement that is no digest": ({"measurements": ((1, bytes(32)),)}, r.QuoteInvalid),
    "more measurements than it says": ({"blocks": 2}, r.QuoteInvalid),
    "an answer to another question": ({"request": bytes.fromhex("11e00101")}, r.QuoteInvalid),
    "an error for an answer": ({"response": bytes.fromhex("117f0000")}, r.QuoteInvalid),
    "a byte after the report": ({"tail": b"\0"}, r.QuoteTrailingBytes),
    "text after the report": (
        {"tail": b"-----BEGIN CERTIFICATE-----\nx"},
        r.QuoteTrailingBytes,
    ),
}


@pytest.mark.parametrize("changes, reason", FAULTS.values(), ids=FAULTS.keys())
def test_refused_for_its_reason(changes: dict[str, Any], reason: type[RefusedError]) -> None:
    assert refusal(NvidiaVector(**changes)) == (reason,)


def test_a_report_that_was_cut_short_is_refused() -> None:
    report = NvidiaVector().report()
    for size in (0, 4, 36, 41, 44, 100, len(report) - 1):
        assert refusal(NvidiaVector(), report=report[:size])


def flips(report: bytes, collateral: bytes, policy: Policy, now_s: int, step: int) -> None:
    for bit in range(0, 8 * len(report), step):
        changed = bytearray(report)
        changed[bit // 8] ^= 1 << bit % 8
        assert refusal(
            NvidiaVector(), policy, report=bytes(changed), collateral=collateral, now_s=now_s
        ), bit


def test_bit_flips_of_a_report_are_refused() -> None:
    flips(NvidiaVector().report(), NvidiaVector().collateral(), accepts(), NOW_S, 61)


@pytest.mark.full
def test_every_bit_flip_of_a_report_is_refused() -> None:
    flips(NvidiaVector().report(), NvidiaVector().collateral(), accepts(), NOW_S, 1)


# A recorded report.


def load(name: str) -> bytes:
    data = recorded(name, Path(__file__))
    if data is None:
        pytest.skip("shared/data/attestation is not here")
    return data


def hopper() -> tuple[bytes, bytes]:
    report = bytes.fromhex(load("nvidia_hopper_report.txt").decode().strip())
    (item,) = items_of_certificates("nvidia", [load("nvidia_hopper_chain.txt")])
    return report, canonical_json(item.collateral)


REFERENCE = Gpu(
    driver="550.90.07",
    vbios="96.00.9F.00.01",
    measurements={
        "m02": "8048dfd18fe229bf16eb9d30cca0f11a24dafe6eb731de14"
        "62984645a0b189b77c4e4e17de727a5e19e3d07de51da338"
    },
)


def judged(when: str, **changes: Any) -> tuple[type[RefusedError], ...]:
    report, collateral = hopper()
    entry: dict[str, Any] = {"kind": "nvidia", "roots": ("nvidia",), "gpus": (REFERENCE,)}
    policy = Policy(version=1, accept=(Accepted(**entry | changes),))
    now_s = int(datetime.datetime.fromisoformat(f"{when}T00:00:00+00:00").timestamp())
    return refusal(NvidiaVector(), policy, report=report, collateral=collateral, now_s=now_s)


def test_the_recorded_report_is_genuine_and_comes_without_lists() -> None:
    assert judged("2025-07-01") == (r.RevocationUnknown,)
    assert judged("2025-07-01", unsafe_skip_revocation=True) == ()


def test_the_recorded_report_is_refused_before_its_certificates() -> None:
    assert judged("2022-01-01", unsafe_skip_revocation=True) == (r.CollateralExpired,)


def test_the_recorded_report_is_refused_under_another_root() -> None:
    assert judged("2025-07-01", roots=("intel",)) == (r.RootRefused,)


def test_bit_flips_of_the_recorded_report_are_refused() -> None:
    report, collateral = hopper()
    entry = Accepted(
        kind="nvidia", roots=("nvidia",), gpus=(REFERENCE,), unsafe_skip_revocation=True
    )
    flips(report, collateral, Policy(version=1, accept=(entry,)), 1_750_000_000, 401)


@pytest.mark.full
def test_every_bit_flip_of_the_recorded_report_is_refused() -> None:
    report, collateral = hopper()
    entry = Accepted(
        kind="nvidia", roots=("nvidia",), gpus=(REFERENCE,), unsafe_skip_revocation=True
    )
    flips(report, collateral, Policy(version=1, accept=(entry,)), 1_750_000_000, 1)


class TestRemembering:
    """What was verified once need not be again; what depends on time and place is."""

    def test_the_pinned_root_s_own_signature_holds_and_no_other_bytes_are_excused(self) -> None:
        text = recorded("nvidia_hopper_chain.txt", Path(__file__))
        if text is None:
            pytest.skip("no recorded evidence here")
        *_, root = x509.load_pem_x509_certificates(text)
        assert root.fingerprint(SHA256()).hex() in SELF_SIGNED
        root.verify_directly_issued_by(root)
        der = bytearray(root.public_bytes(Encoding.DER))
        der[-1] ^= 1  # of the signature: the same key, the same id
        forged = x509.load_der_x509_certificate(bytes(der))
        assert root_key_id(forged) == root_key_id(root)
        with pytest.raises(r.CertificateRefused, match="not signed"):
            chains.verify_chain([root, forged], [], frozenset({root_key_id(root)}), NOW_S)

    def test_a_known_chain_is_refused_outside_its_dates_and_once_revoked(self) -> None:
        good = NvidiaVector()
        assert not refusal(good)
        assert refusal(good, now_s=NOW_S + 400 * 86_400) == (r.CollateralExpired,)
        assert refusal(good, now_s=NOW_S - 2 * 86_400) == (r.CollateralExpired,)
        assert refusal(good.with_(revoked=("device",))) == (r.CertificateRevoked,)
        assert refusal(good, accepts(roots=("00" * 48,))) == (r.RootRefused,)

    def test_a_failure_is_never_remembered_as_a_success(self) -> None:
        chains.forget_chains()
        assert not refusal(NvidiaVector())
        for _ in range(3):
            assert refusal(NvidiaVector(device_issuer="other")) == (r.CertificateRefused,)

    def test_an_authority_that_is_known_may_still_not_issue_what_it_must_not(self) -> None:
        vector = NvidiaVector()
        device, model, root = (
            vector.authority(name).certificate() for name in ("device", "model", "root")
        )
        roots = frozenset({vector.root_id})
        chains.verify_chain([device, model, root], [], roots, NOW_S)
        with pytest.raises(r.CertificateRefused, match="may not issue"):
            chains.verify_chain([model, device, model, root], [], roots, NOW_S)

    def test_of_another_device_s_chain_only_the_authorities_are_known(self) -> None:
        chains.forget_chains()
        assert not refusal(NvidiaVector())
        assert len(chains._held) == 3
        chains.forget_chains(devices_only=True)
        device = NvidiaVector().authority("device").certificate()
        assert len(chains._held) == 2
        assert device not in {certificate for certificate, _ in chains._held}

    def test_no_more_is_remembered_than_there_is_room_for(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(chains, "_HELD_MAX", 2)
        chains.forget_chains()
        for family in ("a", "b"):
            vector = NvidiaVector(family=family)
            assert not refusal(vector, accepts(roots=(vector.root_id,)))
            assert len(chains._held) <= 2
