"""Hopper reports with their certificates and lists, under a root of our own, with any fault."""

from __future__ import annotations

import datetime
import hashlib
import json
import struct
from dataclasses import dataclass, replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from vaultline.attest.roots import root_key_id
from vaultline.testing.certificates import ISSUED, VALIDITY, Issued, crl, der, new_key, pem

NONCE = bytes(range(32))
FIRMWARE = hashlib.sha384(b"firmware").digest()
_LIST = "http://lists.example/"


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaVector:
    """Everything about one report and its certificates.

    Attributes:
        measurements: (index, digest).
        certified_firmware: what the device's certificate says, if not what the report says.
        opaque: further opaque fields: type and value.
        blocks: the number of measurements that the report claims, if not the true one.
        lists: which authorities' lists go with it: ``root`` and ``model``.
        revoked: names of certificates on the lists: ``model``, ``device``.
    """

    family: str = "a"
    nonce: bytes = NONCE
    driver: str = "550.90.07"
    vbios: bytes = bytes.fromhex("009f009601000000")
    firmware: bytes = FIRMWARE
    certified_firmware: bytes = FIRMWARE
    measurements: tuple[tuple[int, bytes], ...] = tuple(
        (index, hashlib.sha384(bytes([index])).digest()) for index in (1, 2, 3)
    )
    opaque: tuple[tuple[int, bytes], ...] = ()
    blocks: int | None = None
    request: bytes = bytes.fromhex("11e001ff")
    response: bytes = bytes.fromhex("11600000")
    report_key: str = "device"
    device_end: datetime.datetime = ISSUED + VALIDITY
    device_start: datetime.datetime = ISSUED
    model_authority: bool = True
    device_issuer: str = "model"
    lists: tuple[str, ...] = ("root", "model")
    list_end: datetime.datetime = ISSUED + VALIDITY
    revoked: tuple[str, ...] = ()
    list_signer: str = ""
    tail: bytes = b""

    def with_(self, **changes: Any) -> NvidiaVector:
        """The same with changes."""
        return replace(self, **changes)

    def authority(self, name: str) -> Issued:
        """``root``, ``model`` or ``device``."""
        keys = {
            each: new_key(f"nvidia {self.family} {each}", "p384")
            for each in ("root", "model", "device")
        }
        root = Issued(name="Test Device Identity CA", key=keys["root"], authority=True, serial=1)
        model = Issued(
            name="Test GH100 Identity",
            key=keys["model"],
            authority=self.model_authority,
            serial=2,
            listed_at=_LIST + "root.crl",
            issuer=root,
        )
        if name in ("root", "model"):
            return root if name == "root" else model
        other = model.with_(key=new_key("somebody else", "p384"))
        return Issued(
            name="Test GH100 FMC",
            key=keys["device"],
            serial=3,
            start=self.device_start,
            end=self.device_end,
            extra=(("2.23.133.5.4.1", der(0x30, der(0x04, self.certified_firmware))),),
            listed_at=_LIST + "model.crl",
            issuer=model if self.device_issuer == "model" else other,
        )

    @property
    def root_id(self) -> str:
        """What a policy calls the root."""
        return root_key_id(self.authority("root").certificate())

    def report(self) -> bytes:
        """The report."""
        record = b"".join(
            struct.pack("<BBHBH", index, 1, len(digest) + 3, 1, len(digest)) + digest
            for index, digest in self.measurements
        )
        fields = (
            (3, self.driver.encode() + b"\0"),
            (6, self.vbios),
            (20, self.firmware),
            *self.opaque,
        )
        opaque = b"".join(struct.pack("<HH", kind, len(v)) + v for kind, v in fields)
        blocks = len(self.measurements) if self.blocks is None else self.blocks
        body = self.request + self.nonce + b"\0" + self.response + bytes([blocks])
        body += len(record).to_bytes(3, "little") + record + bytes(range(32))
        body += struct.pack("<H", len(opaque)) + opaque
        key = new_key(f"nvidia {self.family} {self.report_key}", "p384")
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError("reports are signed with elliptic keys")
        r, s = decode_dss_signature(key.sign(body, ec.ECDSA(SHA384())))
        return body + r.to_bytes(48, "big") + s.to_bytes(48, "big") + self.tail

    def collateral(self) -> bytes:
        """Certificates and lists (JSON)."""
        root, model, device = (self.authority(n) for n in ("root", "model", "device"))
        issued = {"root": (model,), "model": (device,)}
        by_name = {"root": root, "model": model, "device": device}
        lists = []
        for name in self.lists:
            issuer = by_name[name]
            revoked = [m for m in issued[name] for each in self.revoked if by_name[each] is m]
            key = new_key("somebody else", "p384")
            signer = issuer.with_(key=key) if self.list_signer == name else issuer
            lists.append(crl(issuer, *revoked, end=self.list_end, signer=signer).hex())
        chain = pem([device, model, root])
        return json.dumps({"kind": "nvidia", "certificates": chain, "crls": lists}).encode()
