"""SGX quotes (version 3) and TDX quotes (versions 4 and 5), by dcap-qvl and its collateral.

Layouts: Intel SGX ECDSA QuoteLibReference, appendix A; Intel TDX DCAP Quoting Library API, appendix
3. Nothing of a quote is believed before dcap-qvl has verified it under an accepted root; what it
leaves open (length, and a policy) is done here and in ``judging``.
"""

from __future__ import annotations

import re
import struct
from typing import Any

import dcap_qvl
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from vaultline.attest.chains import check_linked, load_certificates, to_pem
from vaultline.attest.claims import Claims, TcbState
from vaultline.attest.intel_statements import CHAINS, check_statements
from vaultline.attest.intel_unlisted import Parts, explain_chain, unix_time, unlisted_claims
from vaultline.attest.policy import DEVELOPMENT_FMSPC
from vaultline.attest.refusals import (
    CertificateRefused,
    CollateralExpired,
    CollateralMismatch,
    DebugRefused,
    EvidenceRefused,
    MeasurementRefused,
    MigrationRefused,
    QuoteInvalid,
    QuoteTrailingBytes,
    QuotingEnclaveRefused,
    RootRefused,
    TcbRefused,
    VendorRefused,
)
from vaultline.attest.roots import root_key_id
from vaultline.core.errors import InputError
from vaultline.core.serde import canonical_json, from_json
from vaultline.core.units import format_utc

_DEBUG_SGX, _TD_UNDER_DEBUG = 0x02, 0xFF
_INITIALISED, _MODE64 = 0x01, 0x04
_KINDS = {0x00: "sgx", 0x81: "tdx"}
_FLAGS = {
    "dynamic-platform": "dynamic_platform",
    "cached-keys": "cached_keys",
    "smt": "smt_enabled",
}
_REGISTERS = {
    "mrenclave": "mr_enclave",
    "mrsigner": "mr_signer",
    "mrtd": "mr_td",
    "rtmr0": "rt_mr0",
    "rtmr1": "rt_mr1",
    "rtmr2": "rt_mr2",
    "rtmr3": "rt_mr3",
    "mrseam": "mr_seam",
    "mrconfigid": "mr_config_id",
}


class _Loose(msgspec.Struct, frozen=True, kw_only=True):
    """Of dcap-qvl's claims only these are read; later versions may add more."""


class _Header(_Loose, frozen=True):
    version: int


class _Tcb(_Loose, frozen=True):
    status: TcbState
    advisory_ids: tuple[str, ...]
    eval_data_number: int


class _Pck(_Loose, frozen=True):
    ppid: tuple[int, ...]
    fmspc: tuple[int, ...]
    dynamic_platform: str
    cached_keys: str
    smt_enabled: str


class _Platform(_Loose, frozen=True):
    pck: _Pck
    root_key_id: tuple[int, ...]
    tcb_date_tag: int


class _QeLevel(_Loose, frozen=True):
    date: str = msgspec.field(name="tcbDate")
    status: TcbState = msgspec.field(name="tcbStatus")


class _Qe(_Loose, frozen=True):
    tcb_level: _QeLevel


class _Qvl(_Loose, frozen=True):
    header: _Header
    tee_type: int
    tcb: _Tcb
    platform: _Platform
    qe: _Qe
    report: dict[str, dict[str, Any]]
    latest_issue_date: int
    earliest_expiration_date: int
    qe_iden_latest_issue_date: int
    qe_iden_earliest_expiration_date: int


def verify_intel(quote: bytes, collateral: bytes, roots: frozenset[str], now_s: int) -> Claims:
    """Verify a quote; see `verifiers.Verifier`."""
    check_length(quote)
    collateral, root = _canonical(collateral, roots)
    check_chain(quote)
    qvl, unlisted = _verify(quote, collateral, root, now_s)
    stated_s = check_statements(quote, collateral, root)
    check_quoting_level(qvl.qe.tcb_level.status)
    start = max(qvl.latest_issue_date, qvl.qe_iden_latest_issue_date)
    end = min(qvl.earliest_expiration_date, qvl.qe_iden_earliest_expiration_date)
    check_dates(start, end, now_s)
    if bytes(qvl.platform.root_key_id).hex() != root_key_id(root):
        raise RootRefused("the quote's root is not the collateral's")
    report = _flatten(next(iter(qvl.report.values())))
    check_attributes(qvl.tee_type, report)
    pck = qvl.platform.pck
    return Claims(
        kind=_KINDS[qvl.tee_type],
        format=f"{_KINDS[qvl.tee_type]}-quote-{qvl.header.version}",
        root=root_key_id(root),
        chip=bytes(pck.ppid).hex(),
        product=bytes(pck.fmspc).hex().upper(),
        measurements={n: str(report[old]) for n, old in _REGISTERS.items() if old in report},
        versions={
            name: int(report[old])
            for name, old in {"product_id": "isv_prod_id", "svn": "isv_svn"}.items()
            if old in report
        },
        report_data=str(report["report_data"]),
        debug=False,
        development=bytes(pck.fmspc).hex().upper() == DEVELOPMENT_FMSPC,
        tcb_status="Unlisted" if unlisted else qvl.tcb.status,
        tcb_date_s=_tcb_date(qvl),
        advisories=qvl.tcb.advisory_ids,
        flags={flag: str(getattr(pck, name)) for flag, name in _FLAGS.items()},
        revocation_checked=True,  # dcap-qvl demands both lists
        issued_s=start,
        stated_s=stated_s,
        expires_s=end,
        tcb_evaluation=qvl.tcb.eval_data_number,
    )


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


def check_chain(quote: bytes) -> None:
    """Refuse a quote of whose certificates, which nothing signs as a whole, one could read another
    text than dcap-qvl does: PEM certificates follow one another, and zeros at the end.

    Raises:
        QuoteInvalid: there are none.
        QuoteTrailingBytes: there is something else.
        CertificateRefused: they are no chain.
    """
    text = Parts(quote).chain
    try:
        certificates = load_certificates(text)
        alone = to_pem(certificates)
    except InputError as error:
        raise QuoteInvalid(
            "the quote carries no certificates that can be read", got=error.got
        ) from error
    if "".join(text.split()) != "".join(alone.split()):
        raise QuoteTrailingBytes(
            "there is something else among the quote's certificates",
            remedy="the provider must give certificates in PEM alone; other text is refused",
        )
    check_linked(certificates)


def _canonical(collateral: bytes, roots: frozenset[str]) -> tuple[bytes, x509.Certificate]:
    """The collateral with its chains written anew, and its root, pinned; no more is believed yet.

    Parsers differ in what else a text of certificates may hold (dcap-qvl takes a block of any
    label for one), and in repeated names: what is read here is what that library gets to see.
    """
    if not collateral:
        raise InputError(
            "there is no collateral for this kind of enclave",
            remedy="name the collateral file of the platform's vendor or development root",
        )
    fields = from_json(collateral, dict[str, Any], what="the collateral")
    chains = {}
    for name in CHAINS:
        try:
            chains[name] = load_certificates(str(fields.get(name)))
        except InputError as error:
            raise InputError(f"the collateral has no {name}", got=error.got) from error
        fields[name] = to_pem(chains[name])
    root = chains[CHAINS[0]][-1]
    if root_key_id(root) not in roots:
        raise RootRefused(
            "the collateral leads to a root that the policy does not name",
            got=root_key_id(root),
            expected=", ".join(sorted(roots)),
            remedy="use the collateral of an accepted root, or name this root in the policy",
        )
    for chain in chains.values():
        check_linked(chain)
        if chain[-1] != root:
            raise CertificateRefused("the collateral's chains have different roots")
    # It would take this chain in place of the quote's own, which is the one that is looked at here.
    fields.pop("pck_certificate_chain", None)
    return canonical_json(fields), root


_PRODUCTION = "build the enclave for production"
#: How dcap-qvl's errors write a moment.
_SECONDS = re.compile(r"UnixTime\(([0-9]{1,12})\)")
#: Words of dcap-qvl's errors (it has one class), and the refusals that they stand for.
_BY_TEXT: tuple[tuple[str, type[EvidenceRefused], str], ...] = (
    ("TCB status", TcbRefused, ""),
    ("TD migration", MigrationRefused, ""),
    ("xpired", CollateralExpired, ""),
    ("in the future", CollateralExpired, ""),
    ("ebug", DebugRefused, _PRODUCTION),
    ("QE vendor", VendorRefused, ""),
    ("mspc mismatch", CollateralMismatch, ""),
    ("TCB info in the collateral", CollateralMismatch, ""),
    ("Unsupported QE Identity", CollateralMismatch, ""),
    ("QE report validation", QuotingEnclaveRefused, ""),
    ("QE MRSIGNER", QuotingEnclaveRefused, ""),
    ("QE ISV", QuotingEnclaveRefused, ""),
    ("QE TCB", QuotingEnclaveRefused, ""),
    ("TDX module", TcbRefused, "update the platform's TDX module"),
    ("certificate chain", CertificateRefused, ""),
    ("CRL", CertificateRefused, ""),
)


def _verify(
    quote: bytes, collateral: bytes, root: x509.Certificate, now_s: int
) -> tuple[_Qvl, bool]:
    """dcap-qvl's claims; true where the platform is below every level that the vendor lists."""
    try:
        parsed = dcap_qvl.QuoteCollateralV3.from_json(collateral.decode())
    except ValueError as error:
        raise InputError("the collateral is not readable", got=str(error)) from error
    verifier = dcap_qvl.QuoteVerifier(root.public_bytes(Encoding.DER))
    lax = dcap_qvl.QuotePolicy.claims_only(now_s)  # ``judging`` decides, on the claims
    try:
        claims = verifier.verify_with_policy(quote, parsed, now_s, lax)
    except ValueError as error:
        if "No matching TCB level" in str(error):
            rated = unlisted_claims(quote, collateral, root, now_s)
            return from_json(rated, _Qvl, what="the verified claims"), True
        if "certificate chain" in str(error) or "CRL" in str(error):
            explain_chain(quote, collateral, root, now_s)
        raise _refusal(str(error)) from error
    return from_json(claims.to_json().encode(), _Qvl, what="the verified claims"), False


def _refusal(text: str) -> EvidenceRefused:
    text = _SECONDS.sub(lambda found: format_utc(int(found[1])), text)
    for words, refusal, remedy in _BY_TEXT:
        if words in text:
            return refusal("the evidence does not verify", got=text, remedy=remedy or None)
    return QuoteInvalid(
        "the quote does not verify under the accepted root",
        got=text,
        remedy="the evidence was altered, or comes from a platform of another root",
    )


def check_quoting_level(status: TcbState) -> None:
    """Refuse a quoting enclave in a state that no such enclave has by Intel's rules: dcap-qvl takes
    one that needs configuration for up to date.

    Raises:
        QuotingEnclaveRefused: neither up to date nor outdated, which the status tells.
    """
    if status not in ("UpToDate", "OutOfDate"):
        raise QuotingEnclaveRefused(
            "the quoting enclave is in a state that is not known for one",
            got=status,
            expected="UpToDate or OutOfDate",
        )


def check_dates(start: int, end: int, now_s: int) -> None:
    """Every certificate, list and TCB statement is valid now; dcap-qvl refuses that as well.

    Raises:
        CollateralExpired: ``now_s`` is not from ``start`` to ``end`` (Unix times).
    """
    if not start <= now_s <= end:
        raise CollateralExpired(
            "the collateral is not valid at this time",
            got=format_utc(now_s),
            expected=f"from {format_utc(start)} to {format_utc(end)}",
        )


def check_attributes(tee_type: int, report: dict[str, Any]) -> None:
    """No debug bit is set, neither SGX's nor any under a trust domain's; dcap-qvl checks as well.

    An enclave's measurement does not cover its attributes, and whoever starts the same pages under
    a signature of his own chooses them: outside of 64-bit mode they are other instructions.

    Raises:
        DebugRefused: the enclave is debuggable.
        MeasurementRefused: the enclave is not in 64-bit mode.
    """
    if tee_type == 0:
        (attributes,) = bytes.fromhex(report["attributes"])[:1]
        debuggable = attributes & _DEBUG_SGX
    else:
        (attributes,) = bytes.fromhex(report["td_attributes"])[:1]
        debuggable = attributes & _TD_UNDER_DEBUG
    if debuggable:
        raise DebugRefused(
            "the enclave is debuggable: its host can read its memory", remedy=_PRODUCTION
        )
    needed = _INITIALISED | _MODE64
    if tee_type == 0 and attributes & needed != needed:
        raise MeasurementRefused(
            "the enclave does not run in 64-bit mode: the same bytes are other instructions there",
            got=f"attributes {attributes:#04x}",
            expected=f"bits {needed:#04x} set",
            remedy="start the enclave as its signer built it",
        )


def _tcb_date(qvl: _Qvl) -> int:
    """Of the oldest level that counts: the platform's and, if it is outdated, its quoting
    enclave's, which weighs on the status and not on dcap-qvl's date."""
    date = qvl.platform.tcb_date_tag
    level = qvl.qe.tcb_level
    return date if level.status == "UpToDate" else min(date, unix_time(level.date))


def _flatten(report: dict[str, Any]) -> dict[str, Any]:
    """Later trust domain reports hold the earlier one under ``base``."""
    base = report.get("base")
    return report | _flatten(base) if isinstance(base, dict) else report
