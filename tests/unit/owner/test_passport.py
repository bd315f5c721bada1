"""Signed results: who may issue them, and what a relying party refuses."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from jwcrypto.common import base64url_decode, base64url_encode
from jwcrypto.jwk import JWK
from jwcrypto.jws import JWS

from vaultline.attest.examine import Outcome, Request, examine, policy_id
from vaultline.attest.policy import Accepted, Policy
from vaultline.attest.refusals import ResultRefused
from vaultline.attest.results import attestation_result
from vaultline.core.errors import InputError
from vaultline.owner.passport import (
    VERIFIER_KEY,
    VERIFIER_PUBLIC_KEY,
    Trust,
    check_passport,
    load_key,
    make_verifier_key,
    sign_result,
)
from vaultline.testing.certificates import NOW_S
from vaultline.testing.intel_vectors import MRENCLAVE, Vector

VECTOR = Vector()
ENTRY = Accepted(kind="sgx", roots=(VECTOR.root_id,), measurements=(MRENCLAVE.hex(),))
POLICY = Policy(version=1, accept=(ENTRY,))
KEY, OTHER = (JWK.generate(kty="EC", crv="P-256", kid=kid) for kid in ("ours", "other"))


def outcome(policy: Policy = POLICY, **changes: Any) -> Outcome:
    fields: dict[str, Any] = {
        "evidence": VECTOR.quote(),
        "policies": (policy,),
        "collateral": VECTOR.collateral(),
        "now_s": NOW_S,
        "report_data": bytes(range(64)),
    }
    return examine(Request(**fields | changes))


def issue(found: Outcome | None = None, key: JWK = KEY, **changes: Any) -> str:
    made = attestation_result(
        {"cpu": found or outcome()}, issued_s=NOW_S, valid_s=300, build="1", nonce="n"
    )
    return sign_result(made | changes, key)


def trust(**changes: Any) -> Trust:
    fields: dict[str, Any] = {"policy_ids": (f"sha256:{policy_id((POLICY,))}",), "nonce": "n"}
    return Trust(**fields | changes)


@pytest.mark.parametrize("curve", ["P-256", "P-384", "Ed25519"])
def test_a_passport_is_accepted(curve: str) -> None:
    key = JWK.generate(kty="OKP" if curve == "Ed25519" else "EC", crv=curve)
    found = check_passport(issue(key=key), [OTHER, key], trust(), NOW_S + 10, devices=["cpu"])
    assert found["submods"]["cpu"]["ear.status"] == "affirming"


LENIENT = Accepted(
    kind="sgx",
    roots=(VECTOR.root_id,),
    measurements=(MRENCLAVE.hex(),),
    unsafe_any_advisory=True,
)
WARNED = outcome(Policy(version=1, accept=(LENIENT,)))
UNSAFE_ID = f"sha256:{policy_id((Policy(version=1, accept=(LENIENT,)),))}"


def tampered() -> str:
    head, body, tail = issue().split(".")
    return ".".join((head, body[:-4] + ("AAAA" if body[-4:] != "AAAA" else "BBBB"), tail))


def unsigned() -> str:
    head = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=").decode()
    return f"{head}.{issue().split('.')[1]}."


def by_shared_secret() -> str:
    """The public key as if it were a shared secret: the classic confusion of algorithms."""
    secret = JWK(kty="oct", k=base64url_encode(KEY.export_public().encode()))
    body = issue().split(".")[1]
    token = JWS(base64url_decode(body))
    token.add_signature(secret, None, json.dumps({"alg": "HS256"}))
    return str(token.serialize(compact=True))


def in_json() -> str:
    """The same signature, with an unsigned header beside it."""
    head, body, tail = issue().split(".")
    return json.dumps({"protected": head, "payload": body, "signature": tail, "header": {}})


REFUSED: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "another verifier's": (issue(key=OTHER), {}, NOW_S, "trusted"),
    "one that was altered": (tampered(), {}, NOW_S, "trusted"),
    "an unsigned one": (unsigned(), {}, NOW_S, "trusted"),
    "one signed with the public key": (by_shared_secret(), {}, NOW_S, "trusted"),
    "no token at all": ("x", {}, NOW_S, "not a signed result"),
    "one in another serialisation": (in_json(), {}, NOW_S, "not a signed result"),
    "one that is not to be used yet": (issue(nbf=NOW_S + 100), {}, NOW_S, "not valid"),
    "one for somebody else": (issue(aud="the bank"), {}, NOW_S, "somebody else"),
    "one for several others": (issue(aud=["a", "b"]), {}, NOW_S, "somebody else"),
    "an expired one": (issue(), {}, NOW_S + 301, "not valid"),
    "one of the future": (issue(iat=NOW_S + 100), {}, NOW_S, "not valid"),
    "one for another request": (issue(), {"nonce": "other"}, NOW_S, "another request"),
    "one without a request": (issue(eat_nonce=None), {}, NOW_S, "another request"),
    "a refusal": (issue(outcome(evidence=VECTOR.quote()[:-1])), {}, NOW_S, "affirm"),
    "an unsafe option": (issue(WARNED), {"policy_ids": (UNSAFE_ID,)}, NOW_S, "affirm"),
    "another policy": (issue(), {"policy_ids": ("sha256:00",)}, NOW_S, "another policy"),
    "any policy, where none is named": (issue(), {"policy_ids": ()}, NOW_S, "another policy"),
    "evidence that answers nothing": (
        issue(outcome(report_data=None)),
        {},
        NOW_S,
        "answers no question",
    ),
    "an old verification in a new result": (
        issue(outcome(now_s=NOW_S - 3600), exp=NOW_S + 300),
        {},
        NOW_S,
        "too long ago",
    ),
    "no device": (issue(submods={}), {}, NOW_S, "nothing of a device"),
    "another form": (issue(submods={"cpu": {"ear.status": "affirming"}}), {}, NOW_S, "form"),
    "another profile": (issue(eat_profile="x"), {}, NOW_S, "form"),
}


@pytest.mark.parametrize("token, changes, now_s, words", REFUSED.values(), ids=REFUSED.keys())
def test_a_passport_is_refused(token: str, changes: dict[str, Any], now_s: int, words: str) -> None:
    with pytest.raises(ResultRefused, match=words) as caught:
        check_passport(token, [KEY], trust(**changes), now_s)
    assert caught.value.remedy


def test_a_passport_for_another_device_is_refused() -> None:
    with pytest.raises(ResultRefused, match="nothing of a device"):
        check_passport(issue(), [KEY], trust(), NOW_S, devices=["gpu"])


def test_no_verifier_is_trusted_by_default() -> None:
    with pytest.raises(ResultRefused, match="trusted"):
        check_passport(issue(), [], trust(), NOW_S)


def test_a_warning_is_accepted_where_that_is_said() -> None:
    lenient = trust(policy_ids=(UNSAFE_ID,), allow_warning=True)
    found = check_passport(issue(WARNED), [KEY], lenient, NOW_S)
    assert found["submods"]["cpu"]["vaultline.unsafe"] == ["unsafe_any_advisory"]


def test_keys_are_made_once_and_kept(tmp_path: Path) -> None:
    private, public = make_verifier_key(tmp_path / "new")
    assert (private.name, public.name) == (VERIFIER_KEY, VERIFIER_PUBLIC_KEY)
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    signed = issue(key=load_key(private.read_bytes(), private=True))
    shown = load_key(public.read_bytes(), private=False)
    assert not shown.has_private
    assert check_passport(signed, [shown], trust(), NOW_S)
    with pytest.raises(InputError, match="cannot write"):
        make_verifier_key(tmp_path / "new")


KEYS = {
    "text": b"x",
    "another curve": JWK.generate(kty="EC", crv="secp256k1").export().encode(),
    "a shared secret": JWK.generate(kty="oct", size=256).export().encode(),
    "no private part": KEY.export_public().encode(),
}


@pytest.mark.parametrize("text", KEYS.values(), ids=KEYS.keys())
def test_what_is_no_signing_key_is_refused(text: bytes) -> None:
    with pytest.raises(InputError):
        load_key(text, private=True)
