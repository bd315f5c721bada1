"""What Intel's rules ask of TCB info and QE identity and dcap-qvl leaves open.

Intel's verification library takes such statements from the TCB signing certificate alone, which
the root issues itself, and for the platform's own PCE. dcap-qvl 0.7 takes them from *any* leaf
under the root: whoever has the key of one platform's PCK certificate could rate platforms, his own
above all, and vouch for any quoting enclave. This comes after that library's checks of signatures
and replaces none.
"""

from __future__ import annotations

from typing import Any

import dcap_qvl
from cryptography import x509
from cryptography.x509.oid import ObjectIdentifier

from vaultline.attest.chains import load_certificates, load_crls
from vaultline.attest.intel_unlisted import Parts, unix_time
from vaultline.attest.refusals import CertificateRefused, CollateralMismatch, TcbRefused
from vaultline.core.serde import from_json

#: Marks certificates of single platforms (Intel, PCK Certificate and CRL Profile).
_PCK_OID = ObjectIdentifier("1.2.840.113741.1.13.1")
#: Forms of Intel's statements that are read here (Provisioning Certification Service, API 4).
_TCB_INFO_VERSION, _IDENTITY_VERSION = 3, 2
#: Fields of collateral that hold chains of certificates.
CHAINS = ("tcb_info_issuer_chain", "qe_identity_issuer_chain")


def check_statements(quote: bytes, collateral: bytes, root: x509.Certificate) -> int:
    """Refuse statements that another kind of certificate signed, or that are for another PCE.

    Args:
        quote, collateral: verified under ``root``; chains as `chains.to_pem` writes them.

    Returns:
        When the oldest statement that the vendor renews was issued (Unix time).

    Raises:
        CertificateRefused, CollateralMismatch, TcbRefused: as named.
        InputError: the collateral is not in the vendor's form.
    """
    fields = from_json(collateral, dict[str, Any], what="the collateral")
    for name in CHAINS:
        certificates = load_certificates(str(fields.get(name)))
        if not _may_sign(certificates[0], root):
            raise CertificateRefused(
                f"the certificate in {name} is not one that signs such statements",
                got=certificates[0].subject.rfc4514_string()[:200],
                expected="the vendor's TCB signing certificate, issued by the root itself",
            )
    statement = from_json(str(fields.get("tcb_info")).encode(), dict[str, Any], what="TCB info")
    identity = from_json(str(fields.get("qe_identity")).encode(), dict[str, Any], what="identity")
    _check_form(statement, identity, "TDX" if Parts(quote).tee_type else "SGX")
    if statement.get("tcbType") != 0:
        raise TcbRefused(
            "the collateral compares TCB levels in a way that is not known",
            got=f"tcbType {statement.get('tcbType')}",
            expected="tcbType 0",
        )
    pce_id = _pce_id(quote)
    if pce_id is None or str(statement.get("pceId")).lower() != pce_id:
        raise CollateralMismatch(
            "the collateral is for another provisioning enclave (PCE) than the platform's",
            got=str(statement.get("pceId")),
            expected=pce_id,
        )
    (listed,) = load_crls([str(fields.get("pck_crl"))])
    issued = (unix_time(str(each.get("issueDate"))) for each in (statement, identity))
    return min(*issued, int(listed.last_update_utc.timestamp()))


def _check_form(statement: dict[str, Any], identity: dict[str, Any], kind: str) -> None:
    """Both are of the forms that are read here, and of one kind; dcap-qvl takes any version of TCB
    info that looks alike."""
    forms = (
        (statement, (kind, _TCB_INFO_VERSION)),
        (identity, ("QE" if kind == "SGX" else "TD_QE", _IDENTITY_VERSION)),
    )
    for each, expected in forms:
        found = (each.get("id"), each.get("version"))
        if found != expected:
            raise CollateralMismatch(
                "the collateral holds a statement of another kind or version",
                got=f"{found[0]}, version {found[1]}",
                expected=f"{expected[0]}, version {expected[1]}",
                remedy="fetch the collateral again, from version 4 of the vendor's interface",
            )


def _may_sign(certificate: x509.Certificate, root: x509.Certificate) -> bool:
    """Of the root's own issue, no authority, and not of a platform."""
    extensions = certificate.extensions
    try:
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return False
    platform = any(extension.oid == _PCK_OID for extension in extensions)
    return certificate.issuer == root.subject and not constraints.ca and not platform


def _pce_id(quote: bytes) -> str | None:
    """As the platform's certificate says, in hex, if it does."""
    extension = dcap_qvl.parse_quote(quote).pck_extension()
    return None if extension is None else str(extension.pce_id.hex())
