"""Attestation reports of NVIDIA Hopper GPUs in confidential mode.

A report is the SPDM 1.1 transcript (DMTF DSP0274) of one GET_MEASUREMENTS request with the
requester's nonce and the MEASUREMENTS response, signed with ECDSA P-384 and SHA-384 by a key whose
certificate ends in NVIDIA's device identity root. Names of the opaque fields: NVIDIA nvtrust.
Without the vendor's signed reference manifests, the reference values are the owner's own.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.x509.oid import ObjectIdentifier

from vaultline.attest.chains import load_certificates, load_crls, order_chain, verify_chain
from vaultline.attest.claims import Claims
from vaultline.attest.refusals import (
    CertificateRefused,
    ChipMismatch,
    QuoteInvalid,
    QuoteTrailingBytes,
)
from vaultline.core.errors import InputError
from vaultline.core.serde import Struct, from_json

#: SPDM version, GET_MEASUREMENTS, signature requested, all measurements; nonce; slot.
_REQUEST_HEAD, _REQUEST_BYTES = bytes.fromhex("11e001ff"), 37
_RESPONSE_HEAD = bytes.fromhex("1160")
_SIGNATURE_BYTES, _DIGEST_BYTES = 96, 48
_DRIVER, _VBIOS, _FWID = 3, 6, 20
_FWID_OID = "2.23.133.5.4.1"


class NvidiaCollateral(Struct, frozen=True, kw_only=True):
    """What verifies a report besides the report.

    Attributes:
        kind: ``nvidia``.
        certificates: PEM, from the device's to the root.
        crls: revocation lists, DER in hex.
    """

    kind: Literal["nvidia"]
    certificates: str
    crls: tuple[str, ...] = ()


def verify_nvidia(evidence: bytes, collateral: bytes, roots: frozenset[str], now_s: int) -> Claims:
    """Verify a report; see `verifiers.Verifier`."""
    report, carried = split_evidence(evidence)
    measurements, opaque = _parse(report)
    given = from_json(collateral, NvidiaCollateral, what="the collateral") if collateral else None
    known = load_certificates(given.certificates) if given and given.certificates else []
    chain = order_chain([*carried, *known])
    held = verify_chain(chain, load_crls(given.crls if given else ()), roots, now_s)
    leaf = chain[0]
    _check_signature(report, leaf)
    _check_firmware(opaque.get(_FWID, b""), leaf)
    return Claims(
        kind="nvidia",
        format="nvidia-hopper-report",
        root=held.root,
        chip=f"{leaf.serial_number:x}",
        product="Hopper",
        measurements={
            "driver": opaque.get(_DRIVER, b"").rstrip(b"\0").decode("ascii", errors="replace"),
            "vbios": _vbios(opaque.get(_VBIOS, b"")),
            **{f"m{index:02}": digest.hex() for index, digest in measurements.items()},
        },
        versions={},
        report_data=report[4:36].hex(),
        debug=False,
        tcb_status="Unrated",
        flags={},
        revocation_checked=held.revocation_checked,
        issued_s=held.issued_s,
        stated_s=held.stated_s,
        expires_s=held.expires_s,
    )


def _parse(report: bytes) -> tuple[dict[int, bytes], dict[int, bytes]]:
    """Measurements by index and opaque fields by type; exactly as long as it says."""
    if report[:4] != _REQUEST_HEAD or report[_REQUEST_BYTES : _REQUEST_BYTES + 2] != _RESPONSE_HEAD:
        raise QuoteInvalid("not an SPDM 1.1 request for all measurements and its response")
    try:
        blocks = report[_REQUEST_BYTES + 4]
        record_bytes = int.from_bytes(report[_REQUEST_BYTES + 5 : _REQUEST_BYTES + 8], "little")
        record_at = _REQUEST_BYTES + 8
        record = report[record_at : record_at + record_bytes]
        opaque_at = record_at + record_bytes + 32
        (opaque_bytes,) = struct.unpack_from("<H", report, opaque_at)
        opaque = report[opaque_at + 2 : opaque_at + 2 + opaque_bytes]
        end = opaque_at + 2 + opaque_bytes + _SIGNATURE_BYTES
        if len(report) != end:
            raise QuoteTrailingBytes(
                "the report is not as long as it says",
                got=f"{len(report)} bytes",
                expected=f"{end} bytes",
            )
        measurements = _blocks(record)
        if len(measurements) != blocks:
            raise QuoteInvalid("the report has another number of measurements than it says")
        fields = list(_fields(opaque))
        if len(dict(fields)) != len(fields):
            raise QuoteInvalid("an opaque field occurs twice")
        return measurements, dict(fields)
    except (IndexError, struct.error) as error:
        raise QuoteInvalid("not a report: too short", got=f"{len(report)} bytes") from error


def _blocks(record: bytes) -> dict[int, bytes]:
    """Measurement blocks (DSP0274, table of DMTF measurement specification): digests only."""
    found: dict[int, bytes] = {}
    at = 0
    while at < len(record):
        index, specification, size, _, digest_bytes = struct.unpack_from("<BBHBH", record, at)
        digest = record[at + 7 : at + 7 + digest_bytes]
        if specification != 1 or size != digest_bytes + 3 or len(digest) != _DIGEST_BYTES:
            raise QuoteInvalid("a measurement is not a SHA-384 digest", got=f"block {index}")
        if index in found:
            raise QuoteInvalid("a measurement occurs twice", got=f"block {index}")
        found[index] = digest
        at += 4 + size
    return found


def _fields(opaque: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(opaque):
        kind, size = struct.unpack_from("<HH", opaque, at)
        at += 4 + size
        if at > len(opaque):
            raise QuoteInvalid("an opaque field is longer than what holds it")
        yield kind, opaque[at - size : at]


def _check_signature(report: bytes, leaf: x509.Certificate) -> None:
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise CertificateRefused("the report's key is not of the curve P-384")
    signature = report[-_SIGNATURE_BYTES:]
    r, s = (int.from_bytes(half, "big") for half in (signature[:48], signature[48:]))
    try:
        signed = report[:-_SIGNATURE_BYTES]
        key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(SHA384()))
    except InvalidSignature as error:
        raise QuoteInvalid("the report is not signed by the certified key") from error


def _check_firmware(digest: bytes, leaf: x509.Certificate) -> None:
    """The report's firmware id is in the certificate (TCG DICE), which that firmware's key has."""
    try:
        oid = ObjectIdentifier(_FWID_OID)
        certified = leaf.extensions.get_extension_for_oid(oid).value.public_bytes()
    except x509.ExtensionNotFound:
        certified = b""
    if len(digest) != _DIGEST_BYTES or not certified.endswith(digest):
        raise ChipMismatch(
            "the report names other firmware than the certificate of its key",
            got=digest.hex(),
        )


def _vbios(value: bytes) -> str:
    """Eight bytes as the vendor writes them, such as ``96.00.9F.00.01``."""
    if len(value) != 8:
        return value.hex()
    low, high = value[:4][::-1].hex(), value[4:][::-1].hex()
    text = high[-2:] and (low + high[-2:]).upper()
    return ".".join(text[at : at + 2] for at in range(0, len(text), 2))


def split_evidence(evidence: bytes) -> tuple[bytes, list[x509.Certificate]]:
    """A report, and the PEM certificates that follow it, if any do.

    Raises:
        QuoteTrailingBytes: what follows is not PEM certificates.
    """
    at = evidence.find(b"-----BEGIN CERTIFICATE-----")
    if at < 0:
        return evidence, []
    try:
        return evidence[:at], load_certificates(evidence[at:].decode("ascii"))
    except (UnicodeDecodeError, InputError) as error:
        raise QuoteTrailingBytes("what follows the report is not PEM certificates") from error
