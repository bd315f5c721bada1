"""Certificates and revocation lists made to order, with any fault that a vendor's could have."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID, ObjectIdentifier

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
ISSUED = datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC)
#: A day after everything was issued.
NOW_S = int(ISSUED.timestamp()) + 86_400
VALIDITY = datetime.timedelta(days=365)


@cache
def new_key(name: str, kind: str = "p256") -> Key:
    """A key of a kind (``p256``, ``p384``, ``rsa``), the same for the same name.

    Elliptic ones are the same in every process, so that inputs kept by fuzzers stay what they were.
    """
    if kind == "rsa":
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    # Never zero, and below the order of either curve.
    number = 1 + int.from_bytes(hashlib.sha256(name.encode()).digest()[:31], "big")
    return ec.derive_private_key(number, ec.SECP256R1() if kind == "p256" else ec.SECP384R1())


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate and its key.

    Attributes:
        start, end: validity.
        extra: further extensions: dotted identifiers and DER; ``critical``: those of these that
            whoever does not know them must refuse.
        listed_at: where it says that its issuer's revocation list is.
    """

    name: str
    key: Key
    authority: bool = False
    path_length: int | None = None
    serial: int = 1000
    start: datetime.datetime = ISSUED
    end: datetime.datetime = ISSUED + VALIDITY
    extra: tuple[tuple[str, bytes], ...] = ()
    critical: tuple[str, ...] = ()
    listed_at: str = ""
    issuer: Issued | None = None

    @property
    def subject(self) -> x509.Name:
        """The name alone."""
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])

    def certificate(self) -> x509.Certificate:
        """The certificate, signed by its issuer or by itself."""
        return _sign(self, self.issuer or self)

    def with_(self, **changes: object) -> Issued:
        """The same with changes."""
        return replace(self, **changes)  # type: ignore[arg-type]


@cache
def _sign(made: Issued, issuer: Issued) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(made.subject)
        .issuer_name(issuer.subject)
        .public_key(made.key.public_key())
        .serial_number(made.serial)
        .not_valid_before(made.start)
        .not_valid_after(made.end)
        .add_extension(x509.BasicConstraints(made.authority, made.path_length), critical=True)
        .add_extension(_usage(authority=made.authority), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(made.key.public_key()), False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), False
        )
    )
    if made.listed_at:
        location = x509.UniformResourceIdentifier(made.listed_at)
        point = x509.DistributionPoint([location], None, None, None)
        builder = builder.add_extension(x509.CRLDistributionPoints([point]), False)
    for oid, value in made.extra:
        extension = x509.UnrecognizedExtension(ObjectIdentifier(oid), value)
        builder = builder.add_extension(extension, oid in made.critical)
    return builder.sign(issuer.key, _hash(issuer.key), rsa_padding=_padding(issuer.key))


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _hash(key: Key) -> SHA256 | SHA384:
    small = isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name == "secp256r1"
    return SHA256() if small else SHA384()


def _padding(key: Key) -> padding.PSS | None:
    if isinstance(key, rsa.RSAPrivateKey):
        return padding.PSS(padding.MGF1(SHA384()), salt_length=48)
    return None


def crl(
    issuer: Issued,
    *revoked: Issued,
    start: datetime.datetime = ISSUED,
    end: datetime.datetime = ISSUED + VALIDITY,
    signer: Issued | None = None,
    partial: bool = False,
) -> bytes:
    """A revocation list (DER) by an issuer.

    Args:
        signer: who signs in the issuer's name.
        partial: the list says that it is for authorities' certificates alone.
    """
    key = (signer or issuer).key
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(start)
        .next_update(end)
        .add_extension(x509.CRLNumber(1), False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), False
        )
    )
    if partial:
        scope = x509.IssuingDistributionPoint(None, None, False, True, None, False, False)
        builder = builder.add_extension(scope, critical=True)
    for made in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(made.serial).revocation_date(start)
        builder = builder.add_revoked_certificate(entry.build())
    signed = builder.sign(key, _hash(key), rsa_padding=_padding(key))
    return signed.public_bytes(Encoding.DER)


def pem(chain: Sequence[Issued]) -> str:
    """Certificates as PEM, in this order."""
    return "".join(made.certificate().public_bytes(Encoding.PEM).decode() for made in chain)


def der(tag: int, content: bytes) -> bytes:
    """Tag, length, value; lengths up to 65,535."""
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)) + content
    size = (length.bit_length() + 7) // 8
    return bytes((tag, 0x80 | size)) + length.to_bytes(size, "big") + content


def der_number(value: int) -> bytes:
    """A DER INTEGER that is not negative."""
    return der(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def der_oid(dotted: str) -> bytes:
    """A DER OBJECT IDENTIFIER."""
    first, second, *rest = map(int, dotted.split("."))
    encoded = bytearray([40 * first + second])
    for arc in rest:
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(arc & 0x7F | 0x80)
        encoded += bytes(reversed(groups))
    return der(0x06, bytes(encoded))
