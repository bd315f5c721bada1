"""SEV-SNP reports with their certificates and lists, under a root of our own, with any fault."""

from __future__ import annotations

import datetime
import hashlib
import json
import struct
import uuid
from dataclasses import dataclass, replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding

from vaultline.attest.roots import root_key_id
from vaultline.testing.certificates import (
    ISSUED,
    VALIDITY,
    Issued,
    Key,
    crl,
    der,
    der_number,
    new_key,
    pem,
)

LAUNCH_DIGEST = hashlib.sha384(b"launch").digest()
_OID = "1.3.6.1.4.1.3704.1."
_TCB_BYTES = {
    "Milan": {1: 0, 2: 1, 3: 6, 8: 7},
    "Genoa": {1: 0, 2: 1, 3: 6, 8: 7},
    "Turin": {9: 0, 1: 1, 2: 2, 3: 3, 8: 7},
}
_POLICY = 1 << 17 | 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpVector:
    """Everything about one report and its certificates.

    Attributes:
        key: ``VCEK`` or ``VLEK``: which signs, and which the report says it was.
        certified: which the certificate is for; the same unless given.
        tcb: versions by the arc of the certificate's extension; ``cert_tcb``: the certificate's.
        report_key: name of the key that really signs.
        lists: which lists go with it: ``ark`` and ``ask``.
        list_start: when they were issued.
        revoked: names of certificates on the lists.
        body: what else of the report is other before it is signed: offsets and bytes.
    """

    product: str = "Milan"
    cert_product: str | None = None
    family: str = "a"
    key: str = "VCEK"
    certified: str | None = None
    chain_by: str | None = None
    version: int = 2
    algorithm: int = 1
    policy: int = _POLICY
    vmpl: int = 0
    svn: int = 1
    measurement: bytes = LAUNCH_DIGEST
    host_data: bytes = bytes(32)
    id_key_digest: bytes = bytes(48)
    report_data: bytes = bytes(range(64))
    chip: bytes = bytes(range(1, 65))
    cert_chip: bytes | None = None
    tcb: tuple[tuple[int, int], ...] = ((1, 3), (2, 0), (3, 8), (8, 115))
    cert_tcb: tuple[tuple[int, int], ...] | None = None
    cpu_family: int | None = None
    report_key: str = "leaf"
    leaf_end: datetime.datetime = ISSUED + VALIDITY
    ask_end: datetime.datetime = ISSUED + VALIDITY
    leaf_start: datetime.datetime = ISSUED
    ask_authority: bool = True
    ask_key: str = "ask"
    lists: tuple[str, ...] = ("ark",)
    list_end: datetime.datetime = ISSUED + VALIDITY
    list_start: datetime.datetime = ISSUED
    list_signer: str = "ark"
    body: tuple[tuple[int, bytes], ...] = ()
    revoked: tuple[str, ...] = ()
    tail: bytes = b""
    reserved: bytes = b""
    missing: tuple[str, ...] = ()

    def with_(self, **changes: Any) -> SnpVector:
        """The same with changes."""
        return replace(self, **changes)

    def _key(self, name: str) -> Key:
        return new_key(f"snp {self.family} {name}", "rsa" if name in ("ark", "ask") else "p384")

    def authority(self, name: str) -> Issued:
        """``ark``, ``ask`` or ``leaf``."""
        certified = self.certified or self.key
        loaded = (self.chain_by or certified) == "VLEK"
        ark = Issued(name=f"ARK-{self.product}", key=self._key("ark"), authority=True, serial=1)
        ask = Issued(
            name=f"SEV-VLEK-{self.product}" if loaded else f"SEV-{self.product}",
            key=self._key("ask"),
            authority=self.ask_authority,
            path_length=0 if self.ask_authority else None,
            serial=2,
            end=self.ask_end,
            issuer=ark,
        )
        if name in ("ark", "ask"):
            return ark if name == "ark" else ask
        signer = ask if self.ask_key == "ask" else ask.with_(key=new_key("somebody else", "rsa"))
        return Issued(
            name=f"SEV-{certified}",
            key=self._key("leaf"),
            serial=3,
            start=self.leaf_start,
            end=self.leaf_end,
            extra=self._extensions(certified),
            issuer=signer,
        )

    def _extensions(self, certified: str) -> tuple[tuple[str, bytes], ...]:
        product = (self.cert_product or self.product) + "-B0"
        found = [(_OID + "1", der_number(0)), (_OID + "2", der(0x16, product.encode()))]
        found += [
            (f"{_OID}3.{arc}", der_number(number)) for arc, number in self.cert_tcb or self.tcb
        ]
        if certified == "VCEK":
            found.append((_OID + "4", self.chip if self.cert_chip is None else self.cert_chip))
        else:
            found.append((_OID + "5", der(0x16, b"a provider")))
        return tuple((oid, value) for oid, value in found if oid[len(_OID) :] not in self.missing)

    @property
    def root_id(self) -> str:
        """What a policy calls the root."""
        return root_key_id(self.authority("ark").certificate())

    def report(self) -> bytes:
        """The report."""
        tcb = bytearray(8)
        for arc, number in self.tcb:
            tcb[_TCB_BYTES[self.product][arc]] = number
        body = bytearray(0x2A0)
        struct.pack_into("<IIQ", body, 0, self.version, self.svn, self.policy)
        struct.pack_into("<II", body, 0x30, self.vmpl, self.algorithm)
        for at in (0x38, 0x180, 0x1E0, 0x1F0):
            body[at : at + 8] = tcb
        struct.pack_into("<I", body, 0x48, {"VCEK": 0, "VLEK": 1 << 2, "none": 7 << 2}[self.key])
        body[0x50:0x90] = self.report_data
        body[0x90:0xC0] = self.measurement
        body[0xC0:0xE0] = self.host_data
        body[0xE0:0x110] = self.id_key_digest
        if self.version >= 3:
            natural = 0x1A if self.product == "Turin" else 0x19
            body[0x188] = natural if self.cpu_family is None else self.cpu_family
        body[0x1A0:0x1E0] = self.chip.ljust(64, b"\0")
        for at, value in self.body:
            body[at : at + len(value)] = value
        key = self._key(self.report_key)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError("reports are signed with elliptic keys")
        r, s = decode_dss_signature(key.sign(bytes(body), ec.ECDSA(SHA384())))
        signature = r.to_bytes(72, "little") + s.to_bytes(72, "little")
        padded = (bytes(body) + signature + self.reserved).ljust(0x4A0, b"\0")
        return padded + self.tail

    def collateral(self) -> bytes:
        """Certificates and lists (JSON)."""
        chain = [self.authority(name) for name in ("leaf", "ask", "ark")]
        by_name = {"leaf": chain[0], "ask": chain[1], "ark": chain[2]}
        lists = []
        for name in self.lists:
            issuer = by_name[name]
            listed = {"ark": ("ask", "ark"), "ask": ("leaf",)}[name]
            revoked = [by_name[each] for each in self.revoked if each in listed]
            forger = issuer.with_(key=new_key("somebody else", "rsa"))
            signer = issuer if self.list_signer == "ark" else forger
            made = crl(issuer, *revoked, start=self.list_start, end=self.list_end, signer=signer)
            lists.append(made.hex())
        return json.dumps({"kind": "snp", "certificates": pem(chain), "crls": lists}).encode()

    def table(self) -> bytes:
        """The host's table of certificates, as Linux shows it beside a report."""
        guids = {
            "leaf": "63da758d-e664-4564-adc5-f4b93be8accd"
            if self.key == "VCEK"
            else "a8074bc2-a25a-483e-aae6-39c045a0b8a1",
            "ask": "4ab7b379-bbac-4fe4-a02f-05aef327c782",
            "ark": "c0b406a4-a803-4952-9743-3fb6014cd0ae",
        }
        return guid_table({guids[name]: _der(self.authority(name)) for name in guids})


def _der(made: Issued) -> bytes:
    return made.certificate().public_bytes(Encoding.DER)


def guid_table(entries: dict[str, bytes]) -> bytes:
    """Entries of GUID, offset and length, a zero entry, and then what they point to."""
    at = 24 * (len(entries) + 1)
    head, blobs = b"", b""
    for guid, blob in entries.items():
        head += struct.pack("<16sII", uuid.UUID(guid).bytes, at + len(blobs), len(blob))
        blobs += blob
    return head + bytes(24) + blobs
