"""Collateral bundles: everything that verification needs besides the evidence, in one file.

A bundle holds statements for several platforms and kinds. Which one is for some evidence is found
by trying: one for another platform is refused as such, so a wrong one never lets anything pass.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

from cryptography import x509

from vaultline.attest.chains import der_hex, is_authority, to_pem
from vaultline.core.errors import InputError
from vaultline.core.serde import Struct, canonical_json, from_json

#: One bundle serves a fleet, not the world.
ITEMS_MAX = 256
_INTEL_FIELDS = ("tcb_info", "tcb_info_issuer_chain", "qe_identity", "root_ca_crl", "pck_crl")


class Item(Struct, frozen=True, kw_only=True):
    """Collateral for one platform.

    Attributes:
        kind: of the evidence that it is for.
        collateral: as its verifier takes it.
    """

    kind: Literal["simulated", "sgx", "tdx", "snp", "nvidia"]
    collateral: dict[str, Any]


class Bundle(Struct, frozen=True, kw_only=True):
    """What ``vaultline collateral pack`` writes."""

    bundle: Literal["vaultline collateral"]
    version: Literal[1]
    items: tuple[Item, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.items) <= ITEMS_MAX:
            raise InputError(f"a bundle has 1 to {ITEMS_MAX} items", got=str(len(self.items)))


def candidates(kind: str, text: bytes) -> tuple[bytes, ...]:
    """The collateral in a file that may be for evidence of this kind: a bundle's, or the file.

    Raises:
        InputError: the file is a bundle and has none of this kind, or is not JSON.
    """
    loose = from_json(text, dict[str, Any], what="the collateral")
    if "bundle" not in loose:
        return (text,)
    bundle = from_json(text, Bundle, what="the collateral bundle")
    found = tuple(canonical_json(i.collateral) for i in bundle.items if i.kind == kind)
    if not found:
        raise InputError(
            f"the bundle has no collateral for `{kind}`",
            got=", ".join(sorted({item.kind for item in bundle.items})),
            remedy="pack it: vaultline collateral pack",
        )
    return found


def items_of_certificates(
    kind: Literal["snp", "nvidia"], files: Sequence[bytes]
) -> tuple[Item, ...]:
    """Collateral of certificates and revocation lists, each PEM or DER, in any order: an item for
    each device's certificate, with all authorities and lists; or one of these alone.

    Raises:
        InputError: one of them is neither.
    """
    certificates: list[x509.Certificate] = []
    lists: list[str] = []
    for data in files:
        more, crls = _read(data)
        certificates += more
        lists += crls
    devices = [c for c in dict.fromkeys(certificates) if not is_authority(c)]
    authorities = [c for c in certificates if c not in devices]
    chains = [[device, *authorities] for device in devices] or [authorities]
    return tuple(
        Item(kind=kind, collateral={"kind": kind, "certificates": to_pem(chain), "crls": lists})
        for chain in chains
    )


def _read(data: bytes) -> tuple[list[x509.Certificate], list[str]]:
    text = data.lstrip()
    with warnings.catch_warnings():  # see `chains.load_certificates`
        warnings.simplefilter("ignore")
        try:
            if text.startswith(b"-----BEGIN X509 CRL-----"):
                return [], [der_hex(x509.load_pem_x509_crl(data))]
            if text.startswith(b"-----BEGIN CERTIFICATE-----"):
                return x509.load_pem_x509_certificates(data), []
        except ValueError as error:
            raise InputError("not PEM certificates or lists", got=str(error)) from error
        try:
            return [x509.load_der_x509_certificate(data)], []
        except ValueError:
            pass
    try:
        return [], [der_hex(x509.load_der_x509_crl(data))]
    except ValueError as error:
        raise InputError(
            "neither a certificate nor a revocation list",
            expected="PEM or DER",
        ) from error


def items_of(text: bytes) -> tuple[Item, ...]:
    """A file's collateral as items: a bundle's, one of ours, or Intel's as its tools write it.

    Raises:
        InputError: none of these.
    """
    loose = from_json(text, dict[str, Any], what="the collateral")
    if "bundle" in loose:
        return from_json(text, Bundle, what="the collateral bundle").items
    if loose.get("kind") in ("snp", "nvidia"):
        return (Item(kind=loose["kind"], collateral=loose),)
    if all(isinstance(loose.get(name), str) for name in _INTEL_FIELDS):
        tcb_id = _tcb_id(loose["tcb_info"])
        if tcb_id == "TDX":
            return (Item(kind="tdx", collateral=loose),)
        if tcb_id == "SGX":
            return (
                Item(kind="sgx", collateral=loose),
                Item(kind="simulated", collateral=loose),
            )
    raise InputError(
        "not collateral of a known form",
        expected="Intel's, a bundle, or what `vaultline collateral pack` writes",
    )


def _tcb_id(text: str) -> str:
    return str(from_json(text.encode(), dict[str, Any], what="the TCB info").get("id"))


def pack(items: Sequence[Item]) -> bytes:
    """A bundle (JSON), without repetitions.

    Raises:
        InputError: none, or too many.
    """
    unique = {canonical_json(item): item for item in items}
    bundle = Bundle(bundle="vaultline collateral", version=1, items=tuple(unique.values()))
    return canonical_json(bundle)
