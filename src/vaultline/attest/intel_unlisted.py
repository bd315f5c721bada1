"""Quotes of platforms below every TCB level that the vendor lists.

dcap-qvl has no claims for such a platform: it says that no level matches, after it has verified
all signatures. An owner may still want to accept one, by an explicit grace period. So that nothing
rests on the order of that library's checks, everything that the quote's claims rest on is verified
here once more, with `chains`: certificates, lists, collateral, quoting enclave, TDX module, quote.

The level that such a platform gets is the lowest one listed: its date is later than the platform's
own, and its advisories are the least that applies.
"""

from __future__ import annotations

import datetime
import hashlib
import struct
from collections.abc import Sequence
from typing import Any, NoReturn

import dcap_qvl
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from vaultline.attest.chains import load_certificates, load_crls, to_pem, verify_chain
from vaultline.attest.refusals import (
    CollateralExpired,
    CollateralMismatch,
    MigrationRefused,
    QuoteInvalid,
    QuotingEnclaveRefused,
    TcbRefused,
    VendorRefused,
)
from vaultline.attest.roots import root_key_id
from vaultline.attest.sgx_quote import QE_VENDOR_ID
from vaultline.core.errors import InputError
from vaultline.core.serde import canonical_json, from_json
from vaultline.core.units import format_utc

_FLAG_OIDS = {
    "dynamic_platform": "1.2.840.113741.1.13.1.7.1",
    "cached_keys": "1.2.840.113741.1.13.1.7.2",
    "smt_enabled": "1.2.840.113741.1.13.1.7.3",
}
_SEPT_VE_DISABLE = 1 << 28
#: That one, address separation (27), protection keys (30), key locker (31), performance
#: monitoring (63).
_TD_ATTRIBUTES = _SEPT_VE_DISABLE | 1 << 27 | 1 << 30 | 1 << 31 | 1 << 63
_MIGRATABLE = 1 << 29
_ECDSA_P256 = 2
_REPORT_NAMES = (
    *("attributes", "mr_enclave", "mr_signer", "report_data"),
    *("td_attributes", "seam_attributes", "mr_seam", "mr_signer_seam", "tee_tcb_svn"),
    *("mr_td", "mr_config_id", "rt_mr0", "rt_mr1", "rt_mr2", "rt_mr3"),
)


class Parts:
    """Where the signed parts of a quote are; `intel.check_length` has been through it."""

    def __init__(self, quote: bytes) -> None:
        (self.version,) = struct.unpack_from("<H", quote)
        self.key_type, self.tee_type = struct.unpack_from("<HI", quote, 2)
        self.vendor = quote[12:28]
        end = 48 + (384 if self.tee_type == 0 else 584)
        if self.version == 5:
            end = 54 + int(struct.unpack_from("<I", quote, 50)[0])
        self.signed = quote[:end]
        at = end + 4
        self.signature, self.key = quote[at : at + 64], quote[at + 64 : at + 128]
        at += 128 + (6 if self.version > 3 else 0)
        self.qe_report, self.qe_signature = quote[at : at + 384], quote[at + 384 : at + 448]
        (size,) = struct.unpack_from("<H", quote, at + 448)
        self.qe_auth = quote[at + 450 : at + 450 + size]
        at += 450 + size + 6
        self.chain = quote[at:].rstrip(b"\0").decode("ascii", errors="replace")


def explain_chain(quote: bytes, collateral: bytes, root: x509.Certificate, now_s: int) -> None:
    """Raise the refusal that says why a chain does not hold; return where this module sees none."""
    fields = _fields(collateral)
    crls = load_crls([str(fields["root_ca_crl"]), str(fields["pck_crl"])])
    for pem in (
        Parts(quote).chain,
        str(fields["tcb_info_issuer_chain"]),
        str(fields["qe_identity_issuer_chain"]),
    ):
        try:
            chain = load_certificates(pem)
        except InputError:
            continue
        verify_chain(chain, crls, frozenset({root_key_id(root)}), now_s)
        _check_lists(chain, crls)


def unlisted_claims(quote: bytes, collateral: bytes, root: x509.Certificate, now_s: int) -> bytes:
    """Verify all of it again, and give the claims in dcap-qvl's form (JSON).

    Raises:
        EvidenceRefused: anything does not hold, or a level does match after all.
        InputError: the collateral has another form than the vendor's.
    """
    try:
        return _claims(quote, collateral, root, now_s)
    except (KeyError, TypeError, ValueError, struct.error) as error:
        raise InputError("the collateral is not in the vendor's form", got=repr(error)) from error


def _claims(quote: bytes, collateral: bytes, root: x509.Certificate, now_s: int) -> bytes:
    parts, fields = Parts(quote), _fields(collateral)
    _check_header(parts)
    pck, span = _verify_signatures(parts, fields, root, now_s)
    tcb_info = from_json(str(fields["tcb_info"]).encode(), dict[str, Any], what="TCB info")
    identity = from_json(str(fields["qe_identity"]).encode(), dict[str, Any], what="QE identity")
    dates = [_span(tcb_info, now_s), _span(identity, now_s), span]
    extension = dcap_qvl.parse_pck_extension_from_pem(to_pem(pck).encode())
    if tcb_info["fmspc"].upper() != extension.fmspc.hex().upper():
        raise CollateralMismatch("the collateral is of another platform family")
    parsed = dcap_qvl.parse_quote(quote)
    rated = [_check_quoting_enclave(parts, identity)]
    if parts.tee_type:
        rated += _check_module(parsed.report, tcb_info)
        _check_domain(parsed.report)
    level = _lowest_level(tcb_info, extension, parsed.report if parts.tee_type else None)
    start, end = max(date[0] for date in dates), min(date[1] for date in dates)
    return canonical_json(
        {
            "header": {"version": parts.version},
            "tee_type": parts.tee_type,
            "tcb": {
                "status": "OutOfDate",
                "advisory_ids": _advisories([level, *rated]),
                "eval_data_number": min(
                    each["tcbEvaluationDataNumber"] for each in (tcb_info, identity)
                ),
            },
            "platform": {
                "pck": {
                    "ppid": list(extension.ppid),
                    "fmspc": list(extension.fmspc),
                    **{name: _flag(extension, oid) for name, oid in _FLAG_OIDS.items()},
                },
                "root_key_id": list(bytes.fromhex(root_key_id(pck[-1]))),
                "tcb_date_tag": min(unix_time(each["tcbDate"]) for each in (level, *rated[1:])),
            },
            # `_check_quoting_enclave` takes an enclave of an up-to-date level alone.
            "qe": {"tcb_level": {"tcbDate": level["tcbDate"], "tcbStatus": "UpToDate"}},
            "report": {"report": _report(parts, parsed.report)},
            "latest_issue_date": start,
            "earliest_expiration_date": end,
            "qe_iden_latest_issue_date": start,
            "qe_iden_earliest_expiration_date": end,
        }
    )


def _check_header(parts: Parts) -> None:
    if parts.vendor != QE_VENDOR_ID:
        raise VendorRefused("the quoting enclave is another vendor's", got=parts.vendor.hex())
    if parts.key_type != _ECDSA_P256:
        raise QuoteInvalid("the attestation key is not of ECDSA P-256", got=str(parts.key_type))


def _fields(collateral: bytes) -> dict[str, Any]:
    fields = from_json(collateral, dict[str, Any], what="the collateral")
    needed = ("root_ca_crl", "pck_crl", "tcb_info_issuer_chain", "qe_identity_issuer_chain")
    if any(name not in fields for name in needed):
        raise InputError("the collateral is not complete", expected=", ".join(needed))
    return fields


def _verify_signatures(
    parts: Parts, fields: dict[str, Any], root: x509.Certificate, now_s: int
) -> tuple[list[x509.Certificate], tuple[int, int]]:
    roots = frozenset({root_key_id(root)})
    crls = load_crls([str(fields["root_ca_crl"]), str(fields["pck_crl"])])
    pck = load_certificates(parts.chain)
    chains = [pck]
    for name in ("tcb_info", "qe_identity"):
        chain = load_certificates(str(fields[f"{name}_issuer_chain"]))
        chains.append(chain)
        signature = bytes.fromhex(str(fields[f"{name}_signature"]))
        _check_signature(chain[0].public_key(), signature, str(fields[name]).encode(), name)
    # Both statements have the same chain, as a rule.
    held = [verify_chain(chain, crls, roots, now_s) for chain in dict.fromkeys(map(tuple, chains))]
    _check_lists(pck, crls)
    _check_signature(pck[0].public_key(), parts.qe_signature, parts.qe_report, "QE report")
    bound = hashlib.sha256(parts.key + parts.qe_auth).digest()
    if parts.qe_report[320:352] != bound:
        raise QuoteInvalid("the quoting enclave vouches for another attestation key")
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\4" + parts.key)
    except ValueError as error:
        raise QuoteInvalid("the attestation key is not a point of its curve") from error
    _check_signature(key, parts.signature, parts.signed, "the quote")
    return pck, (max(v.issued_s for v in held), min(v.expires_s for v in held))


def _check_lists(
    chain: Sequence[x509.Certificate], crls: Sequence[x509.CertificateRevocationList]
) -> None:
    listing = {crl.issuer for crl in crls}
    if not {chain[0].issuer, chain[-1].subject} <= listing:
        raise CollateralMismatch(
            "a revocation list is by another authority than the platform's",
            got=", ".join(sorted(name.rfc4514_string()[:200] for name in listing)),
            expected=chain[0].issuer.rfc4514_string()[:200],
        )


def _check_signature(key: object, signature: bytes, data: bytes, what: str) -> None:
    r, s = signature[:32], signature[32:]
    try:
        if not isinstance(key, ec.EllipticCurvePublicKey) or len(signature) != 64:
            raise InvalidSignature
        encoded = encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))
        key.verify(encoded, data, ec.ECDSA(SHA256()))
    except InvalidSignature as error:
        raise QuoteInvalid(f"the signature of {what} is invalid") from error


def unix_time(text: str) -> int:
    """Of a moment as the vendor writes it."""
    return int(datetime.datetime.fromisoformat(text).timestamp())


def _span(statement: dict[str, Any], now_s: int) -> tuple[int, int]:
    start, end = unix_time(statement["issueDate"]), unix_time(statement["nextUpdate"])
    if not start <= now_s <= end:
        raise CollateralExpired(
            "the collateral is not valid at this time",
            got=format_utc(now_s),
            expected=f"from {format_utc(start)} to {format_utc(end)}",
        )
    return start, end


def _advisories(levels: Sequence[dict[str, Any]]) -> list[str]:
    """Of all levels together, as dcap-qvl gives those of a platform that is listed."""
    said = (name for level in levels for name in level.get("advisoryIDs") or [])
    return list(dict.fromkeys(said))


def _check_quoting_enclave(parts: Parts, identity: dict[str, Any]) -> dict[str, Any]:
    """Its level, which is up to date."""
    report = parts.qe_report
    expected = "QE" if parts.tee_type == 0 else "TD_QE"
    if identity["id"] != expected:
        raise CollateralMismatch("the identity is of another enclave", got=identity["id"])
    product, svn = struct.unpack_from("<HH", report, 256)
    right = (
        _masked(report[16:20][::-1], identity["miscselectMask"], identity["miscselect"])
        and _masked(report[48:64], identity["attributesMask"], identity["attributes"])
        and report[128:160].hex().upper() == identity["mrsigner"].upper()
        and product == identity["isvprodid"]
    )
    level = next((x for x in identity["tcbLevels"] if svn >= x["tcb"]["isvsvn"]), None)
    if not right or level is None or level["tcbStatus"] != "UpToDate":
        raise QuotingEnclaveRefused("the quote was signed by another or an outdated enclave")
    return dict(level)


def _masked(found: bytes, mask: str, expected: str) -> bool:
    pairs = zip(found, bytes.fromhex(mask), bytes.fromhex(expected), strict=True)
    return all(value & bits == wanted & bits for value, bits, wanted in pairs)


def _check_module(report: Any, tcb_info: dict[str, Any]) -> list[dict[str, Any]]:
    """The TDX module is one of the vendor's, and up to date (Intel, TDX TCB info v3); its level,
    where it has one of its own."""
    levels: list[dict[str, Any]] = []
    svn, version = report.tee_tcb_svn[0], report.tee_tcb_svn[1]
    module = tcb_info["tdxModule"]
    if version:
        named = [m for m in tcb_info["tdxModuleIdentities"] if m["id"] == f"TDX_{version:02X}"]
        if not named:
            raise TcbRefused("the TDX module is of an unknown version", got=str(version))
        module = named[0]
        level = next((x for x in module["tcbLevels"] if svn >= x["tcb"]["isvsvn"]), None)
        if level is None or level["tcbStatus"] != "UpToDate":
            raise TcbRefused("the TDX module is out of date", got=f"version {version}, SVN {svn}")
        levels.append(level)
    signer, attributes = report.mr_signer_seam.hex(), report.seam_attributes
    if signer != module["mrsigner"].lower() or not _masked(
        attributes, module["attributesMask"], module["attributes"]
    ):
        raise TcbRefused("the TDX module is not the vendor's", got=signer)
    return levels


def _check_domain(report: Any) -> None:
    """Attributes of the trust domain as dcap-qvl wants them; debug is looked at later."""
    attributes = int.from_bytes(report.td_attributes, "little") & ~0xFF
    if attributes & _MIGRATABLE:
        raise MigrationRefused("the trust domain may be moved to another machine")
    if attributes & ~_TD_ATTRIBUTES or not attributes & _SEPT_VE_DISABLE:
        raise QuoteInvalid("the trust domain has unknown or unsafe attributes", got=hex(attributes))
    if any(getattr(report, "mr_service_td", b"")):
        raise QuoteInvalid("the trust domain is bound to a service domain")


def _lowest_level(tcb_info: dict[str, Any], extension: Any, td: Any | None) -> dict[str, Any]:
    """The last listed level; refused if the platform reaches any, since dcap-qvl saw none."""
    for level in tcb_info["tcbLevels"]:
        tcb = level["tcb"]
        found = [*extension.cpu_svn, extension.pce_svn]
        needed = [*(c["svn"] for c in tcb["sgxtcbcomponents"]), tcb["pcesvn"]]
        if td is not None:
            # The first two say which TDX module it is, which `_check_module` has rated.
            skip = 2 if td.tee_tcb_svn[1] else 0
            found += list(td.tee_tcb_svn)[skip:]
            needed += [c["svn"] for c in tcb["tdxtcbcomponents"]][skip:]
        if all(a >= b for a, b in zip(found, needed, strict=True)):
            _disagree()
    if not tcb_info["tcbLevels"]:
        raise TcbRefused("the vendor lists no TCB level for this platform")
    revoked = [x["tcbDate"] for x in tcb_info["tcbLevels"] if x["tcbStatus"] == "Revoked"]
    if revoked:
        raise TcbRefused(
            "the platform is below a TCB level that the vendor has revoked",
            got=f"every listed level is higher, and that of {max(revoked)} is revoked",
            remedy="update the platform's firmware; no grace covers a revoked level",
        )
    return dict(tcb_info["tcbLevels"][-1])


def _disagree() -> NoReturn:
    raise TcbRefused(
        "no TCB level of the platform could be agreed on",
        remedy="fetch the collateral again; report it if that does not help",
    )


def _flag(extension: Any, oid: str) -> str:
    value = extension.get_value(oid)
    if not value:
        return "Undefined"
    return "True" if value[-1] else "False"


def _report(parts: Parts, report: Any) -> dict[str, Any]:
    present = [name for name in _REPORT_NAMES if hasattr(report, name)]
    found: dict[str, Any] = {name: getattr(report, name).hex() for name in present}
    if parts.tee_type == 0:
        found["isv_prod_id"], found["isv_svn"] = struct.unpack_from("<HH", parts.signed, 48 + 256)
    return found
