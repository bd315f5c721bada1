"""What the owner accepts as an enclave: reference values, in the words of RFC 9334."""

from __future__ import annotations

import hashlib
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from vaultline.core.errors import InputError
from vaultline.core.serde import Struct

#: Intel's SGX root by its key id: SHA-384 of the uncompressed point of its public key.
INTEL_ROOT = (
    "46e403bd34f05a3f2817ab9badcaacc7ffc98e0f261008cd30dae936cace18d5"
    "dcf58eef31463613de1570d516200993"
)
#: Platform family that no processor has: marks simulated platforms in their signed certificate.
DEVELOPMENT_FMSPC = "DEF000000000"

TcbStatus = Literal[
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
]
PlatformFlag = Literal["dynamic-platform", "cached-keys", "smt"]
AcceptedKind = Literal["simulated", "sgx", "tdx", "accelerator"]
_REFERENCES = ("measurements", "signers", "trust_domains", "public_keys")


def root_key_id(root: x509.Certificate) -> str:
    """The id by which policies name a root: SHA-384 (hex) of its key's uncompressed point."""
    point = root.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return hashlib.sha384(point).hexdigest()


class Signer(Struct, frozen=True, kw_only=True):
    """Accepts whatever this signer signed as this product, from this version on.

    Attributes:
        mrsigner: SHA-256 (hex) of the signer's key.
        product_id: ISV product id, exactly.
        svn_min: least ISV security version.
    """

    mrsigner: str
    product_id: int
    svn_min: int

    def __post_init__(self) -> None:
        _check_hex(self.mrsigner, 32, "mrsigner")
        if not (0 <= self.product_id < 1 << 16 and 0 <= self.svn_min < 1 << 16):
            raise InputError("product_id and svn_min are 16-bit numbers")


class TrustDomain(Struct, frozen=True, kw_only=True):
    """Reference values of a TDX guest: firmware, and what the firmware started.

    MRTD alone covers the virtual firmware only, so RTMR1 (boot loader, kernel) and RTMR2 (command
    line, initial file system) are required; RTMR0 (hardware set-up) and RTMR3 are not checked
    when left out.
    """

    mrtd: str
    rtmr1: str
    rtmr2: str
    rtmr0: str | None = None
    rtmr3: str | None = None

    def __post_init__(self) -> None:
        for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"):
            value = getattr(self, name)
            if value is not None:
                _check_hex(value, 48, name)


class Accepted(Struct, frozen=True, kw_only=True):
    """One kind of enclave, or of untrusted worker, that the owner accepts.

    Attributes:
        kind: what vouches for it. ``simulated`` also needs the owner's explicit consent.
        roots: key ids (hex) of accepted root certificates, or ``intel``; none for ``accelerator``.
        measurements: MRENCLAVE values (hex); for ``simulated``, digests of the worker's code.
        signers: alternatives to measurements, for ``sgx``.
        trust_domains: for ``tdx``.
        public_keys: for ``accelerator``, a worker that nothing vouches for: Ed25519 keys (hex).
        tcb_statuses: accepted states of the platform's firmware and quoting enclave.
        accepted_advisories: security advisories that may apply to the platform; any other refuses.
        refused_platforms: properties of a platform that refuse it.
    """

    kind: AcceptedKind
    roots: tuple[str, ...] = ()
    measurements: tuple[str, ...] = ()
    signers: tuple[Signer, ...] = ()
    trust_domains: tuple[TrustDomain, ...] = ()
    public_keys: tuple[str, ...] = ()
    tcb_statuses: tuple[TcbStatus, ...] = ("UpToDate",)
    accepted_advisories: tuple[str, ...] = ()
    refused_platforms: tuple[PlatformFlag, ...] = ()

    def __post_init__(self) -> None:
        for root in self.roots:
            if root != "intel":
                _check_hex(root, 48, "a root's key id (or `intel`)")
        for measurement in self.measurements:
            _check_hex(measurement, 32, "a measurement")
        for key in self.public_keys:
            _check_hex(key, 32, "an accelerator's public key")
        allowed = {
            "simulated": {"measurements"},
            "sgx": {"measurements", "signers"},
            "tdx": {"trust_domains"},
            "accelerator": {"public_keys"},
        }[self.kind]
        given = {name for name in _REFERENCES if getattr(self, name)}
        if not given or given - allowed:
            raise InputError(
                f"an accepted device of kind `{self.kind}` needs other reference values",
                got=", ".join(sorted(given)) or "none",
                expected=" or ".join(sorted(allowed)),
            )
        if self.kind == "accelerator" and self.roots:
            raise InputError("an accelerator has no root: nothing vouches for it", got="roots")
        if self.kind != "accelerator" and not (self.roots and self.tcb_statuses):
            raise InputError("an empty list of roots or tcb_statuses accepts nothing")
        if self.kind == "simulated" and {"intel", INTEL_ROOT}.intersection(self.root_ids):
            raise InputError(
                "a simulated enclave cannot have Intel's root",
                expected="the key id of a development root",
                remedy="use the policy that `vaultline devroot` drafts",
            )

    @property
    def pinned_keys(self) -> frozenset[str]:
        """The accepted public keys, in lower case."""
        return frozenset(key.lower() for key in self.public_keys)

    @property
    def root_ids(self) -> frozenset[str]:
        """Key ids of the accepted roots, in lower case."""
        return frozenset(INTEL_ROOT if root == "intel" else root.lower() for root in self.roots)


class Policy(Struct, frozen=True, kw_only=True):
    """The owner's appraisal policy. Evidence must satisfy one entry of ``accept`` entirely.

    Attributes:
        version: 1.
        accept: at least one entry.
        debug: may be written down as false; debuggable enclaves are refused always.
    """

    version: int
    accept: tuple[Accepted, ...]
    debug: bool = False

    def __post_init__(self) -> None:
        if self.version != 1:
            raise InputError("policy of another version", got=str(self.version), expected="1")
        if not self.accept:
            raise InputError(
                "the policy accepts nothing",
                remedy="name a kind, its roots and its measurements under `accept`",
            )
        if self.debug:
            raise InputError(
                "debuggable enclaves are always refused: the host can read their memory",
                got="debug: true",
                remedy="remove the line, and build the enclave for production",
            )


def _check_hex(text: str, size_bytes: int, what: str) -> None:
    try:
        right = len(bytes.fromhex(text)) == size_bytes and len(text) == 2 * size_bytes
    except ValueError:
        right = False
    if not right:
        raise InputError(
            f"{what} is not right", got=repr(text), expected=f"{2 * size_bytes} hex digits"
        )
