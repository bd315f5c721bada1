"""Chains of certificates and revocation lists (RFC 5280, the parts that evidence needs).

Roots are pinned by key id, names and signatures are followed from leaf to root, every certificate
and list must be valid at the stated time, and issuers must be allowed to issue.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID, NameOID

from vaultline.attest.refusals import (
    CertificateRefused,
    CertificateRevoked,
    CollateralExpired,
    RootRefused,
)
from vaultline.attest.roots import SELF_SIGNED, root_key_id
from vaultline.core.errors import InputError
from vaultline.core.units import format_utc

#: NVIDIA's chains have five certificates, AMD's three.
CERTIFICATES_MAX = 16
CRLS_MAX = 16
_HELD_MAX = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """A chain that holds.

    Attributes:
        root: key id.
        issued_s, expires_s: all of it is valid from and until (Unix times).
        stated_s: when the oldest list was issued; ``issued_s`` where there is none.
        revocation_checked: see `verify_chain`.
    """

    root: str
    issued_s: int
    stated_s: int
    expires_s: int
    revocation_checked: bool


def load_certificates(text: str) -> list[x509.Certificate]:
    """Read PEM certificates, in the order given.

    Raises:
        InputError: none, too many, or not certificates.
    """
    return list(_parsed(text))


def to_pem(chain: Sequence[x509.Certificate]) -> str:
    """Certificates as PEM and nothing else, in this order."""
    return "".join(each.public_bytes(Encoding.PEM).decode() for each in chain)


@lru_cache(maxsize=8)
def _parsed(text: str) -> tuple[x509.Certificate, ...]:
    """Certificates of a text; those of collateral are the same at each verification, and what has
    been looked up in a certificate stays with it."""
    with warnings.catch_warnings():  # AMD numbers chip certificates 0, which RFC 5280 forbids
        warnings.simplefilter("ignore")
        try:
            found = x509.load_pem_x509_certificates(text.encode("ascii", errors="replace"))
        except (ValueError, x509.InvalidVersion) as error:
            raise InputError("not PEM certificates", got=str(error)) from error
    if len(found) > CERTIFICATES_MAX:
        raise InputError("too many certificates", got=str(len(found)))
    return tuple(found)


def order_chain(pool: Sequence[x509.Certificate]) -> list[x509.Certificate]:
    """The first certificate that issued none of the others and is no authority, and its issuers up
    to one that issued itself. Hosts give authorities alone, or certificates in any order.

    Names decide, and the signature among several of one name; this proves nothing: `verify_chain`
    does.
    """
    unused = [c for c in pool if not any(o.issuer == c.subject for o in pool)]
    leaves = [*(c for c in unused if not is_authority(c)), *unused, *pool]
    chain = leaves[:1]
    while chain and chain[-1].issuer != chain[-1].subject and len(chain) <= len(pool):
        found = [c for c in dict.fromkeys(pool) if c.subject == chain[-1].issuer]
        if not found:
            break
        several = found if len(found) > 1 else ()
        chain.append(next((c for c in several if _is_issuer(c, chain[-1])), found[0]))
    return chain


def check_linked(chain: Sequence[x509.Certificate]) -> None:
    """Refuse certificates of which one is not signed by the next and names it, the last by itself.

    A library may take more for granted of what it is given: dcap-qvl ends the process where its
    trust anchor has the vendor's key under another name.

    Raises:
        CertificateRefused: naming the first such.
    """
    for certificate, issuer in zip(chain, [*chain[1:], chain[-1]], strict=True):
        _check_signed(certificate, issuer)


def is_authority(certificate: x509.Certificate) -> bool:
    """It says that it may issue others; whether anybody vouches for that is not looked at."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _is_issuer(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def load_crls(texts: Sequence[str]) -> list[x509.CertificateRevocationList]:
    """Read revocation lists, each as DER in hex.

    Raises:
        InputError: too many, or not revocation lists.
    """
    if len(texts) > CRLS_MAX:
        raise InputError("too many revocation lists", got=str(len(texts)))
    try:
        return [x509.load_der_x509_crl(bytes.fromhex(text)) for text in texts]
    except ValueError as error:
        raise InputError("not a revocation list (DER in hex)", got=str(error)) from error


def verify_chain(
    chain: Sequence[x509.Certificate],
    crls: Sequence[x509.CertificateRevocationList],
    roots: frozenset[str],
    now_s: int,
) -> Verified:
    """Check a chain from leaf to root.

    A list by an issuer is used for every certificate that it issued. ``revocation_checked`` says
    that there is a current list by the root, and by each issuer of a certificate that says where
    its list is (``cRLDistributionPoints``): vendors publish none for keys that stay in a chip.

    Args:
        chain: leaf first, root last.
        crls: by any of the issuers; others are ignored.
        roots: accepted key ids.
        now_s: Unix time.

    Raises:
        RootRefused, CertificateRefused, CertificateRevoked, CollateralExpired: as named.
    """
    if len(chain) < 2:
        raise CertificateRefused("the chain has no issuer", got=f"{len(chain)} certificates")
    root = chain[-1]
    if root_key_id(root) not in roots:
        raise RootRefused(
            "the certificates lead to a root that the policy does not name",
            got=f"{_name(root)}, key id {root_key_id(root)}",
            expected=", ".join(sorted(roots)),
        )
    for depth, (certificate, issuer) in enumerate(zip(chain, [*chain[1:], root], strict=True)):
        _check_issued(certificate, issuer, min(depth, len(chain) - 2))
    issued_s = max(int(c.not_valid_before_utc.timestamp()) for c in chain)
    expires_s = min(int(c.not_valid_after_utc.timestamp()) for c in chain)
    listed = [pair for crl in crls if (pair := _current(crl, chain[1:], now_s))]
    for issuer, crl in listed:
        _check_revoked(chain, issuer, crl)
        issued_s = max(issued_s, int(crl.last_update_utc.timestamp()))
        if crl.next_update_utc is not None:
            expires_s = min(expires_s, int(crl.next_update_utc.timestamp()))
    if not issued_s <= now_s <= expires_s:
        raise CollateralExpired(
            "a certificate or revocation list is not valid at this time",
            got=format_utc(now_s),
            expected=f"from {format_utc(issued_s)} to {format_utc(expires_s)}",
        )
    listing = {issuer.subject for issuer, _ in listed}
    stated = [int(crl.last_update_utc.timestamp()) for _, crl in listed]
    top = root.subject
    needed = {name for c in chain if (name := c.issuer) == top or _points_to_list(c)}
    return Verified(
        root=root_key_id(root),
        issued_s=issued_s,
        stated_s=min(stated, default=issued_s),
        expires_s=expires_s,
        revocation_checked=needed <= listing,
    )


def _name(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string()[:200]


def _check_issued(certificate: x509.Certificate, issuer: x509.Certificate, below: int) -> None:
    """``below``: how many authorities there are between the issuer and the leaf."""
    try:
        constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
        longest = constraints.path_length
        may_issue = constraints.ca and usage.key_cert_sign and (longest is None or below <= longest)
    except (x509.ExtensionNotFound, ValueError):
        may_issue = False
    if not may_issue:
        raise CertificateRefused("an issuer may not issue certificates", got=_name(issuer))
    _check_signed(certificate, issuer)


def _check_signed(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    try:
        _verify_issued(certificate, issuer)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise CertificateRefused(
            "a certificate is not signed by the next one",
            got=_name(certificate),
            expected=f"signed by {_name(issuer)}",
        ) from error


def _check_critical(
    signed: x509.Certificate | x509.CertificateRevocationList, named: x509.Certificate
) -> None:
    """RFC 5280: what is critical and not understood refuses. Such lists may be partial ones."""
    unknown = [e.oid.dotted_string for e in signed.extensions if e.critical and e.oid not in _READ]
    if unknown:
        raise CertificateRefused(
            "a certificate or revocation list has critical extensions that are not known",
            got=f"{_name(named)}: {', '.join(unknown)}",
        )


#: Critical extensions that are looked at.
_READ = frozenset({ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE})
#: Certificates that hold under these issuers (exact bytes of both), by age.
_held: dict[tuple[x509.Certificate, x509.Certificate], None] = {}


def _verify_issued(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    """Signature, names and critical extensions. Only success is remembered, and of equal bytes: a
    vendor's authorities are the same for each of its devices, and P-384 takes half a millisecond a
    signature or more. Dates, revocation and the right to issue depend on time and place, and are
    always looked at."""
    pair = certificate, issuer
    if pair in _held or (certificate == issuer and _is_known_root(certificate)):
        return
    _check_critical(certificate, certificate)
    _check_whole(certificate)
    certificate.verify_directly_issued_by(issuer)
    while len(_held) >= _HELD_MAX:
        _held.pop(next(iter(_held), pair), None)
    _held[pair] = None


def _check_whole(signed: x509.Certificate | x509.CertificateRevocationList) -> None:
    """The signature is of whole bytes: how many of its last bits don't count is in no signed part,
    and passed over by the library.

    Raises:
        CertificateRefused: it is not.
    """
    if not signed.public_bytes(Encoding.DER).endswith(b"\0" + signed.signature):
        raise CertificateRefused("a signature has bits that do not count")


def _is_known_root(certificate: x509.Certificate) -> bool:
    return certificate.fingerprint(SHA256()).hex() in SELF_SIGNED


@lru_cache(maxsize=64)
def _is_signed(crl: bytes, issuer: x509.Certificate) -> bool:
    """Whether a list (DER) is signed by its issuer; remembered like `_verify_issued`."""
    loaded = x509.load_der_x509_crl(crl)
    _check_critical(loaded, issuer)
    _check_whole(loaded)
    return bool(loaded.is_signature_valid(issuer.public_key()))  # type: ignore[arg-type]


def forget_chains(*, devices_only: bool = False) -> None:
    """Forget which certificates and lists have been verified; for measuring.

    Args:
        devices_only: keep what was verified of a vendor's authorities, as if another of its
            devices came: forget leaves, and issuers that have a serial number in their names, as
            keys of single chips do.
    """
    _parsed.cache_clear()
    if not devices_only:
        _held.clear()
        _is_signed.cache_clear()
    issuers = {issuer for certificate, issuer in _held if certificate != issuer}
    for certificate, issuer in list(_held):
        serial = certificate.subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER)
        if certificate not in issuers or serial:
            del _held[certificate, issuer]


def _current(
    crl: x509.CertificateRevocationList, issuers: Sequence[x509.Certificate], now_s: int
) -> tuple[x509.Certificate, x509.CertificateRevocationList] | None:
    name = crl.issuer
    issuer = next((c for c in issuers if c.subject == name), None)
    if issuer is None:
        return None
    if not _is_signed(crl.public_bytes(Encoding.DER), issuer):
        raise CertificateRefused("a revocation list is not signed by its issuer", got=_name(issuer))
    if crl.next_update_utc is None:
        raise CollateralExpired("a revocation list has no end of validity", got=_name(issuer))
    if not crl.last_update_utc.timestamp() <= now_s <= crl.next_update_utc.timestamp():
        issued = format_utc(crl.last_update_utc.timestamp())
        ends = format_utc(crl.next_update_utc.timestamp())
        raise CollateralExpired(
            "a revocation list is not valid at this time",
            got=format_utc(now_s),
            expected=f"from {issued} to {ends}",
        )
    return issuer, crl


def _check_revoked(
    chain: Sequence[x509.Certificate],
    issuer: x509.Certificate,
    crl: x509.CertificateRevocationList,
) -> None:
    subject = issuer.subject
    for certificate in chain:
        if certificate.issuer != subject:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            number = certificate.serial_number
        if crl.get_revoked_certificate_by_serial_number(number) is not None:
            raise CertificateRevoked(
                "a certificate has been revoked",
                got=f"{_name(certificate)}, serial {number:x}",
            )


def _points_to_list(certificate: x509.Certificate) -> bool:
    try:
        certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints)
    except x509.ExtensionNotFound:
        return False
    return True


def der_hex(crl: x509.CertificateRevocationList) -> str:
    """A list as collateral carries it."""
    return crl.public_bytes(Encoding.DER).hex()
