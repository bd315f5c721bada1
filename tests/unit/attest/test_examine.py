"""Evidence in a file: which collateral counts, all policies, and the result as JSON."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest

from vaultline.attest import refusals as r
from vaultline.attest.collateral import candidates, items_of, pack
from vaultline.attest.examine import Outcome, Request, examine, kind_of, policy_id
from vaultline.attest.policy import Accepted, Policy, SnpGuest
from vaultline.attest.results import attestation_result
from vaultline.core.errors import InputError
from vaultline.testing import attestation as simulated
from vaultline.testing.certificates import ISSUED, NOW_S
from vaultline.testing.intel_vectors import MRENCLAVE, Vector
from vaultline.testing.nvidia_vectors import NvidiaVector
from vaultline.testing.snp_vectors import LAUNCH_DIGEST, SnpVector

SGX, SNP = Vector(), SnpVector()
DAY = datetime.timedelta(days=1)


def entry(**changes: Any) -> Accepted:
    fields: dict[str, Any] = {
        "kind": "sgx",
        "roots": (SGX.root_id,),
        "measurements": (MRENCLAVE.hex(),),
    }
    return Accepted(**fields | changes)


def policy(*entries: Accepted, **changes: Any) -> Policy:
    return Policy(version=1, accept=entries or (entry(**changes),))


def snp_entry(**changes: Any) -> Accepted:
    guest = SnpGuest(launch_digest=LAUNCH_DIGEST.hex())
    fields: dict[str, Any] = {"kind": "snp", "roots": (SNP.root_id,), "guests": (guest,)}
    return Accepted(**fields | changes)


def run(*policies: Policy, **changes: Any) -> Outcome:
    fields: dict[str, Any] = {
        "evidence": SGX.quote(),
        "policies": policies or (policy(),),
        "collateral": SGX.collateral(),
        "now_s": NOW_S,
    }
    return examine(Request(**fields | changes))


def codes(outcome: Outcome) -> list[str]:
    return [refusal.code for refusal in outcome.refusals]


def bundle(*texts: bytes) -> bytes:
    return pack([item for text in texts for item in items_of(text)])


KINDS = {
    "sgx": SGX.quote(),
    "tdx": Vector(version=5).quote(),
    "snp": SNP.report(),
    "nvidia": NvidiaVector().report(),
    "simulated": simulated.evidence().quote,
}


@pytest.mark.parametrize("kind, evidence", KINDS.items(), ids=KINDS.keys())
def test_the_kind_is_read_off_the_evidence(kind: str, evidence: bytes) -> None:
    assert kind_of(evidence) == kind


@pytest.mark.parametrize("evidence", [b"", b"x", bytes(2000), b"\3\0\2\0\1\0\0\0" + bytes(2000)])
def test_what_is_no_evidence_has_no_kind(evidence: bytes) -> None:
    with pytest.raises(r.QuoteInvalid):
        kind_of(evidence)


def test_without_a_policy_nothing_is_accepted() -> None:
    with pytest.raises(InputError, match="nothing is accepted"):
        run(policies=())


def test_each_policy_must_accept() -> None:
    assert run(policy(), policy(tcb_evaluation_min=1)).refusals == ()
    strict = run(policy(), policy(measurements=("00" * 32,)))
    assert codes(strict) == ["MeasurementRefused"]
    assert [c.name for c in strict.checks if c.refusal] == ["policy 2: measurement"]
    assert codes(run(policy(), policy(snp_entry()))) == ["KindRefused"]


def test_simulated_evidence_needs_consent() -> None:
    given = {
        "evidence": simulated.evidence().quote,
        "collateral": simulated.devroot().collateral,
        "now_s": simulated.NOW_S,
    }
    assert codes(run(simulated.policy(), **given)) == ["SimulatedNotAllowed"]
    accepted = run(simulated.policy(), allow_simulated=True, **given)
    assert accepted.refusals == ()
    assert accepted.kind == "simulated"


REPORT_DATA: dict[str, tuple[bytes | None, bool, list[str]]] = {
    "not asked for": (None, False, []),
    "demanded by the policy and not given": (None, True, ["ReportDataUnknown"]),
    "what was asked for": (bytes(range(64)), True, []),
    "something else": (b"else", False, ["ReportDataMismatch"]),
    "only the beginning": (bytes(range(32)), False, ["ReportDataMismatch"]),
}


@pytest.mark.parametrize("given, demanded, expected", REPORT_DATA.values(), ids=REPORT_DATA.keys())
def test_report_data(given: bytes | None, demanded: bool, expected: list[str]) -> None:
    outcome = run(policy(require_report_data=demanded), report_data=given)
    assert codes(outcome) == expected
    assert outcome.fresh is (given == bytes(range(64)))


def test_zeros_answer_no_question() -> None:
    """That is what evidence has which nobody asked for: to expect it shows nothing."""
    given = {"evidence": SGX.with_(report_data=bytes(64)).quote(), "report_data": bytes(32)}
    found = run(policy(), **given)
    assert (codes(found), found.fresh) == ([], False)
    assert codes(run(policy(require_report_data=True), **given)) == ["ReportDataUnknown"]


def test_report_data_that_cannot_be_is_the_users_mistake() -> None:
    with pytest.raises(InputError, match="too long"):
        run(report_data=bytes(65))


# Bundles.


def test_a_bundle_serves_every_kind_in_it() -> None:
    text = bundle(SGX.collateral(), SNP.collateral(), Vector(version=4).collateral())
    both = policy(entry(), snp_entry())
    assert run(both, collateral=text).refusals == ()
    assert run(both, collateral=text, evidence=SNP.report()).refusals == ()
    assert {kind: len(candidates(kind, text)) for kind in ("sgx", "tdx", "snp")} == {
        "sgx": 1,
        "tdx": 1,
        "snp": 1,
    }
    with pytest.raises(InputError, match="no collateral for `nvidia`"):
        candidates("nvidia", text)


FOREIGN = Vector(fmspc="A0A0A0000000").collateral()
EXPIRED = SGX.with_(statement_end=ISSUED + datetime.timedelta(hours=1)).collateral()
REVOKED = SGX.with_(revoked=("pck",)).collateral()
OUTDATED = SGX.with_(tcb_status="OutOfDate").collateral()

BUNDLES: dict[str, tuple[tuple[bytes, ...], list[str]]] = {
    "another platform's first": ((FOREIGN, SGX.collateral()), []),
    "another platform's last": ((SGX.collateral(), FOREIGN), []),
    "an expired one first": ((EXPIRED, SGX.collateral()), []),
    "an expired one last": ((SGX.collateral(), EXPIRED), []),
    "only another platform's and an expired one": ((FOREIGN, EXPIRED), ["CollateralExpired"]),
    "one that revokes, last": ((SGX.collateral(), REVOKED), ["CertificateRevoked"]),
    "one that revokes, first": ((REVOKED, SGX.collateral()), ["CertificateRevoked"]),
    "only another platform's": ((FOREIGN, FOREIGN), ["CollateralMismatch"]),
}


@pytest.mark.parametrize("texts, expected", BUNDLES.values(), ids=BUNDLES.keys())
def test_the_right_collateral_of_a_bundle_counts(
    texts: tuple[bytes, ...], expected: list[str]
) -> None:
    assert codes(run(collateral=bundle(*texts))) == expected


STAMP = "%Y-%m-%dT%H:%M:%SZ"


@pytest.mark.parametrize("order", [1, -1], ids=["older first", "newer first"])
def test_of_two_ratings_with_the_same_lists_the_newer_counts(order: int) -> None:
    """Both are valid and their newest parts equally new; the older knows nothing of a weakness."""
    dates = [(ISSUED - days * DAY).strftime(STAMP) for days in (20, 10)]
    older = SGX.with_(statements=(("issueDate", dates[0]),))
    newer = SGX.with_(statements=(("issueDate", dates[1]),), tcb_status="OutOfDate")
    both = bundle(*[vector.collateral() for vector in (older, newer)][::order])
    assert codes(run(collateral=both)) == ["TcbRefused"]


@pytest.mark.parametrize("order", [1, -1], ids=["older first", "newer first"])
def test_of_ratings_that_are_equally_new_the_stricter_counts(order: int) -> None:
    pair = (SGX, SGX.with_(tcb_status="OutOfDate"))
    both = bundle(*[vector.collateral() for vector in pair][::order])
    assert codes(run(collateral=both)) == ["TcbRefused"]


def test_certificates_of_other_chips_in_a_bundle_are_passed_over() -> None:
    other = SNP.with_(chip=bytes(range(2, 66)))
    newer = SNP.with_(tcb=((1, 3), (2, 0), (3, 8), (8, 116)))
    text = bundle(other.collateral(), newer.collateral(), SNP.collateral())
    assert run(policy(snp_entry()), collateral=text, evidence=SNP.report()).refusals == ()


BROKEN = {
    "not JSON": b"x",
    "a list": b"[]",
    "nothing": b"{}",
    "a bundle without items": b'{"bundle": "vaultline collateral", "version": 1, "items": []}',
    "a bundle of another version": b'{"bundle": "vaultline collateral", "version": 2, "items": []}',
    "an item of an unknown kind": (
        b'{"bundle": "vaultline collateral", "version": 1,'
        b' "items": [{"kind": "psp", "collateral": {}}]}'
    ),
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_bundle_is_the_users_mistake(text: bytes) -> None:
    with pytest.raises(InputError):
        items_of(text)
    with pytest.raises(InputError):
        run(collateral=text)


# Results.


def result(**outcomes: Outcome) -> dict[str, Any]:
    made = attestation_result(outcomes, issued_s=NOW_S + 5, valid_s=300, build="1", nonce="n")
    return dict(json.loads(json.dumps(made)))


def test_a_result_has_the_form_of_ear() -> None:
    made = result(cpu=run(report_data=bytes(range(64))))
    assert made["iat"] == NOW_S + 5
    assert made["exp"] == NOW_S + 300
    assert made["eat_nonce"] == "n"
    assert made["ear.verifier-id"] == {"developer": "vaultline", "build": "1"}
    cpu = made["submods"]["cpu"]
    assert cpu["ear.status"] == "affirming"
    assert cpu["ear.trustworthiness-vector"] == {
        "instance-identity": 2,
        "configuration": 2,
        "executables": 2,
        "hardware": 2,
    }
    assert cpu["ear.appraisal-policy-id"] == f"sha256:{policy_id((policy(),))}"
    assert cpu["vaultline.fresh"] is True
    assert cpu["vaultline.reasons"] == []
    assert cpu["vaultline.claims"]["measurements"]["mrenclave"] == MRENCLAVE.hex()


def test_a_result_ends_with_the_collateral() -> None:
    ending = SGX.with_(statement_end=ISSUED + datetime.timedelta(seconds=86_400 + 100))
    made = result(cpu=run(collateral=ending.collateral()))
    assert made["exp"] == NOW_S + 100


VECTORS: dict[str, tuple[Outcome, str, dict[str, int]]] = {
    "other code": (
        run(policy(measurements=("00" * 32,))),
        "contraindicated",
        {"executables": 96, "hardware": 2},
    ),
    "an outdated platform": (
        run(collateral=OUTDATED),
        "contraindicated",
        {"executables": 2, "hardware": 96},
    ),
    "an outdated platform that the policy accepts": (
        run(policy(tcb_statuses=("OutOfDate",)), collateral=OUTDATED),
        "warning",
        {"executables": 2, "hardware": 32},
    ),
    "advisories that an unsafe option lets pass": (
        run(
            policy(unsafe_any_advisory=True),
            collateral=SGX.with_(advisories=("INTEL-SA-00001",)).collateral(),
        ),
        "warning",
        {"hardware": 32},
    ),
    "missing lists that an unsafe option lets pass": (
        run(
            policy(snp_entry(unsafe_skip_revocation=True)),
            evidence=SNP.report(),
            collateral=SNP.with_(lists=()).collateral(),
        ),
        "warning",
        {"instance-identity": 32, "hardware": 2},
    ),
    "a quote that does not verify": (
        run(evidence=SGX.quote()[:-1]),
        "contraindicated",
        {"instance-identity": 99},
    ),
}


@pytest.mark.parametrize("outcome, status, vector", VECTORS.values(), ids=VECTORS.keys())
def test_status_and_vector(outcome: Outcome, status: str, vector: dict[str, int]) -> None:
    submodule = result(cpu=outcome)["submods"]["cpu"]
    assert submodule["ear.status"] == status
    assert submodule["ear.trustworthiness-vector"].items() >= vector.items()
    for said in submodule["vaultline.reasons"]:
        assert said["what"] and said["why"] and said["fix"]


def test_a_check_that_an_unsafe_option_lets_pass_is_called_waived() -> None:
    outdated = SGX.with_(advisories=("INTEL-SA-00001",)).collateral()
    for collateral, state in ((outdated, "waived"), (SGX.collateral(), "passed")):
        outcome = run(policy(unsafe_any_advisory=True), collateral=collateral)
        checks = result(cpu=outcome)["submods"]["cpu"]["vaultline.checks"]
        assert checks.pop("advisories") == state
        assert set(checks.values()) == {"passed"}


def test_unsafe_options_are_echoed_in_every_result() -> None:
    unsafe = policy(unsafe_any_advisory=True)
    for outcome in (
        run(unsafe),
        run(unsafe, collateral=OUTDATED),
        run(unsafe, evidence=SGX.quote()[:-1]),
        run(policy(), unsafe),
    ):
        submodule = result(cpu=outcome)["submods"]["cpu"]
        assert submodule["vaultline.unsafe"] == ["unsafe_any_advisory"]
        assert submodule["ear.status"] != "affirming"
