"""Signed attestation results (JWT): what a verifier issues, and what a relying party checks.

RFC 9334 knows two ways. *Background check*: whoever relies on an enclave passes its evidence to a
verifier, here its own: `vaultline.attest.appraise`, before a key is released. *Passport*: a
verifier that the relying party trusts has verified the evidence and signed the result; the enclave
shows that. It is as good as the verifier, as the policy that it went by, and as it is fresh.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from jwcrypto.common import JWException
from jwcrypto.jwk import JWK
from jwcrypto.jws import JWS
from jwcrypto.jwt import JWT

from vaultline.attest.refusals import ResultRefused
from vaultline.attest.results import PROFILE
from vaultline.core.errors import InputError
from vaultline.core.serde import Struct, from_json
from vaultline.core.units import format_utc

#: A result of a few devices, with their claims.
TOKEN_BYTES_MAX: Final = 1 << 20
VERIFIER_KEY, VERIFIER_PUBLIC_KEY = "verifier.jwk", "verifier.pub.jwk"
_ALGORITHMS: Final = {"P-256": "ES256", "P-384": "ES384", "Ed25519": "EdDSA"}
#: How far a verifier's clock may be ahead of ours.
_LEEWAY_S: Final = 60


class _Submodule(msgspec.Struct, frozen=True):
    """What a relying party reads of a device."""

    status: str = msgspec.field(name="ear.status")
    policy_id: str = msgspec.field(name="ear.appraisal-policy-id")
    unsafe: tuple[str, ...] = msgspec.field(name="vaultline.unsafe")
    fresh: bool = msgspec.field(name="vaultline.fresh")
    verified_at: int = msgspec.field(name="vaultline.verified-at")


class _Result(msgspec.Struct, frozen=True):
    eat_profile: str
    iat: int
    exp: int
    submods: dict[str, _Submodule]
    eat_nonce: str | None = None
    nbf: int | None = None
    aud: str | tuple[str, ...] | None = None


class Trust(Struct, frozen=True, kw_only=True):
    """What a relying party wants of a passport.

    Attributes:
        policy_ids: accepted appraisal policies (``sha256:...``); empty refuses all.
        nonce: what this relying party asked the verifier to include; ``None``: none was asked.
        age_s_max: of the verification.
        allow_warning: accept what passed only by unsafe options, in grace, or as a simulation.
        allow_stale: accept evidence that commits to nothing that the verifier asked for.
    """

    policy_ids: tuple[str, ...]
    nonce: str | None = None
    age_s_max: int = 300
    allow_warning: bool = False
    allow_stale: bool = False


def make_verifier_key(out_dir: Path) -> tuple[Path, Path]:
    """Make a verifier's key pair: the private JWK, readable by its owner alone, and the public one.

    Raises:
        InputError: there is one already, or the folder cannot be written.
    """
    key = JWK.generate(kty="EC", crv="P-256", use="sig")
    key = JWK(**key.export(as_dict=True), kid=key.thumbprint())
    private, public = out_dir / VERIFIER_KEY, out_dir / VERIFIER_PUBLIC_KEY
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        for path, text, mode in (
            (private, key.export_private(), 0o600),
            (public, key.export_public(), 0o644),
        ):
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(file, "w") as stream:
                stream.write(text + "\n")
    except OSError as error:
        raise InputError(
            "cannot write a verifier's key",
            got=f"{error.filename}: {error.strerror}",
            expected="a folder without one, where you may write",
        ) from error
    return private, public


def load_key(text: bytes, *, private: bool) -> JWK:
    """Read a JWK for signing or checking results.

    Raises:
        InputError: not one, or of a type that is not used here.
    """
    try:
        key = JWK.from_json(text.decode())
        known = key.get("crv") in _ALGORITHMS
    except (JWException, ValueError, TypeError, KeyError) as error:
        raise InputError("not a key of a verifier (JWK)", got=str(error)) from error
    if not known or (private and not key.has_private):
        raise InputError(
            "this key does not serve for results",
            expected="a JWK on P-256, P-384 or Ed25519" + (", with its private part" * private),
            remedy="make one with `vaultline policy verifier`",
        )
    return key


def sign_result(result: dict[str, Any], key: JWK) -> str:
    """A result as a compact JWT."""
    header = {"alg": _ALGORITHMS[key["crv"]], "typ": "JWT"}
    if key.get("kid"):
        header["kid"] = key["kid"]
    token = JWT(header=header, claims=result)
    token.make_signed_token(key)
    return str(token.serialize())


def check_passport(
    token: str, keys: Sequence[JWK], trust: Trust, now_s: int, *, devices: Collection[str] = ()
) -> dict[str, Any]:
    """Decide whether a signed result can be relied on.

    Args:
        token: what the enclave, or whoever speaks for it, showed.
        keys: of the verifiers that are trusted.
        trust: what the result must say.
        now_s: Unix time.
        devices: names that the result must have; others may be there as well.

    Returns:
        The result, as `attest.results.attestation_result` makes it.

    Raises:
        ResultRefused: anything else.
    """
    result = _opened(token, keys)
    read = _read(result)
    if read.aud is not None:
        raise ResultRefused(
            "the result is for somebody else: it names for whom, and nobody has a name here",
            got=str(read.aud),
        )
    start = read.iat if read.nbf is None else max(read.iat, read.nbf)
    if not start - _LEEWAY_S <= now_s <= read.exp:
        raise ResultRefused(
            "the result is not valid at this time",
            got=format_utc(now_s),
            expected=f"from {format_utc(start)} to {format_utc(read.exp)}",
        )
    if trust.nonce is not None and read.eat_nonce != trust.nonce:
        raise ResultRefused(
            "the result answers another request", got=str(read.eat_nonce), expected=trust.nonce
        )
    missing = set(devices) - set(read.submods)
    if missing or not read.submods:
        raise ResultRefused(
            "the result says nothing of a device", expected=", ".join(sorted(missing)) or "one"
        )
    for name, submodule in read.submods.items():
        _check_submodule(name, submodule, trust, now_s)
    return result


def _opened(token: str, keys: Sequence[JWK]) -> dict[str, Any]:
    if len(token) > TOKEN_BYTES_MAX:
        raise ResultRefused("the result is too long", got=f"{len(token)} bytes")
    if token.count(".") != 2 or "{" in token:
        raise ResultRefused("not a signed result", expected="a compact JWS, in three parts")
    for key in keys:
        try:
            opened = JWS()
            opened.allowed_algs = [_ALGORITHMS[key["crv"]]]
            opened.deserialize(token)
            opened.verify(key)
            return from_json(opened.payload, dict[str, Any], what="the result")
        except (JWException, ValueError, KeyError, TypeError, InputError):
            continue
    raise ResultRefused(
        "the result is not signed by a verifier that is trusted here",
        expected=", ".join(str(key.get("kid")) for key in keys) or "no verifier is trusted",
    )


def _read(result: dict[str, Any]) -> _Result:
    try:
        read = from_json(json.dumps(result).encode(), _Result, what="the result")
    except InputError as error:
        raise ResultRefused("the result has another form", got=error.got) from error
    if read.eat_profile != PROFILE:
        raise ResultRefused("the result has another form", got=read.eat_profile, expected=PROFILE)
    return read


def _check_submodule(name: str, submodule: _Submodule, trust: Trust, now_s: int) -> None:
    accepted = {"affirming", "warning"} if trust.allow_warning else {"affirming"}
    if submodule.status not in accepted:
        raise ResultRefused(
            f"the verifier does not affirm `{name}`",
            got=", ".join([submodule.status, *submodule.unsafe]),
            expected=" or ".join(sorted(accepted)),
        )
    if not submodule.fresh and not trust.allow_stale:
        raise ResultRefused(
            f"the evidence of `{name}` answers no question of the verifier's",
            remedy="verify with --report-data, or accept old evidence by name",
        )
    if submodule.policy_id not in trust.policy_ids:
        raise ResultRefused(
            f"`{name}` was judged by another policy",
            got=submodule.policy_id,
            expected=", ".join(trust.policy_ids) or "no policy is accepted",
        )
    if not -_LEEWAY_S <= now_s - submodule.verified_at <= trust.age_s_max:
        raise ResultRefused(
            f"`{name}` was verified too long ago, or in the future",
            got=f"for {format_utc(submodule.verified_at)}",
            expected=f"at most {trust.age_s_max} s before {format_utc(now_s)}",
        )
