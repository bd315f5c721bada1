"""Evidence to verdict: the relying party's checks, in order, each with its own refusal.

The order goes from what costs nothing to what needs signatures, and nothing of a quote is believed
before dcap-qvl has verified it under a root that the policy names:

1. the policy knows this kind of enclave; simulated ones need the owner's consent as well
2. the quote has exactly the length that it says (dcap-qvl ignores what follows)
3. the collateral's root is pinned by an entry of the policy; then signatures, revocation lists
   and validity at the given time, by `dcap_qvl` with a policy (its plain ``verify`` is laxer)
4. not debuggable; platform of the claimed kind; TCB status, advisories, platform flags; measurement
5. the report data commits to this challenge and this key

Simulated and real enclaves take the same path. An accelerator shows no quote but a signature by a
key that the policy pins: `pinning` checks that in place of 2 to 4, and it vouches for nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import dcap_qvl
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from vaultline.attest.challenge import Challenge
from vaultline.attest.evidence import Evidence
from vaultline.attest.mismatch import Known, check_report_data
from vaultline.attest.pinning import check_pinned
from vaultline.attest.policy import DEVELOPMENT_FMSPC, Accepted, Policy, root_key_id
from vaultline.attest.refusals import (
    CollateralExpired,
    DebugRefused,
    EvidenceRefused,
    KindRefused,
    MeasurementRefused,
    QuoteInvalid,
    QuoteTrailingBytes,
    RootRefused,
    SimulatedNotAllowed,
    TcbRefused,
)
from vaultline.core.errors import InputError
from vaultline.core.serde import Struct, from_json

_TEE_TYPES = {"simulated": 0x00, "sgx": 0x00, "tdx": 0x81}
_FLAGS = {
    "dynamic-platform": "dynamic_platform",
    "cached-keys": "cached_keys",
    "smt": "smt_enabled",
}
_DEBUG_SGX, _TD_UNDER_DEBUG = 0x02, 0xFF


class Verdict(Struct, frozen=True, kw_only=True):
    """Why an enclave or an accelerator was accepted, for results and logs.

    Of an accelerator only kind, entry and root are known; the other texts are empty.

    Attributes:
        simulated: true where the evidence protects from mistakes and not from the host.
        entry: index of the policy's entry that was satisfied.
        measurement: MRENCLAVE or MRTD (hex).
        root: key id of the root (hex); an accelerator's own public key.
        collateral_until_s: Unix time at which the collateral ends.
    """

    kind: str
    simulated: bool
    entry: int
    measurement: str
    root: str
    tcb_status: str
    advisories: tuple[str, ...]
    collateral_until_s: int


class _Loose(msgspec.Struct, frozen=True, kw_only=True):
    """Of dcap-qvl's claims only these are read; later versions may add more."""


class _Tcb(_Loose, frozen=True):
    status: str
    advisory_ids: tuple[str, ...]


class _Pck(_Loose, frozen=True):
    fmspc: tuple[int, ...]
    dynamic_platform: str
    cached_keys: str
    smt_enabled: str


class _Platform(_Loose, frozen=True):
    pck: _Pck
    root_key_id: tuple[int, ...]


class _Claims(_Loose, frozen=True):
    tee_type: int
    tcb: _Tcb
    platform: _Platform
    report: dict[str, dict[str, Any]]
    latest_issue_date: int
    earliest_expiration_date: int
    qe_iden_latest_issue_date: int
    qe_iden_earliest_expiration_date: int


_Entries = list[tuple[int, Accepted]]


def appraise(
    evidence: Evidence,
    challenge: Challenge,
    policy: Policy,
    collateral: bytes,
    now_s: int,
    allow_simulated: bool,
    known: Known | None = None,
) -> Verdict:
    """Decide whether evidence answers a challenge and satisfies a policy.

    Args:
        evidence: what the enclave answered.
        challenge: what this enclave was asked, never another one.
        policy: reference values.
        collateral: JSON of certificates, revocation lists and TCB levels for this kind.
        now_s: Unix time.
        allow_simulated: the owner's consent to simulated enclaves, beside the policy.
        known: earlier challenges and keys, to name what mismatched evidence was made for.

    Raises:
        EvidenceRefused: a subclass for each reason.
        InputError: the collateral is not readable.
    """
    entries = _accept_kind(evidence, policy, allow_simulated)
    if evidence.kind == "accelerator":
        return _appraise_pinned(evidence, challenge, entries, known or Known())
    check_length(evidence.quote)
    entries, root = _accept_root(entries, _collateral_root(collateral))
    claims = _verify(evidence.quote, collateral, root, now_s)
    start = max(claims.latest_issue_date, claims.qe_iden_latest_issue_date)
    end = min(claims.earliest_expiration_date, claims.qe_iden_earliest_expiration_date)
    check_dates(start, end, now_s)
    if bytes(claims.platform.root_key_id).hex() != root_key_id(root):
        raise RootRefused("the quote's root is not the collateral's")
    report = _flatten(next(iter(claims.report.values())))
    check_debug(claims.tee_type, report)
    _check_platform(evidence.kind, claims)
    entries = _accept_tcb(entries, claims)
    entries = _accept_measurement(entries, report)
    found = bytes.fromhex(report["report_data"])
    check_report_data(found, challenge, evidence.public_key, known or Known())
    return Verdict(
        kind=evidence.kind,
        simulated=evidence.kind == "simulated",
        entry=entries[0][0],
        measurement=_measurement(report),
        root=root_key_id(root),
        tcb_status=claims.tcb.status,
        advisories=claims.tcb.advisory_ids,
        collateral_until_s=end,
    )


def _appraise_pinned(
    evidence: Evidence, challenge: Challenge, entries: _Entries, known: Known
) -> Verdict:
    entry, key, found = check_pinned(evidence.quote, entries)
    check_report_data(found, challenge, evidence.public_key, known)
    return Verdict(
        kind=evidence.kind,
        simulated=False,
        entry=entry,
        measurement="",
        root=key,
        tcb_status="",
        advisories=(),
        collateral_until_s=0,
    )


def _accept_kind(evidence: Evidence, policy: Policy, allow_simulated: bool) -> _Entries:
    kind = evidence.kind
    entries = [(i, entry) for i, entry in enumerate(policy.accept) if entry.kind == kind]
    if not entries:
        raise KindRefused(
            f"the policy accepts nothing of kind `{kind}`",
            got=kind,
            expected=", ".join(sorted({entry.kind for entry in policy.accept})),
            remedy="add an entry for this kind, or run the stage on another device",
        )
    if kind == "simulated" and not allow_simulated:
        raise SimulatedNotAllowed(
            "this enclave is simulated: nothing protects it from its host",
            remedy="say --allow-simulated if that is what you want, beside naming the root",
        )
    return entries


def check_length(quote: bytes) -> None:
    """Refuse a quote that is shorter or longer than its own length fields say.

    Raises:
        QuoteInvalid: too short to have a length, or of an unknown version.
        QuoteTrailingBytes: of another length.
    """
    try:
        (version,) = struct.unpack_from("<H", quote)
        if version not in (3, 4, 5):
            raise QuoteInvalid("a quote of an unknown version", got=str(version))
        body_end = 48 + (584 if version == 4 else 384)
        if version == 4 and struct.unpack_from("<I", quote, 4)[0] == 0:
            body_end = 48 + 384
        if version == 5:
            body_end = 54 + struct.unpack_from("<I", quote, 50)[0]
        end = body_end + 4 + struct.unpack_from("<I", quote, body_end)[0]
        nested = body_end + 4 + 128
        if version > 3:  # certification data of type 6 wraps the quoting enclave's report
            if nested + 6 + struct.unpack_from("<I", quote, nested + 2)[0] != end:
                raise QuoteTrailingBytes("the quote's signature section has trailing bytes")
            nested += 6
        chain = nested + 448 + 2 + struct.unpack_from("<H", quote, nested + 448)[0]
        inner_end = chain + 6 + struct.unpack_from("<I", quote, chain + 2)[0]
    except struct.error as error:
        raise QuoteInvalid("not a quote: too short", got=f"{len(quote)} bytes") from error
    if not inner_end == end == len(quote):
        raise QuoteTrailingBytes(
            "the quote is not as long as it says",
            got=f"{len(quote)} bytes",
            expected=f"{end} bytes, certificates up to {inner_end}",
            remedy="the provider must cut off padding; bytes that nobody signed are refused",
        )


def _collateral_root(collateral: bytes) -> x509.Certificate:
    """The root certificate in the collateral; not to be believed before it is pinned."""
    if not collateral:
        raise InputError(
            "there is no collateral for this kind of enclave",
            remedy="name the collateral file of the platform's vendor or development root",
        )
    chain = from_json(collateral, dict[str, Any], what="the collateral")
    pem = chain.get("tcb_info_issuer_chain")
    try:
        return x509.load_pem_x509_certificates(str(pem).encode())[-1]
    except ValueError as error:
        raise InputError("the collateral has no tcb_info_issuer_chain", got=str(error)) from error


def _accept_root(entries: _Entries, root: x509.Certificate) -> tuple[_Entries, x509.Certificate]:
    key_id = root_key_id(root)
    accepted = [(i, entry) for i, entry in entries if key_id in entry.root_ids]
    if not accepted:
        raise RootRefused(
            "the collateral leads to a root that the policy does not name",
            got=key_id,
            expected=", ".join(sorted(set().union(*(entry.root_ids for _, entry in entries)))),
            remedy="use the collateral of an accepted root, or name this root in the policy",
        )
    return accepted, root


#: Words of dcap-qvl's errors (it has one class) that call for another refusal than QuoteInvalid.
_BY_TEXT: tuple[tuple[str, type[EvidenceRefused], str], ...] = (
    ("xpired", CollateralExpired, "fetch the collateral again"),
    ("in the future", CollateralExpired, "check the clock, or fetch the collateral again"),
    ("Debug mode", DebugRefused, "build the enclave for production"),
    ("debug", DebugRefused, "build the enclave for production"),
    ("TCB status", TcbRefused, "update the platform's firmware"),
    ("No matching TCB level", TcbRefused, "update the platform's firmware"),
)


def _verify(quote: bytes, collateral: bytes, root: x509.Certificate, now_s: int) -> _Claims:
    try:
        parsed = dcap_qvl.QuoteCollateralV3.from_json(collateral.decode())
    except ValueError as error:
        raise InputError("the collateral is not readable", got=str(error)) from error
    verifier = dcap_qvl.QuoteVerifier(root.public_bytes(Encoding.DER))
    lax = dcap_qvl.QuotePolicy.claims_only(now_s)  # this module decides, on the claims
    try:
        claims = verifier.verify_with_policy(quote, parsed, now_s, lax)
    except ValueError as error:
        for words, refusal, remedy in _BY_TEXT:
            if words in str(error):
                raise refusal(
                    "the evidence does not verify", got=str(error), remedy=remedy
                ) from error
        raise QuoteInvalid(
            "the quote does not verify under the accepted root",
            got=str(error),
            remedy="the evidence was altered, or comes from a platform of another root",
        ) from error
    return from_json(claims.to_json().encode(), _Claims, what="the verified claims")


def check_dates(start: int, end: int, now_s: int) -> None:
    """Every certificate, list and TCB statement is valid now; dcap-qvl refuses that as well.

    Raises:
        CollateralExpired: ``now_s`` is not from ``start`` to ``end`` (Unix times).
    """
    if not start <= now_s <= end:
        raise CollateralExpired(
            "the collateral is not valid at this time",
            got=f"Unix time {now_s}",
            expected=f"from {start} to {end}",
            remedy="fetch the collateral again, or check the clock",
        )


def check_debug(tee_type: int, report: dict[str, Any]) -> None:
    """No debug bit is set, neither SGX's nor any under a trust domain's; dcap-qvl checks as well.

    Raises:
        DebugRefused: the enclave is debuggable.
    """
    if tee_type == 0:
        debuggable = bytes.fromhex(report["attributes"])[0] & _DEBUG_SGX
    else:
        debuggable = bytes.fromhex(report["td_attributes"])[0] & _TD_UNDER_DEBUG
    if debuggable:
        raise DebugRefused(
            "the enclave is debuggable: its host can read its memory",
            remedy="build the enclave for production",
        )


def _check_platform(kind: str, claims: _Claims) -> None:
    if claims.tee_type != _TEE_TYPES[kind]:
        raise KindRefused(
            f"evidence of kind `{kind}` carries a quote of another kind",
            got=f"TEE type {claims.tee_type:#x}",
            expected=f"TEE type {_TEE_TYPES[kind]:#x}",
        )
    development = bytes(claims.platform.pck.fmspc).hex().upper() == DEVELOPMENT_FMSPC
    if development and kind != "simulated":
        raise SimulatedNotAllowed(
            f"a simulated platform claims to be of kind `{kind}`",
            remedy="list development roots under `kind: simulated` only",
        )
    if kind == "simulated" and not development:
        raise KindRefused(
            "evidence of kind `simulated` comes from a platform that is not a simulated one"
        )


def _accept_tcb(entries: _Entries, claims: _Claims) -> _Entries:
    """Entries that accept the status (the worst of platform, module and quoting enclave)."""

    def objection(entry: Accepted) -> str | None:
        if claims.tcb.status not in entry.tcb_statuses:
            return f"TCB status {claims.tcb.status}"
        unknown = set(claims.tcb.advisory_ids) - set(entry.accepted_advisories)
        if unknown:
            return "advisories " + ", ".join(sorted(unknown))
        for flag in entry.refused_platforms:
            if getattr(claims.platform.pck, _FLAGS[flag]) != "False":
                return f"platform with {flag}, or silent about it"
        return None

    accepted, objections = _filter(entries, objection)
    if not accepted:
        raise TcbRefused(
            "the platform is in a state that the policy does not accept",
            got="; ".join(objections),
            expected="; ".join(", ".join(entry.tcb_statuses) for _, entry in entries),
            remedy="update the platform, or accept the status and its advisories in the policy",
        )
    return accepted


def _filter(
    entries: _Entries, objection: Callable[[Accepted], str | None]
) -> tuple[_Entries, list[str]]:
    objections = [(i, entry, objection(entry)) for i, entry in entries]
    accepted = [(i, entry) for i, entry, text in objections if text is None]
    return accepted, sorted({text for _, _, text in objections if text is not None})


def _flatten(report: dict[str, Any]) -> dict[str, Any]:
    """Later trust domain reports hold the earlier one under ``base``."""
    base = report.get("base")
    return report | _flatten(base) if isinstance(base, dict) else report


def _measurement(report: dict[str, Any]) -> str:
    return str(report["mr_enclave"] if "mr_enclave" in report else report["mr_td"])


def _accept_measurement(entries: _Entries, report: dict[str, Any]) -> _Entries:
    accepted = [(i, entry) for i, entry in entries if _matches(entry, report)]
    if not accepted:
        names = [m for _, entry in entries for m in entry.measurements]
        names += [f"signer {s.mrsigner}" for _, entry in entries for s in entry.signers]
        names += [f"MRTD {t.mrtd}" for _, entry in entries for t in entry.trust_domains]
        raise MeasurementRefused(
            "the enclave runs other code than the policy names",
            got=_measurement(report),
            expected=", ".join(names),
            remedy="if you trust the new code, put its measurement into the policy",
        )
    return accepted


def _matches(entry: Accepted, report: dict[str, Any]) -> bool:
    if entry.kind == "tdx":
        names = {"mrtd": "mr_td"} | {f"rtmr{n}": f"rt_mr{n}" for n in range(4)}
        return any(
            all(
                expected is None or expected.lower() == report.get(name)
                for field, name in names.items()
                for expected in (getattr(domain, field),)
            )
            for domain in entry.trust_domains
        )
    if report["mr_enclave"] in {measurement.lower() for measurement in entry.measurements}:
        return True
    return any(
        signer.mrsigner.lower() == report["mr_signer"]
        and signer.product_id == report["isv_prod_id"]
        and signer.svn_min <= report["isv_svn"]
        for signer in entry.signers
    )
