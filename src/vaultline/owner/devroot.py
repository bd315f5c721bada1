"""A development root: the certificates, collateral and platform behind simulated evidence.

Whoever holds ``platform.json`` can forge evidence for any measurement, and the launcher on the host
holds it. So simulated evidence shows that the protocol works and guards against mistakes; it
does not protect from the host. A policy must name the root, and the owner must say
``--allow-simulated``, before such evidence counts.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID, ObjectIdentifier

from vaultline.attest.policy import DEVELOPMENT_FMSPC, root_key_id
from vaultline.attest.sgx_quote import Platform, raw_public_key, raw_signature, report_body
from vaultline.core.errors import InputError
from vaultline.core.serde import canonical_json
from vaultline.owner.accelerator import accelerator_entry

ROOT_FILE, PLATFORM_FILE, COLLATERAL_FILE = "root.pem", "platform.json", "collateral.json"
DEVROOT_FILES = (ROOT_FILE, PLATFORM_FILE, COLLATERAL_FILE)
#: Development roots are for development: they end by themselves.
VALIDITY = datetime.timedelta(days=365)
_SGX_EXTENSION = "1.2.840.113741.1.13.1"
_QE_SIGNER = hashlib.sha256(b"vaultline development quoting enclave").digest()
_QE_PRODUCT_ID, _QE_SVN = 1, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class DevRoot:
    """The files of a development root, as bytes."""

    root_pem: bytes
    platform: bytes
    collateral: bytes


@dataclass(frozen=True, slots=True)
class _Authority:
    name: x509.Name
    key: ec.EllipticCurvePrivateKey


def create_devroot(out_dir: Path, *, now: datetime.datetime) -> DevRoot:
    """Make a root and one platform under it, and write their files.

    Args:
        out_dir: made if it does not exist; must not hold a development root already.
        now: start of validity, with a time zone.

    Raises:
        InputError: there is one already; overwriting it would orphan its policies.
    """
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            "cannot make the folder for the development root",
            got=f"{out_dir}: {error.strerror}",
            expected="a folder that is new or empty",
            remedy="name another folder",
        ) from error
    for name in DEVROOT_FILES:
        if (out_dir / name).exists():
            raise InputError(
                "there is a development root already, or a part of one",
                got=str(out_dir / name),
                expected="a folder that is new or empty",
                remedy="use it, or choose another directory",
            )
    made = make_devroot(now)
    files = (
        (PLATFORM_FILE, made.platform, 0o600),
        (ROOT_FILE, made.root_pem, 0o644),
        (COLLATERAL_FILE, made.collateral, 0o644),
    )
    for name, content, mode in files:
        file = os.open(out_dir / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(file, "wb") as stream:
            stream.write(content)
    return made


def _new_key(role: str) -> ec.EllipticCurvePrivateKey:
    del role
    return ec.generate_private_key(ec.SECP256R1())


def make_devroot(
    now: datetime.datetime,
    *,
    tcb_status: str = "UpToDate",
    new_key: Callable[[str], ec.EllipticCurvePrivateKey] = _new_key,
) -> DevRoot:
    """The contents of `create_devroot`'s files; tests make roots with other TCB statuses, and with
    keys (by role) that stay."""
    now = now.astimezone(datetime.UTC).replace(microsecond=0)
    root = _Authority(_name("Root CA"), new_key("root"))
    root_cert = _certificate(root.name, root.key, root, now, authority=True)
    platform_ca = _Authority(_name("PCK Platform CA"), new_key("platform ca"))
    ca_cert = _certificate(platform_ca.name, platform_ca.key, root, now, authority=True)
    signer = _Authority(_name("TCB Signing"), new_key("tcb signing"))
    signer_cert = _certificate(signer.name, signer.key, root, now)
    pck_key = new_key("pck")
    extension = x509.UnrecognizedExtension(ObjectIdentifier(_SGX_EXTENSION), _sgx_extension())
    pck_cert = _certificate(_name("PCK Certificate"), pck_key, platform_ca, now, extra=extension)

    issuer_chain = _pem(ca_cert, root_cert)
    signer_chain = _pem(signer_cert, root_cert)
    tcb_info, identity = _tcb_info(now, tcb_status), _qe_identity(now)
    collateral = {
        "pck_crl_issuer_chain": issuer_chain,
        "root_ca_crl": _crl(root, now).hex(),
        "pck_crl": _crl(platform_ca, now).hex(),
        "tcb_info_issuer_chain": signer_chain,
        "tcb_info": tcb_info,
        "tcb_info_signature": raw_signature(signer.key, tcb_info.encode()).hex(),
        "qe_identity_issuer_chain": signer_chain,
        "qe_identity": identity,
        "qe_identity_signature": raw_signature(signer.key, identity.encode()).hex(),
    }
    platform = _platform(new_key("attestation"), pck_key, _pem(pck_cert, ca_cert, root_cert))
    return DevRoot(
        root_pem=_pem(root_cert).encode(),
        platform=canonical_json(platform),
        collateral=json.dumps(collateral, indent=1).encode(),
    )


def draft_policy(
    devroot_dir: Path, measurements: Sequence[bytes], accelerators: Sequence[bytes] = ()
) -> str:
    """A policy (YAML) that accepts simulated enclaves of these measurements under this root, and
    untrusted accelerators with these public keys."""
    root = x509.load_pem_x509_certificate((devroot_dir / ROOT_FILE).read_bytes())
    lines = [
        "# Accepts SIMULATED enclaves: whoever holds the development root's platform.json can",
        "# forge their evidence. Needs --allow-simulated as well.",
        "version: 1",
        "accept:",
        "  - kind: simulated",
        f'    roots: ["{root_key_id(root)}"]',
        "    measurements:",
        *(f'      - "{measurement.hex()}"' for measurement in measurements),
        "    tcb_statuses: [UpToDate]",
    ]
    text = "\n".join(lines) + "\n"
    return text + accelerator_entry(accelerators) if accelerators else text


def _platform(
    key: ec.EllipticCurvePrivateKey, pck_key: ec.EllipticCurvePrivateKey, chain: str
) -> Platform:
    """A quoting enclave's report certifies the attestation key; the PCK key is then forgotten."""
    auth_data = hashlib.sha256(b"vaultline development platform").digest()
    bound = hashlib.sha256(raw_public_key(key) + auth_data).digest()
    qe_report = report_body(
        measurement=bytes(32),
        report_data=bound,
        signer=_QE_SIGNER,
        product_id=_QE_PRODUCT_ID,
        svn=_QE_SVN,
    )
    return Platform(
        version=1,
        attestation_key=key.private_numbers().private_value.to_bytes(32, "big"),
        qe_report=qe_report,
        qe_report_signature=raw_signature(pck_key, qe_report),
        qe_auth_data=auth_data,
        pck_chain=chain,
    )


def _name(role: str) -> x509.Name:
    organisation = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Vaultline development")
    return x509.Name([organisation, x509.NameAttribute(NameOID.COMMON_NAME, f"Simulated {role}")])


def _certificate(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: _Authority,
    now: datetime.datetime,
    *,
    authority: bool = False,
    extra: x509.ExtensionType | None = None,
) -> x509.Certificate:
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + VALIDITY)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not authority,
                key_cert_sign=authority,
                crl_sign=authority,
                encipher_only=False,
                decipher_only=False,
                **usage,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()),
            critical=False,
        )
    )
    if extra is not None:
        builder = builder.add_extension(extra, critical=False)
    return builder.sign(issuer.key, SHA256())


def _crl(issuer: _Authority, now: datetime.datetime) -> bytes:
    """An empty revocation list, which verifiers demand all the same."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.name)
        .last_update(now)
        .next_update(now + VALIDITY)
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()),
            critical=False,
        )
    )
    return builder.sign(issuer.key, SHA256()).public_bytes(Encoding.DER)


def _pem(*certificates: x509.Certificate) -> str:
    return "".join(cert.public_bytes(Encoding.PEM).decode() for cert in certificates)


def _stamp(moment: datetime.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _tcb_info(now: datetime.datetime, status: str) -> str:
    """TCB info v3: one level, which every simulated platform meets."""
    level = {
        "tcb": {"sgxtcbcomponents": [{"svn": 0}] * 16, "pcesvn": 0},
        "tcbDate": _stamp(now),
        "tcbStatus": status,
    }
    info = {
        "id": "SGX",
        "version": 3,
        "issueDate": _stamp(now),
        "nextUpdate": _stamp(now + VALIDITY),
        "fmspc": DEVELOPMENT_FMSPC,
        "pceId": "0000",
        "tcbType": 0,
        "tcbEvaluationDataNumber": 1,
        "tcbLevels": [level],
    }
    return json.dumps(info, separators=(",", ":"))


def _qe_identity(now: datetime.datetime) -> str:
    identity = {
        "id": "QE",
        "version": 2,
        "issueDate": _stamp(now),
        "nextUpdate": _stamp(now + VALIDITY),
        "tcbEvaluationDataNumber": 1,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "05000000000000000300000000000000",
        "attributesMask": "FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF",
        "mrsigner": _QE_SIGNER.hex().upper(),
        "isvprodid": _QE_PRODUCT_ID,
        "tcbLevels": [
            {"tcb": {"isvsvn": _QE_SVN}, "tcbDate": _stamp(now), "tcbStatus": "UpToDate"}
        ],
    }
    return json.dumps(identity, separators=(",", ":"))


def _sgx_extension() -> bytes:
    """The PCK certificate's SGX extension (Intel, PCK Certificate and CRL Profile, 3.6), in DER."""
    svns = [_pair(f"2.{number}", _der(0x02, b"\0")) for number in range(1, 18)]
    tcb = _der(0x30, b"".join(svns) + _pair("2.18", _der(0x04, bytes(16))))
    parts = (
        ("1", _der(0x04, bytes(16))),  # PPID
        ("2", tcb),
        ("3", _der(0x04, bytes(2))),  # PCE id
        ("4", _der(0x04, bytes.fromhex(DEVELOPMENT_FMSPC))),
        ("5", _der(0x0A, b"\0")),  # SGX type: standard
    )
    return _der(0x30, b"".join(_pair(number, value) for number, value in parts))


def _pair(number: str, value: bytes) -> bytes:
    return _der(0x30, _der(0x06, _oid(f"{_SGX_EXTENSION}.{number}")) + value)


def _oid(dotted: str) -> bytes:
    first, second, *rest = map(int, dotted.split("."))
    encoded = bytearray([40 * first + second])
    for arc in rest:
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(arc & 0x7F | 0x80)
        encoded += bytes(reversed(groups))
    return bytes(encoded)


def _der(tag: int, content: bytes) -> bytes:
    """Tag, length, value; lengths up to 65,535."""
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)) + content
    size = (length.bit_length() + 7) // 8
    return bytes((tag, 0x80 | size)) + length.to_bytes(size, "big") + content
