"""One interface for evidence of every kind: bytes in, verified claims out, or a named refusal.

A verifier checks all that can be checked without an owner's opinion: form and exact length,
signatures, certificates up to an accepted root, revocation lists, validity at the stated time. What
the claims are worth is the policy's: ``judging``.
"""

from __future__ import annotations

from typing import Literal, Protocol

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from vaultline.attest.claims import Claims
from vaultline.attest.intel import verify_intel
from vaultline.attest.nvidia import verify_nvidia
from vaultline.attest.refusals import CertificateRefused, KindRefused, QuoteInvalid
from vaultline.attest.snp import REPORT_BYTES, verify_snp

#: Kinds of evidence by what vouches for them; see `evidence.Kind` for what a worker claims.
VerifiedKind = Literal["simulated", "sgx", "tdx", "snp", "nvidia"]
_MALFORMED = (
    ValueError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
_INTEL_TEES = {0x00: "sgx", 0x81: "tdx"}


class Verifier(Protocol):
    """Verifies evidence of one format.

    Every verifier passes ``tests/unit/attest/test_verifiers.py``.
    """

    def __call__(
        self, evidence: bytes, collateral: bytes, roots: frozenset[str], now_s: int, /
    ) -> Claims:
        """Verify evidence.

        Args:
            evidence: as the hardware gave it.
            collateral: JSON: certificates, revocation lists, the vendor's statements.
            roots: key ids of roots that are accepted; nothing else is trusted.
            now_s: Unix time at which all of it has to be valid.

        Raises:
            EvidenceRefused: a subclass for each reason, and nothing else whatever the evidence is.
            InputError: the collateral is not readable.
        """


VERIFIERS: dict[str, Verifier] = {
    "simulated": verify_intel,
    "sgx": verify_intel,
    "tdx": verify_intel,
    "snp": verify_snp,
    "nvidia": verify_nvidia,
}


def verify(
    kind: str, evidence: bytes, collateral: bytes, roots: frozenset[str], now_s: int
) -> Claims:
    """Verify evidence that is claimed to be of a kind; see `Verifier`.

    Raises:
        KindRefused: no verifier for it, or the evidence is of another kind.
    """
    if kind not in VERIFIERS:
        raise KindRefused("nothing verifies this kind of evidence", got=kind)
    try:
        claims = VERIFIERS[kind](evidence, collateral, roots, now_s)
    except _MALFORMED as error:  # parts of certificates are parsed when they are looked at
        raise CertificateRefused("a certificate is malformed", got=str(error)) from error
    expected = "sgx" if kind == "simulated" else kind
    if claims.kind != expected:
        raise KindRefused(
            f"evidence of kind `{kind}` carries a quote of another kind",
            got=claims.kind,
            expected=expected,
        )
    return claims


def detect_kind(evidence: bytes) -> VerifiedKind:
    """What evidence is by its first bytes; nothing of it is verified.

    Raises:
        QuoteInvalid: none that is known.
    """
    if evidence[:1] == b"\x11" and evidence[1:2] == b"\xe0":
        return "nvidia"
    version = int.from_bytes(evidence[:2], "little")
    tee = int.from_bytes(evidence[4:8], "little")
    key_type = int.from_bytes(evidence[2:4], "little")
    # The top half of a SEV-SNP report's version is zero; there a quote has its type of key.
    if key_type == 0 and 2 <= version <= 5 and len(evidence) >= REPORT_BYTES:
        return "snp"
    if version in (3, 4, 5) and tee in _INTEL_TEES:
        return "tdx" if tee else "sgx"
    raise QuoteInvalid(
        "not evidence of a known kind",
        got=f"{len(evidence)} bytes that begin with {evidence[:8].hex()}",
        expected="an SGX or TDX quote, a SEV-SNP report or an NVIDIA report",
    )
