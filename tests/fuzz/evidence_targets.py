"""Parsers of evidence, collateral and results of verifiers.

A mutation of what is signed ends at the signature. So most targets come twice: with the bytes as
they arrive, and with the signed part alone, signed anew here, as a vendor's key that went astray
(or a machine that says nonsense) would sign it.
"""

from __future__ import annotations

import base64
import json
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from harness import Target
from inputs import from_file
from jwcrypto.jwk import JWK
from jwcrypto.jws import JWS

from vaultline.attest.collateral import candidates, items_of, items_of_certificates, pack
from vaultline.attest.examine import Outcome, Request, examine, policy_id
from vaultline.attest.policy import Accepted, Gpu, Policy, SnpGuest, TrustDomain
from vaultline.attest.results import attestation_result
from vaultline.attest.verifiers import verify
from vaultline.core.errors import InputError, RefusedError
from vaultline.core.yaml import from_yaml
from vaultline.owner.drafting import render_policy
from vaultline.owner.passport import Trust, check_passport, load_key, sign_result
from vaultline.owner.verification import load_evidence
from vaultline.testing.certificates import NOW_S, crl, new_key, pem
from vaultline.testing.intel_vectors import MRENCLAVE, MRTD, RTMR1, RTMR2, Vector
from vaultline.testing.nvidia_vectors import NvidiaVector
from vaultline.testing.snp_vectors import LAUNCH_DIGEST, SnpVector, guid_table

INTEL = {"sgx": Vector(), "tdx4": Vector(version=4), "tdx5": Vector(version=5)}
#: Below every level that is listed: what `attest.intel_unlisted` verifies.
BELOW = {name: each.with_(svns=(1,) * 16) for name, each in INTEL.items()}
SNP = {
    "milan": SnpVector(),
    "vlek": SnpVector(key="VLEK", version=3),
    "turin": SnpVector(
        product="Turin",
        version=5,
        chip=bytes(range(1, 9)),
        tcb=((9, 1), (1, 3), (2, 0), (3, 8), (8, 115)),
    ),
}
NVIDIA = NvidiaVector()
SIGNED_BYTES = {3: 48 + 384, 4: 48 + 584, 5: 54 + 648}


@cache
def policy() -> Policy:
    """Accepts every vector here as it is."""
    vendors = {name: (each.root_id,) for name, each in INTEL.items()}
    vendors |= {name: (each.root_id,) for name, each in SNP.items()}
    domain = TrustDomain(mrtd=MRTD.hex(), rtmr1=RTMR1.hex(), rtmr2=RTMR2.hex())
    digests = {f"m{index:02}": digest.hex() for index, digest in NVIDIA.measurements}
    gpu = Gpu(driver=NVIDIA.driver, vbios="96.00.9F.00.01", measurements=digests)
    snp_roots = tuple(dict.fromkeys(each.root_id for each in SNP.values()))
    return Policy(
        version=1,
        accept=(
            Accepted(kind="sgx", roots=vendors["sgx"], measurements=(MRENCLAVE.hex(),)),
            Accepted(kind="tdx", roots=vendors["tdx4"], trust_domains=(domain,)),
            Accepted(
                kind="snp",
                roots=snp_roots,
                guests=(SnpGuest(launch_digest=LAUNCH_DIGEST.hex()),),
                unsafe_skip_revocation=True,
            ),
            Accepted(kind="nvidia", roots=(NVIDIA.root_id,), gpus=(gpu,)),
        ),
    )


@cache
def bundle() -> bytes:
    """Collateral for all of them."""
    given = [
        INTEL["sgx"].collateral(),
        INTEL["tdx4"].collateral(),
        *(each.collateral() for each in SNP.values()),
        NVIDIA.collateral(),
    ]
    return pack([item for text in given for item in items_of(text)])


def judged(evidence: bytes, collateral: bytes | None = None) -> Outcome:
    """Verify and judge; refusals are raised, so that each is another end."""
    found = examine(
        Request(
            evidence=evidence,
            policies=(policy(),),
            collateral=bundle() if collateral is None else collateral,
            now_s=NOW_S,
        )
    )
    for refusal in found.refusals:
        raise refusal
    return found


def _read_again(text: str) -> None:
    """A draft may say what no policy accepts (a GPU without a measurement), but stays a policy."""
    try:
        from_yaml(text, Policy, what="the draft", path="draft")
    except InputError as error:
        if "YAML" in error.message or "field" in error.message:
            raise AssertionError(text) from error


def drafted(kind: str, evidence: bytes, collateral: bytes, root: str) -> None:
    """Verify, judge, and put what is claimed into a policy of its own."""
    claims = verify(kind, evidence, collateral, frozenset({root}), NOW_S)
    _read_again(render_policy(kind, claims, NOW_S))
    judged(evidence, collateral)


# --- Intel ---------------------------------------------------------------------------------------


def _ecdsa(key: Any, data: bytes, size: int = 32) -> tuple[bytes, bytes]:
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(SHA256() if size == 32 else SHA384())))
    return r.to_bytes(size, "big"), s.to_bytes(size, "big")


@cache
def _rest(name: str) -> tuple[bytes, bytes]:
    """What precedes and follows the attestation key's signature: its length, and the rest."""
    vector = INTEL[name]
    quote = vector.quote()
    at = SIGNED_BYTES[vector.version]
    return quote[at : at + 4], quote[at + 68 :]


def intel_signed(data: bytes) -> None:
    """Header and body of a quote, signed by a genuine attestation key."""
    version = int.from_bytes(data[:2], "little")
    name = {4: "tdx4", 5: "tdx5"}.get(version, "sgx")
    size = SIGNED_BYTES[INTEL[name].version]
    signed = data[:size].ljust(size, b"\0")
    length, rest = _rest(name)
    r, s = _ecdsa(new_key("a attestation"), signed)
    kind = "tdx" if version > 3 else "sgx"
    vector = INTEL[name]
    drafted(kind, signed + length + r + s + rest, vector.collateral(), vector.root_id)


def intel_signed_seeds() -> tuple[bytes, ...]:
    return tuple(each.quote()[: SIGNED_BYTES[each.version]] for each in INTEL.values())


@cache
def _made(name: str, *, below: bool) -> tuple[bytes, dict[str, Any]]:
    vector = (BELOW if below else INTEL)[name]
    return vector.quote(), json.loads(vector.collateral())


def statement(data: bytes) -> None:
    """What Intel says of its platforms, signed by its key; the first byte says for which quote."""
    head, text = (data[0] if data else 0), data[1:].decode("utf-8", errors="replace")
    name = list(INTEL)[head >> 2 & 3] if head >> 2 & 3 < 3 else "sgx"
    quote, collateral = _made(name, below=bool(head & 2))
    which = "qe_identity" if head & 1 else "tcb_info"
    key = INTEL[name].authority("signer").key
    signature = b"".join(_ecdsa(key, text.encode()))
    changed = collateral | {which: text, f"{which}_signature": signature.hex()}
    judged(quote, json.dumps(changed).encode())


def statement_seeds() -> tuple[bytes, ...]:
    """For each quote, once of a platform that is listed and once of one that is not."""
    found = []
    for number, name in enumerate(INTEL):
        for below in (False, True):
            _, collateral = _made(name, below=below)
            head = number << 2 | below << 1
            found.append(bytes([head]) + collateral["tcb_info"].encode())
            found.append(bytes([head | 1]) + collateral["qe_identity"].encode())
    return tuple(found)


def of_sgx(data: bytes) -> None:
    """Any collateral for a good quote: a bundle, or Intel's as its tools write it."""
    items = items_of(data)
    for kind in ("simulated", "sgx", "tdx", "snp", "nvidia"):
        try:
            candidates(kind, pack(items))
        except InputError:
            continue
    judged(INTEL["sgx"].quote(), data)


# --- AMD -----------------------------------------------------------------------------------------


def _snp_report(signed: bytes, vector: SnpVector) -> bytes:
    r, s = _ecdsa(vector.authority("leaf").key, signed, 48)
    numbers = b"".join(half[::-1].ljust(72, b"\0") for half in (r, s))
    return (signed + numbers).ljust(0x4A0, b"\0")


def snp_signed(data: bytes) -> None:
    """The signed part of a report, signed by a genuine chip; the first byte says by which."""
    vector = list(SNP.values())[data[0] % len(SNP)] if data else SNP["milan"]
    report = _snp_report(data[1:0x2A1].ljust(0x2A0, b"\0"), vector)
    drafted("snp", report, vector.collateral(), vector.root_id)


def snp_signed_seeds() -> tuple[bytes, ...]:
    return tuple(bytes([n]) + each.report()[:0x2A0] for n, each in enumerate(SNP.values()))


def snp_carried(data: bytes) -> None:
    """What a host puts after a good report: PEM, or its table of certificates."""
    judged(SNP["milan"].report() + data, b"")


def snp_carried_seeds() -> tuple[bytes, ...]:
    vector = SNP["milan"]
    chain = [vector.authority(name) for name in ("leaf", "ask", "ark")]
    small = guid_table({"63da758d-e664-4564-adc5-f4b93be8accd": b"no certificate"})
    return (vector.table(), pem(chain).encode(), small)


#: Extensions of the chip's certificate whose values `attest.snp` reads.
_ARCS = ("1", "2", "3.1", "3.2", "3.3", "3.8", "4", "5")


def snp_extension(data: bytes) -> None:
    """A genuine certificate of a chip in which one extension holds anything."""
    arc = _ARCS[data[0] % len(_ARCS)] if data else "1"
    vector = SNP["milan"]
    leaf = vector.authority("leaf")
    oid = f"1.3.6.1.4.1.3704.1.{arc}"
    kept = tuple(each for each in leaf.extra if each[0] != oid)
    made = leaf.with_(extra=(*kept, (oid, data[1:])))
    chain = pem([made, vector.authority("ask"), vector.authority("ark")])
    collateral = {"kind": "snp", "certificates": chain, "crls": []}
    judged(vector.report(), json.dumps(collateral).encode())


def snp_extension_seeds() -> tuple[bytes, ...]:
    extra = dict(SNP["milan"].authority("leaf").extra)
    values = [extra.get(f"1.3.6.1.4.1.3704.1.{arc}", b"\x16\x01a") for arc in _ARCS]
    return tuple(bytes([number]) + value for number, value in enumerate(values))


def snp_der(data: bytes) -> None:
    """A certificate or a list in DER, in any place of the chain; the first byte says where."""
    vector = SNP["milan"]
    place = data[0] % 4 if data else 0
    texts = [pem([vector.authority(name)]) for name in ("leaf", "ask", "ark")]
    crls = [crl(vector.authority("ark")).hex()]
    if place == 3:
        crls = [data[1:].hex()]
    else:
        body = base64.encodebytes(data[1:]).decode()
        texts[place] = f"-----BEGIN CERTIFICATE-----\n{body}-----END CERTIFICATE-----\n"
    collateral = {"kind": "snp", "certificates": "".join(texts), "crls": crls}
    judged(vector.report(), json.dumps(collateral).encode())


def snp_der_seeds() -> tuple[bytes, ...]:
    vector = SNP["milan"]
    made = [vector.authority(name).certificate() for name in ("leaf", "ask", "ark")]
    ders = [each.public_bytes(Encoding.DER) for each in made]
    return tuple(bytes([n]) + der for n, der in enumerate([*ders, crl(vector.authority("ark"))]))


# --- NVIDIA --------------------------------------------------------------------------------------


def nvidia_seeds() -> tuple[bytes, ...]:
    carried = pem([NVIDIA.authority("device")]).encode()
    return (NVIDIA.report(), NVIDIA.report() + carried)


def nvidia_signed(data: bytes) -> None:
    """Request and response of a report, signed by a genuine GPU."""
    r, s = _ecdsa(NVIDIA.authority("device").key, data, 48)
    drafted("nvidia", data + r + s, NVIDIA.collateral(), NVIDIA.root_id)


# --- Files and results ---------------------------------------------------------------------------


def certificate_files(data: bytes) -> None:
    """What ``collateral pack`` is given: certificates or lists, PEM or DER."""
    items_of_certificates("snp", [data])


def certificate_seeds() -> tuple[bytes, ...]:
    vector = SNP["milan"]
    leaf = vector.authority("leaf").certificate()
    return (
        leaf.public_bytes(Encoding.DER),
        leaf.public_bytes(Encoding.PEM),
        crl(vector.authority("ark"), vector.authority("ask")),
    )


@cache
def verifier() -> JWK:
    """A verifier's key."""
    return JWK.generate(kty="EC", crv="P-256", kid="ours")


@cache
def result() -> dict[str, Any]:
    """What it says of a good quote."""
    found = judged(INTEL["sgx"].quote())
    return attestation_result({"cpu": found}, issued_s=NOW_S, valid_s=300, build="1", nonce="n")


def _relied_on(token: str) -> None:
    trust = Trust(policy_ids=(f"sha256:{policy_id((policy(),))}",), nonce="n", allow_stale=True)
    check_passport(token, [verifier()], trust, NOW_S, devices=["cpu"])


def passport(data: bytes) -> None:
    """A token as it arrives."""
    _relied_on(data.decode("utf-8", errors="replace"))


def passport_signed(data: bytes) -> None:
    """Anything that a trusted verifier has signed."""
    token = JWS(data)
    token.add_signature(verifier(), protected=json.dumps({"alg": "ES256", "typ": "JWT"}))
    _relied_on(token.serialize(compact=True))


def verifier_keys(data: bytes) -> None:
    """A key of a verifier, public or private."""
    load_key(data, private=False)
    load_key(data, private=True)


def evidence_seeds() -> tuple[bytes, ...]:
    return (NVIDIA.report(), INTEL["sgx"].quote()[:2000].hex().encode())


EITHER: tuple[type[BaseException], ...] = (RefusedError, InputError)
TARGETS = (
    Target("sgx", judged, lambda: (INTEL["sgx"].quote(), BELOW["sgx"].quote()), EITHER),
    Target("tdx", judged, lambda: (INTEL["tdx4"].quote(), INTEL["tdx5"].quote()), EITHER),
    Target("intel-signed", intel_signed, intel_signed_seeds, EITHER),
    Target("intel-statement", statement, statement_seeds, EITHER),
    Target("bundle", of_sgx, lambda: (INTEL["sgx"].collateral(), bundle()), EITHER),
    Target(
        "snp",
        judged,
        lambda: tuple(e.report() for e in SNP.values()),
        EITHER,
    ),
    Target("snp-signed", snp_signed, snp_signed_seeds, EITHER),
    Target("snp-carried", snp_carried, snp_carried_seeds, EITHER),
    Target("snp-extension", snp_extension, snp_extension_seeds, EITHER),
    Target("snp-der", snp_der, snp_der_seeds, EITHER),
    Target(
        "nvidia",
        judged,
        nvidia_seeds,
        EITHER,
    ),
    Target("nvidia-signed", nvidia_signed, lambda: (NVIDIA.report()[:-96],), EITHER),
    Target("certificates", certificate_files, certificate_seeds, (InputError,)),
    Target("evidence-file", from_file(load_evidence), evidence_seeds, (InputError,)),
    Target("passport", passport, lambda: (sign_result(result(), verifier()).encode(),), EITHER),
    Target("passport-signed", passport_signed, lambda: (json.dumps(result()).encode(),), EITHER),
    Target(
        "verifier-key",
        verifier_keys,
        lambda: (verifier().export_private().encode(),),
        (InputError,),
    ),
)
