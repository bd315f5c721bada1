"""AMD SEV-SNP attestation reports.

Layout and rules: AMD 56860, SEV Secure Nested Paging Firmware ABI, table ATTESTATION_REPORT; AMD
57230, VCEK Certificate and KDS Interface Specification (and 58369 for VLEK). The report's first
0x2A0 bytes are signed by a key of the chip (VCEK), or one that AMD loaded into it for a provider
(VLEK). That key's certificate names the firmware versions, and the chip, that it was made for.
"""

from __future__ import annotations

import struct
import uuid
import warnings
from collections.abc import Iterator
from typing import Literal, NoReturn, cast

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID, ObjectIdentifier

from vaultline.attest.chains import load_certificates, load_crls, order_chain, verify_chain
from vaultline.attest.claims import Claims, Product
from vaultline.attest.refusals import (
    CertificateRefused,
    ChipMismatch,
    CollateralMismatch,
    QuoteInvalid,
    QuoteTrailingBytes,
    SigningKeyMismatch,
    TcbMismatch,
)
from vaultline.attest.roots import AMD_ROOTS
from vaultline.core.errors import InputError
from vaultline.core.serde import Struct, from_json

REPORT_BYTES, SIGNED_BYTES = 0x4A0, 0x2A0
_R_AT, _S_AT, _NUMBER_BYTES, _SCALAR_BYTES = 0x2A0, 0x2E8, 72, 48
_SIGNATURE_ECDSA_P384 = 1
_KEYS = {0: "VCEK", 1: "VLEK"}
_DEBUG, _ALWAYS_SET = 1 << 19, 1 << 17
_MIGRATABLE, _SMT, _SINGLE_SOCKET = 1 << 18, 1 << 16, 1 << 20
_MASKED_KEY = 1 << 1
_REPORTED, _CURRENT = 0x180, 0x38
#: Versions besides the reported ones: to which the host may go back, and of the guest's launch.
_OTHER_TCBS = {"committed": 0x1E0, "launch": 0x1F0}
_OID = "1.3.6.1.4.1.3704.1."
_PRODUCT, _HARDWARE_ID, _PROVIDER_ID = _OID + "2", _OID + "4", _OID + "5"
#: Firmware part -> (arc of the certificate's extension, byte in the report's TCB version).
_TCB_OLD = {"boot_loader": (1, 0), "tee": (2, 1), "snp": (3, 6), "microcode": (8, 7)}
_TCB_TURIN = {
    "fmc": (9, 0),
    "boot_loader": (1, 1),
    "tee": (2, 2),
    "snp": (3, 3),
    "microcode": (8, 7),
}
#: Entries of the host's table: VCEK or VLEK, ASK or ASVK, ARK.
_GUIDS = tuple(
    uuid.UUID(text)
    for text in (
        "63da758d-e664-4564-adc5-f4b93be8accd",
        "a8074bc2-a25a-483e-aae6-39c045a0b8a1",
        "4ab7b379-bbac-4fe4-a02f-05aef327c782",
        "c0b406a4-a803-4952-9743-3fb6014cd0ae",
    )
)
#: CPUID family in reports from version 3 on.
_FAMILIES = {"Milan": 0x19, "Genoa": 0x19, "Turin": 0x1A}

#: Processors that AMD certifies under another family's keys (57230): of that family here.
_OF_FAMILY = {"Bergamo": "Genoa", "Siena": "Genoa"}


class AmdCollateral(Struct, frozen=True, kw_only=True):
    """What verifies a report besides the report.

    Attributes:
        kind: ``snp``.
        certificates: PEM: VCEK or VLEK first (unless the evidence carries it), ASK or ASVK, ARK.
        crls: revocation lists, DER in hex.
    """

    kind: Literal["snp"]
    certificates: str
    crls: tuple[str, ...] = ()


def tcb_parts(product: str) -> dict[str, tuple[int, int]]:
    """Where a product's firmware versions are: arc of the extension, byte of the TCB version."""
    return _TCB_TURIN if product == "Turin" else _TCB_OLD


def verify_snp(evidence: bytes, collateral: bytes, roots: frozenset[str], now_s: int) -> Claims:
    """Verify a report; see `verifiers.Verifier`."""
    report, carried = split_evidence(evidence)
    _check_form(report)
    given = from_json(collateral, AmdCollateral, what="the collateral") if collateral else None
    known = load_certificates(given.certificates) if given and given.certificates else []
    chain = order_chain([*carried, *known])
    held = verify_chain(chain, load_crls(given.crls if given else ()), roots, now_s)
    leaf = chain[0]
    key = _check_key(report, leaf)
    product = _product(leaf, held.root)
    tcb = _check_tcb(report, leaf, product)
    chip = report[0x1A0:0x1E0]
    if key == "VCEK":
        _check_chip(chip, leaf)
    _check_signature(report, leaf)
    policy = int.from_bytes(report[8:16], "little")
    version, guest_svn = struct.unpack_from("<II", report)
    return Claims(
        kind="snp",
        format=f"snp-report-{version}",
        root=held.root,
        chip=chip.hex() if any(chip) else "",
        product=product,
        measurements={
            "launch_digest": report[0x90:0xC0].hex(),
            "host_data": report[0xC0:0xE0].hex(),
            "id_key_digest": report[0xE0:0x110].hex(),
            "author_key_digest": report[0x110:0x140].hex(),
            "family_id": report[0x10:0x20].hex(),
            "image_id": report[0x20:0x30].hex(),
        },
        versions={"svn": guest_svn, "vmpl": int(struct.unpack_from("<I", report, 0x30)[0]), **tcb},
        report_data=report[0x50:0x90].hex(),
        debug=bool(policy & _DEBUG),
        tcb_status="Unrated",
        flags={
            "smt": _said(policy & _SMT),
            "migration": _said(policy & _MIGRATABLE),
            "multi-socket": _said(not policy & _SINGLE_SOCKET),
            "shared-key": _said(key == "VLEK"),
        },
        revocation_checked=held.revocation_checked,
        issued_s=held.issued_s,
        stated_s=held.stated_s,
        expires_s=held.expires_s,
    )


def _said(value: object) -> str:
    return "True" if value else "False"


def _check_form(report: bytes) -> None:
    if len(report) < REPORT_BYTES:
        raise QuoteInvalid(
            "not a SEV-SNP report: too short",
            got=f"{len(report)} bytes",
            expected=f"{REPORT_BYTES} bytes",
        )
    unsigned = (
        report[_R_AT + _SCALAR_BYTES : _S_AT]
        + report[_S_AT + _SCALAR_BYTES : _S_AT + _NUMBER_BYTES]
        + report[_S_AT + _NUMBER_BYTES : REPORT_BYTES]
    )
    if len(report) != REPORT_BYTES or any(unsigned):
        raise QuoteTrailingBytes(
            "the report has another length, or unsigned bytes that are not zero",
            got=f"{len(report)} bytes",
            expected=f"{REPORT_BYTES} bytes, zero after the signature",
        )
    version, algorithm = (
        struct.unpack_from("<I", report)[0],
        struct.unpack_from("<I", report, 0x34)[0],
    )
    if version not in (2, 3, 4, 5) or algorithm != _SIGNATURE_ECDSA_P384:
        raise QuoteInvalid(
            "a report of an unknown version or signature algorithm",
            got=f"version {version}, algorithm {algorithm}",
            expected="version 2 to 5, algorithm 1 (ECDSA P-384 with SHA-384)",
        )
    if not int.from_bytes(report[8:16], "little") & _ALWAYS_SET:
        raise QuoteInvalid("the guest policy lacks the bit that is always set")


def _check_key(report: bytes, leaf: x509.Certificate) -> str:
    """Which key signed, by the report and by the certificate's name, extensions and issuer."""
    (flags,) = struct.unpack_from("<I", report, 0x48)
    if flags & _MASKED_KEY:
        raise SigningKeyMismatch(
            "the report is signed by no key: its host has masked the chip's",
            remedy="the host must not mask chip keys (MASK_CHIP_KEY of SNP_CONFIG)",
        )
    said = _KEYS.get(flags >> 2 & 7, "none")
    names = [str(a.value) for a in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    issuers = [str(a.value) for a in leaf.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)]
    loaded = _extension(leaf, _PROVIDER_ID) is not None
    certified = "VLEK" if loaded else "VCEK"
    by_vlek = bool(issuers) and issuers[0].startswith("SEV-VLEK")
    if said != certified or names != [f"SEV-{certified}"] or by_vlek != loaded:
        raise SigningKeyMismatch(
            "the report is signed by another kind of key than was certified",
            got=f"report: {said}; certificate: {', '.join(names)} by {', '.join(issuers)}",
            expected="VCEK with the VCEK's certificates, or VLEK with the VLEK's",
        )
    return said


def _product(leaf: x509.Certificate, root: str) -> Product:
    """The family, which the leaf names; a root of AMD's is for one family alone."""
    text = _extension(leaf, _PRODUCT) or b""
    named = text[2:].decode("ascii", errors="replace").split("-")[0]
    product = _OF_FAMILY.get(named, named)
    if product not in AMD_ROOTS:
        _malformed("names no product", text)
    family = next((name for name, key_id in AMD_ROOTS.items() if key_id == root), product)
    if family != product:
        raise CollateralMismatch(
            "a root of one product family vouches for another", got=product, expected=family
        )
    return cast(Product, product)


def _check_tcb(report: bytes, leaf: x509.Certificate, product: str) -> dict[str, int]:
    """Reported versions equal the certificate's; neither they nor the committed ones are above the
    current. Returns all but the current, those that are not reported by ``committed_snp`` etc."""
    parts = tcb_parts(product)
    versions, current = _tcb(report, _REPORTED, parts), _tcb(report, _CURRENT, parts)
    certified = {name: _small(leaf, f"{_OID}3.{arc}") for name, (arc, _) in parts.items()}
    unused = set(range(8)) - {at for _, at in parts.values()}
    if versions != certified or any(report[_REPORTED + at] for at in unused):
        raise TcbMismatch(
            "the report's firmware is not what its key was certified for",
            got=_show(versions),
            expected=_show(certified),
        )
    others = {name: _tcb(report, at, parts) for name, at in _OTHER_TCBS.items()}
    for said in (versions, others["committed"]):
        if any(said[part] > current[part] for part in parts):
            raise TcbMismatch(
                "the report names firmware that is newer than the current",
                got=_show(said),
                expected=f"at most {_show(current)}",
            )
    if struct.unpack_from("<I", report)[0] >= 3 and report[0x188] != _FAMILIES[product]:
        raise CollateralMismatch(
            f"the report is of a processor that is no {product}", got=f"family {report[0x188]:#x}"
        )
    named = {f"{name}_{part}": n for name, tcb in others.items() for part, n in tcb.items()}
    return versions | named


def _tcb(report: bytes, at: int, parts: dict[str, tuple[int, int]]) -> dict[str, int]:
    return {name: report[at + byte] for name, (_, byte) in parts.items()}


def _check_chip(chip: bytes, leaf: x509.Certificate) -> None:
    certified = _extension(leaf, _HARDWARE_ID) or b""
    # Turin has 8 bytes, and zeros after them in the report.
    if len(certified) not in (8, 64) or not any(chip) or certified.ljust(64, b"\0") != chip:
        raise ChipMismatch(
            "the report names another chip than the certificate, or none",
            got=chip.hex(),
            expected=certified.hex(),
        )


def _check_signature(report: bytes, leaf: x509.Certificate) -> None:
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise CertificateRefused("the report's key is not of the curve P-384")
    r, s = (int.from_bytes(report[at : at + _NUMBER_BYTES], "little") for at in (_R_AT, _S_AT))
    try:
        key.verify(encode_dss_signature(r, s), report[:SIGNED_BYTES], ec.ECDSA(SHA384()))
    except InvalidSignature as error:
        raise QuoteInvalid("the report is not signed by the certified key") from error


def _extension(certificate: x509.Certificate, oid: str) -> bytes | None:
    try:
        found = certificate.extensions.get_extension_for_oid(ObjectIdentifier(oid)).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return None
    return found.value if isinstance(found, x509.UnrecognizedExtension) else None


def _small(certificate: x509.Certificate, oid: str) -> int:
    """A DER INTEGER from 0 to 255."""
    value = _extension(certificate, oid) or b""
    if len(value) not in (3, 4) or value[:2] != bytes((2, len(value) - 2)):
        _malformed(f"has no number under {oid}", value)
    number = int.from_bytes(value[2:], "big", signed=True)
    if not 0 <= number <= 255:
        _malformed(f"has a number out of range under {oid}", value)
    return number


def _show(versions: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def _malformed(what: str, value: bytes) -> NoReturn:
    raise CertificateRefused(f"the certificate of the report's key {what}", got=value.hex())


def split_evidence(evidence: bytes) -> tuple[bytes, list[x509.Certificate]]:
    """A report, and the certificates that follow it: PEM, or the host's table of certificates.

    The table (AMD 56421, GHCB, section 4.1.8) is what Linux gives as ``auxblob``; the host fills it
    in, so it may be missing or wrong. Zeros may follow it, up to the end of a page.

    Raises:
        QuoteTrailingBytes: something else follows the report.
    """
    report, rest = evidence[:REPORT_BYTES], evidence[REPORT_BYTES:]
    if not any(rest):
        return (report if len(rest) % 4096 == 0 else evidence), []
    try:
        if rest.startswith(b"-----BEGIN CERTIFICATE-----"):
            return report, load_certificates(rest.decode("ascii"))
        entries = list(_table(rest))
        by_key = {uuid.UUID(bytes=entry[0]): entry[1] for entry in entries}
        ders = [by_key[guid] for guid in _GUIDS if guid in by_key]
        return report, load_certificates("".join(_pem(der) for der in ders)) if ders else []
    except (InputError, UnicodeDecodeError, struct.error, ValueError) as error:
        raise QuoteTrailingBytes(
            "what follows the report is neither PEM nor a table of certificates",
            got=f"{len(rest)} bytes",
        ) from error


def _table(rest: bytes) -> Iterator[tuple[bytes, bytes]]:
    end = used = 0
    for at in range(0, len(rest), 24):
        guid, offset, size = struct.unpack_from("<16sII", rest, at)
        if not any(guid):
            end = at + 24
            break
        if not size or offset + size > len(rest):
            raise ValueError("an entry lies outside the table")
        used = max(used, offset + size)
        yield guid, rest[offset : offset + size]
    if not end or any(rest[max(end, used) :]):
        raise ValueError("bytes after the table")


def _pem(der: bytes) -> str:
    with warnings.catch_warnings():  # see `chains.load_certificates`
        warnings.simplefilter("ignore")
        loaded = x509.load_der_x509_certificate(der)
    return loaded.public_bytes(Encoding.PEM).decode()
