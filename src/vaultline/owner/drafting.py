"""A policy drafted from evidence: its reference values, and nothing weaker than the default.

What the evidence would need beyond that (an outdated platform, advisories, debug) stands there as
comments, so that whoever accepts it has to do so by hand.
"""

from __future__ import annotations

import datetime
import json
import re
from typing import Any

from cryptography import x509

from vaultline.attest.claims import Claims
from vaultline.attest.collateral import candidates
from vaultline.attest.examine import kind_of
from vaultline.attest.judging import SNP_TCBS
from vaultline.attest.refusals import EvidenceRefused, RootRefused
from vaultline.attest.roots import NAMED_ROOTS, root_key_id
from vaultline.attest.verifiers import verify
from vaultline.core.errors import InputError
from vaultline.core.serde import from_json

_ADVISORY = re.compile(r"[A-Z]+-SA-[0-9]+")


def draft(evidence: bytes, collateral: bytes, now_s: int) -> str:
    """A policy (YAML) for what this evidence shows, which must verify under a vendor's root.

    A simulated platform's evidence is taken at its word, as nothing else vouches for it.

    Raises:
        EvidenceRefused: it does not verify.
        InputError: the collateral is not readable.
    """
    kind = kind_of(evidence)
    refusal: EvidenceRefused | None = None
    for text in candidates(kind, collateral) if collateral else (b"",):
        roots = frozenset(NAMED_ROOTS.values())
        if kind == "simulated":
            roots = frozenset({_own_root(text)})
        try:
            return render_policy(kind, verify(kind, evidence, text, roots, now_s), now_s)
        except RootRefused as error:
            refusal = RootRefused(
                "the certificates lead to a root that is no known vendor's",
                got=error.got,
                remedy="no policy is drafted for a root that nobody knows: write it by hand",
            )
        except EvidenceRefused as error:
            refusal = error
    if refusal is None:
        raise InputError("there is no collateral for this evidence")
    raise refusal


def _own_root(collateral: bytes) -> str:
    chain = from_json(collateral, dict[str, Any], what="the collateral")
    try:
        pem = str(chain.get("tcb_info_issuer_chain")).encode()
        return root_key_id(x509.load_pem_x509_certificates(pem)[-1])
    except ValueError as error:
        raise InputError("the collateral has no root", got=str(error)) from error


def render_policy(kind: str, claims: Claims, now_s: int) -> str:
    """The policy (YAML) that verified claims of a kind would satisfy."""
    named = {key_id: name for name, key_id in NAMED_ROOTS.items()}
    moment = datetime.datetime.fromtimestamp(now_s, datetime.UTC).date()
    lines = [
        f"# Drafted from one {claims.format} that verified for {moment}. Measurements are those of",
        "# whatever ran there: keep them if you know that code.",
        "version: 1",
        "accept:",
        f"  - kind: {kind}",
        f'    roots: ["{named.get(claims.root, claims.root)}"]',
        *_reference_values(kind, claims),
        *_doubts(claims),
    ]
    if kind == "simulated":
        lines.insert(0, "# SIMULATED: nothing vouches for it. Needs --allow-simulated as well.")
    return "\n".join(lines) + "\n"


def _reference_values(kind: str, claims: Claims) -> list[str]:
    found = claims.measurements
    if kind in ("simulated", "sgx"):
        lines = [f'    measurements: ["{found["mrenclave"]}"]']
        if kind == "sgx":
            versions = claims.versions
            lines += [
                "    # Or whatever this signer signs, which outlives updates of the code:",
                f'    # signers: [{{mrsigner: "{found["mrsigner"]}", '
                f"product_id: {versions['product_id']}, svn_min: {versions['svn']}}}]",
            ]
        return lines
    if kind == "tdx":
        names = ("mrtd", "rtmr1", "rtmr2", "rtmr0", "rtmr3", "mrseam")
        lines = [f'    {"  - " if n == "mrtd" else "    "}{n}: "{found[n]}"' for n in names[:3]]
        lines += [f'        # {name}: "{found[name]}"' for name in names[3:]]
        return [
            "    # RTMR0 covers tables of the host's whose code the kernel runs (ACPI).",
            "    trust_domains:",
            *lines,
        ]
    if kind == "snp":
        parts = ("boot_loader", "tee", "snp", "microcode", "fmc")
        least = ", ".join(
            f"{part}: {min(claims.versions[prefix + part] for prefix in SNP_TCBS)}"
            for part in parts
            if part in claims.versions
        )
        return [
            "    # Unless that guest was launched with kernel hashes, its digest is the firmware's",
            "    # alone, and whatever the host boots behind that is accepted.",
            "    guests:",
            f'      - launch_digest: "{found["launch_digest"]}"',
            f"        svn_min: {claims.versions['svn']}",
            f'        # host_data: "{found["host_data"]}"',
            f'        # id_key_digest: "{found["id_key_digest"]}"',
            f"    products: [{claims.product}]",
            f"    tcb_min: {{{least}}}",
        ]
    digests = {n: d for n, d in found.items() if n[0] == "m" and d.strip("0")}
    return [
        "    gpus:",
        # Texts of the device: quoted, so that they are nothing but values whatever they hold.
        f"      - driver: {json.dumps(found['driver'])}",
        f"        vbios: {json.dumps(found['vbios'])}",
        "        measurements:",
        *(f'          {name}: "{digest}"' for name, digest in digests.items()),
    ]


def _listed(advisory: str) -> str:
    """As a vendor names them, or quoted: of a simulated platform, they are anybody's text."""
    return advisory if _ADVISORY.fullmatch(advisory) else json.dumps(advisory)


def _doubts(claims: Claims) -> list[str]:
    """What the default refuses of this evidence, and the line that would accept it."""
    said: list[str] = []
    if claims.tcb_status == "Unlisted":
        said += [
            "below every level that the vendor lists; to accept it for a time:",
            "tcb_grace: [{status: Unlisted, days: ...}]",
        ]
    elif claims.tcb_status not in ("UpToDate", "Unrated"):
        said += [
            "the platform is not up to date; to accept it:",
            f"tcb_statuses: [UpToDate, {claims.tcb_status}]",
        ]
    if claims.advisories:
        said += [
            "these advisories apply; to accept them:",
            f"accepted_advisories: [{', '.join(map(_listed, claims.advisories))}]",
        ]
    if claims.debug:
        said += ["the host can read its memory; never but to try:", "unsafe_allow_debug: true"]
    if claims.flags.get("migration") == "True":
        said += ["its host may move it; never but to try:", "unsafe_allow_migration: true"]
    if not claims.revocation_checked:
        said += [
            "no revocation lists were given; pack them, or:",
            "unsafe_skip_revocation: true",
        ]
    return [f"    # {line}" for line in said]
