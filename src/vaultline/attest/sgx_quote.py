"""SGX v3 quotes from given keys: what a simulated enclave presents as evidence.

Layouts: Intel SGX ECDSA QuoteLibReference, appendix A. On real hardware the processor fills in
the report body and the quoting enclave signs it; here whoever holds a `Platform` does both, so such
a quote proves possession of that file and nothing more. That is why its root is a development root.
"""

from __future__ import annotations

import struct

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from vaultline.core.errors import InputError
from vaultline.core.serde import Struct

#: Intel's quoting enclave; verifiers know no other vendor.
QE_VENDOR_ID = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
ATTRIBUTE_INIT, ATTRIBUTE_DEBUG, ATTRIBUTE_MODE64 = 0x1, 0x2, 0x4
_KEY_TYPE_ECDSA_P256 = 2
_CERTIFICATION_PCK_CHAIN = 5
_HEADER = struct.Struct("<HHIHH16s20s")
_BODY = struct.Struct("<16sI28xQQ32s32x32s96xHH60x64s")
BODY_BYTES = _BODY.size


class Platform(Struct, frozen=True, kw_only=True):
    """What a processor would hold in fuses and its quoting enclave: enough to forge evidence.

    Attributes:
        attestation_key: P-256 private scalar, 32 bytes big endian.
        qe_report: report body of the quoting enclave that certifies the attestation key.
        qe_report_signature: by the platform's provisioning certification key (PCK).
        qe_auth_data: 32 bytes, hashed with the attestation key into ``qe_report``.
        pck_chain: PEM certificates: PCK, its authority, the development root.
    """

    version: int
    attestation_key: bytes
    qe_report: bytes
    qe_report_signature: bytes
    qe_auth_data: bytes
    pck_chain: str

    def __post_init__(self) -> None:
        parts = (self.attestation_key, self.qe_report, self.qe_report_signature, self.qe_auth_data)
        sizes = tuple(map(len, parts))
        if self.version != 1 or sizes != (32, BODY_BYTES, 64, 32):
            raise InputError(
                "not a simulated platform of this version",
                remedy="make one with `vaultline devroot`",
            )

    def __repr__(self) -> str:
        return "Platform(keys hidden)"


def report_body(
    *,
    measurement: bytes,
    report_data: bytes,
    signer: bytes = bytes(32),
    attributes: int = ATTRIBUTE_INIT | ATTRIBUTE_MODE64,
    product_id: int = 0,
    svn: int = 0,
) -> bytes:
    """The 384 bytes that a processor would report of an enclave.

    MRENCLAVE and MRSIGNER have 32 bytes; up to 64 bytes of report data are filled with zeros.
    """
    if len(measurement) != 32 or len(signer) != 32 or len(report_data) > 64:
        raise InputError("a report body takes 32, 32 and at most 64 bytes")
    cpu_svn, misc_select, xfrm = bytes(16), 0, 0x3
    head = (cpu_svn, misc_select, attributes, xfrm)
    return _BODY.pack(*head, measurement, signer, product_id, svn, report_data)


def raw_signature(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """ECDSA P-256 with SHA-256 as r and s, 32 bytes each, big endian."""
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def raw_public_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """x and y, 32 bytes each, big endian."""
    numbers = key.public_key().public_numbers()
    return numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")


def build_quote(platform: Platform, body: bytes) -> bytes:
    """Sign a report body with a platform's keys."""
    key = ec.derive_private_key(int.from_bytes(platform.attestation_key, "big"), ec.SECP256R1())
    header = _HEADER.pack(3, _KEY_TYPE_ECDSA_P256, 0, 0, 0, QE_VENDOR_ID, bytes(20))
    chain = platform.pck_chain.encode("ascii")
    signed = raw_signature(key, header + body) + raw_public_key(key)
    certified = platform.qe_report + platform.qe_report_signature
    auth_data = struct.pack("<H", len(platform.qe_auth_data)) + platform.qe_auth_data
    certificates = struct.pack("<HI", _CERTIFICATION_PCK_CHAIN, len(chain)) + chain
    authentication = signed + certified + auth_data + certificates
    return header + body + struct.pack("<I", len(authentication)) + authentication
