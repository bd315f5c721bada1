"""SGX v3 and TDX v4 and v5 quotes with their collateral, under a root of our own, with any fault.

`Vector` names everything that a quote and its collateral say; a test changes one thing. Layouts are
written out here once more, so a mistake in `vaultline.attest` does not hide behind itself.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import struct
from dataclasses import dataclass, field, replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from vaultline.attest.roots import root_key_id
from vaultline.testing.certificates import (
    ISSUED,
    VALIDITY,
    Issued,
    crl,
    der,
    der_number,
    der_oid,
    new_key,
    pem,
)

#: A platform family that neither Intel nor a development root uses.
FMSPC = "5AFE00000000"
VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_SGX_OID = "1.2.840.113741.1.13.1"
MRENCLAVE, MRSIGNER = (hashlib.sha256(name).digest() for name in (b"enclave", b"signer"))
MRTD, RTMR1, RTMR2 = (hashlib.sha384(name).digest() for name in (b"mrtd", b"rtmr1", b"rtmr2"))
_QE_SIGNER = hashlib.sha256(b"quoting enclave's signer").digest()
_SEPT_VE_DISABLE = 1 << 28


@dataclass(frozen=True, slots=True, kw_only=True)
class Vector:
    """Everything about one quote and its collateral; see the fields' names.

    Attributes:
        version: 3 for SGX; 4 or 5 for TDX.
        family: names the keys: another name is another vendor's root.
        svns, level_svns: of the platform, and of the one level that collateral lists.
        identity_*: what collateral says of the quoting enclave; ``qe_*``: what it says of itself.
        statements: changes to TCB info and QE identity, before they are signed.
        revoked: names of certificates on the lists: ``pck``, ``ca`` or ``signer``.
    """

    version: int = 3
    family: str = "a"
    vendor: bytes = VENDOR
    key_type: int = 2
    tee_type: int | None = None
    fmspc: str = FMSPC
    tcb_fmspc: str | None = None
    svns: tuple[int, ...] = (5,) * 16
    pce_svn: int = 5
    level_svns: tuple[int, ...] = (5,) * 16
    level_pce_svn: int = 5
    tee_tcb_svn: bytes = bytes([5, 1, *[5] * 14])
    module_svn: int = 5
    mrsigner_seam: bytes = bytes(48)
    tcb_status: str = "UpToDate"
    tcb_date: datetime.datetime = ISSUED
    advisories: tuple[str, ...] = ()
    evaluation: int = 7
    flags: tuple[bool, bool, bool] | None = (False, False, False)
    attributes: int = 0x5
    td_attributes: int = _SEPT_VE_DISABLE
    mrenclave: bytes = MRENCLAVE
    mrsigner: bytes = MRSIGNER
    product_id: int = 3
    svn: int = 4
    registers: tuple[bytes, ...] = (bytes(48), RTMR1, RTMR2, bytes(48))
    mrtd: bytes = MRTD
    report_data: bytes = bytes(range(64))
    qe_signer: bytes = _QE_SIGNER
    qe_product: int | None = None
    qe_svn: int = 8
    qe_attributes: int = 0x15
    identity_svn: int = 8
    identity_status: str = "UpToDate"
    identity_id: str | None = None
    tcb_id: str | None = None
    revoked: tuple[str, ...] = ()
    crl_end: datetime.datetime = ISSUED + VALIDITY
    pck_crl_end: datetime.datetime = ISSUED + VALIDITY
    statement_end: datetime.datetime = ISSUED + VALIDITY
    identity_end: datetime.datetime = ISSUED + VALIDITY
    pck_end: datetime.datetime = ISSUED + VALIDITY
    pck_start: datetime.datetime = ISSUED
    ca_authority: bool = True
    pck_issuer: str = "ca"
    crl_signer: str = ""
    tail: bytes = b""
    statements: tuple[tuple[str, Any], ...] = field(default=())

    @property
    def tdx(self) -> bool:
        """A trust domain's."""
        return self.version > 3

    def with_(self, **changes: Any) -> Vector:
        """The same with changes."""
        return replace(self, **changes)

    # The chain.

    def authority(self, name: str) -> Issued:
        """``root``, ``ca``, ``pck`` or ``signer`` of this vector."""
        key = new_key(f"{self.family} {name}")
        root = Issued(
            name="Test Root CA", key=new_key(f"{self.family} root"), authority=True, serial=1
        )
        ca = Issued(
            name="Test PCK Platform CA",
            key=new_key(f"{self.family} ca"),
            authority=self.ca_authority,
            path_length=0 if self.ca_authority else None,
            serial=2,
            issuer=root,
        )
        if name in ("root", "ca"):
            return root if name == "root" else ca
        if name == "signer":
            return Issued(name="Test TCB Signing", key=key, serial=3, issuer=root)
        issuer = {"ca": ca, "root": root}.get(self.pck_issuer)
        return Issued(
            name="Test PCK Certificate",
            key=key,
            serial=4,
            start=self.pck_start,
            end=self.pck_end,
            extra=((_SGX_OID, _sgx_extension(self)),),
            issuer=issuer or ca.with_(key=new_key("somebody else")),
        )

    @property
    def root_id(self) -> str:
        """What a policy calls the root."""
        return root_key_id(self.authority("root").certificate())

    # What is presented.

    def quote(self) -> bytes:
        """The quote."""
        attestation = new_key(f"{self.family} attestation")
        header = struct.pack(
            "<HHIHH16s20s",
            self.version,
            self.key_type,
            (0x81 if self.tdx else 0) if self.tee_type is None else self.tee_type,
            0,
            0,
            self.vendor,
            bytes(20),
        )
        body = self._td_report() if self.tdx else self._enclave_report()
        if self.version == 5:
            body = struct.pack("<HI", 3, len(body)) + body
        auth = hashlib.sha256(b"auth").digest()
        bound = hashlib.sha256(_public(attestation) + auth).digest()
        qe_report = _report_body(
            attributes=self.qe_attributes,
            measurement=bytes(32),
            signer=self.qe_signer,
            product=(2 if self.tdx else 1) if self.qe_product is None else self.qe_product,
            svn=self.qe_svn,
            data=bound,
        )
        chain = pem([self.authority(name) for name in ("pck", "ca", "root")]).encode()
        inner = qe_report + sign_statement(self.authority("pck").key, qe_report)
        inner += struct.pack("<H", len(auth)) + auth + struct.pack("<HI", 5, len(chain)) + chain
        if self.tdx:
            inner = struct.pack("<HI", 6, len(inner)) + inner
        signed = header + body
        section = sign_statement(attestation, signed) + _public(attestation) + inner
        return signed + struct.pack("<I", len(section)) + section + self.tail

    def collateral(self) -> bytes:
        """Its collateral (JSON)."""
        root, ca, signer = (self.authority(name) for name in ("root", "ca", "signer"))
        other = new_key("somebody else")
        forger = root.with_(key=other)
        revoked = {name: self.authority(name) for name in self.revoked}
        info, identity = self._tcb_info(), self._qe_identity()
        chain = pem([signer, root])
        by_root = [made for name, made in revoked.items() if name != "pck"]
        by_ca = [made for name, made in revoked.items() if name == "pck"]
        forged = {"root": forger, "ca": forger}
        collateral = {
            "pck_crl_issuer_chain": pem([ca, root]),
            "root_ca_crl": crl(
                root,
                *by_root,
                end=self.crl_end,
                signer=forged["root"] if self.crl_signer == "root" else None,
            ).hex(),
            "pck_crl": crl(
                ca,
                *by_ca,
                end=self.pck_crl_end,
                signer=forged["ca"] if self.crl_signer == "ca" else None,
            ).hex(),
            "tcb_info_issuer_chain": chain,
            "tcb_info": info,
            "tcb_info_signature": sign_statement(signer.key, info.encode()).hex(),
            "qe_identity_issuer_chain": chain,
            "qe_identity": identity,
            "qe_identity_signature": sign_statement(signer.key, identity.encode()).hex(),
        }
        return json.dumps(collateral).encode()

    def _enclave_report(self) -> bytes:
        return _report_body(
            attributes=self.attributes,
            measurement=self.mrenclave,
            signer=self.mrsigner,
            product=self.product_id,
            svn=self.svn,
            data=self.report_data,
        )

    def _td_report(self) -> bytes:
        body = self.tee_tcb_svn + bytes(48) + self.mrsigner_seam + bytes(8)
        body += struct.pack("<QQ", self.td_attributes, 0x3) + self.mrtd + bytes(3 * 48)
        body += b"".join(self.registers) + self.report_data.ljust(64, b"\0")
        return body + (self.tee_tcb_svn + bytes(48) if self.version == 5 else b"")

    def _tcb_info(self) -> str:
        level: dict[str, Any] = {
            "tcb": {
                "sgxtcbcomponents": [{"svn": svn} for svn in self.level_svns],
                "pcesvn": self.level_pce_svn,
            },
            "tcbDate": _stamp(self.tcb_date),
            "tcbStatus": self.tcb_status,
            "advisoryIDs": list(self.advisories),
        }
        info: dict[str, Any] = {
            "id": self.tcb_id or ("TDX" if self.tdx else "SGX"),
            "version": 3,
            "issueDate": _stamp(ISSUED),
            "nextUpdate": _stamp(self.statement_end),
            "fmspc": self.tcb_fmspc or self.fmspc,
            "pceId": "0000",
            "tcbType": 0,
            "tcbEvaluationDataNumber": self.evaluation,
        }
        if info["id"] == "TDX":
            level["tcb"]["tdxtcbcomponents"] = [{"svn": svn} for svn in (5, 0, *[5] * 14)]
            module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
            rating = {"tcb": {"isvsvn": self.module_svn}, "tcbDate": _stamp(ISSUED)}
            info["tdxModule"] = module
            info["tdxModuleIdentities"] = [
                {"id": "TDX_01", **module, "tcbLevels": [{**rating, "tcbStatus": "UpToDate"}]}
            ]
        return _text(info | {"tcbLevels": [level]} | dict(self.statements))

    def _qe_identity(self) -> str:
        level = {
            "tcb": {"isvsvn": self.identity_svn},
            "tcbDate": _stamp(ISSUED),
            "tcbStatus": self.identity_status,
        }
        return _text(
            {
                "id": self.identity_id or ("TD_QE" if self.tdx else "QE"),
                "version": 2,
                "issueDate": _stamp(ISSUED),
                "nextUpdate": _stamp(self.identity_end),
                "tcbEvaluationDataNumber": self.evaluation,
                "miscselect": "00000000",
                "miscselectMask": "FFFFFFFF",
                "attributes": "11000000000000000000000000000000",
                "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
                "mrsigner": _QE_SIGNER.hex().upper(),
                "isvprodid": 2 if self.tdx else 1,
                "tcbLevels": [level],
            }
        )


def _text(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _stamp(moment: datetime.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def sign_statement(key: object, data: bytes) -> bytes:
    """ECDSA with SHA-256 as Intel writes it: r, then s."""
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("Intel's chain has elliptic keys")
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _public(key: object) -> bytes:
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("Intel's chain has elliptic keys")
    numbers = key.public_key().public_numbers()
    return numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")


def _report_body(
    *, attributes: int, measurement: bytes, signer: bytes, product: int, svn: int, data: bytes
) -> bytes:
    layout = struct.Struct("<16sI28xQQ32s32x32s96xHH60x64s")
    return layout.pack(bytes(16), 0, attributes, 3, measurement, signer, product, svn, data)


def _sgx_extension(vector: Vector) -> bytes:
    """Intel, PCK Certificate and CRL Profile, section 3.6; sub-arc 7 for platforms with options."""

    def pair(arc: str, value: bytes) -> bytes:
        return der(0x30, der_oid(f"{_SGX_OID}.{arc}") + value)

    def group(arc: str, parts: list[bytes]) -> bytes:
        return pair(arc, der(0x30, b"".join(parts)))

    svns = [pair(f"2.{n}", der_number(svn)) for n, svn in enumerate(vector.svns, 1)]
    svns += [
        pair("2.17", der_number(vector.pce_svn)),
        pair("2.18", der(0x04, bytes(vector.svns))),
    ]
    parts = [
        pair("1", der(0x04, hashlib.md5(vector.family.encode(), usedforsecurity=False).digest())),
        group("2", svns),
        pair("3", der(0x04, bytes(2))),
        pair("4", der(0x04, bytes.fromhex(vector.fmspc))),
        pair("5", der(0x0A, b"\0")),
    ]
    if vector.flags is not None:
        named = enumerate(vector.flags, 1)
        flags = [pair(f"7.{n}", der(0x01, b"\xff" if flag else b"\0")) for n, flag in named]
        parts += [pair("6", der(0x04, bytes(range(16)))), group("7", flags)]
    return der(0x30, b"".join(parts))
