"""What the owner accepts as an enclave: reference values, in the words of RFC 9334."""

from __future__ import annotations

from typing import Literal

from vaultline.attest.claims import Product
from vaultline.attest.policy_parts import (
    Gpu,
    Grace,
    Signer,
    SnpGuest,
    SnpTcb,
    TcbStatus,
    TrustDomain,
    check_hex,
)
from vaultline.attest.roots import INTEL_ROOT, NAMED_ROOTS, root_key_id
from vaultline.core.errors import InputError
from vaultline.core.serde import Struct

__all__ = [
    "DEVELOPMENT_FMSPC",
    "INTEL_ROOT",
    "Accepted",
    "Gpu",
    "Grace",
    "Policy",
    "Signer",
    "SnpGuest",
    "SnpTcb",
    "TrustDomain",
    "root_key_id",
]

#: Platform family that no processor has: marks simulated platforms in their signed certificate.
DEVELOPMENT_FMSPC = "DEF000000000"

PlatformFlag = Literal[
    "dynamic-platform", "cached-keys", "smt", "migration", "multi-socket", "shared-key"
]
AcceptedKind = Literal["simulated", "sgx", "tdx", "snp", "nvidia", "accelerator"]
_REFERENCES = ("measurements", "signers", "trust_domains", "guests", "gpus", "public_keys")
#: Which reference values a kind takes.
_ALLOWED = {
    "simulated": {"measurements"},
    "sgx": {"measurements", "signers"},
    "tdx": {"trust_domains"},
    "snp": {"guests"},
    "nvidia": {"gpus"},
    "accelerator": {"public_keys"},
}
#: Kinds of evidence that somebody vouches for.
_VERIFIED = _ALLOWED.keys() - {"accelerator"}
#: Options that mean something for some kinds only.
_ONLY_FOR = {
    "products": {"snp"},
    "tcb_min": {"snp"},
    "vmpl_max": {"snp"},
    "collateral_days_max": _VERIFIED,
    "refused_platforms": _VERIFIED,
    "require_report_data": _VERIFIED,
    "unsafe_allow_debug": {"snp"},
    "unsafe_allow_migration": {"snp"},
    "unsafe_skip_revocation": {"snp", "nvidia"},
    "unsafe_any_advisory": {"simulated", "sgx", "tdx"},
    "tcb_statuses": {"simulated", "sgx", "tdx"},
    "tcb_grace": {"simulated", "sgx", "tdx"},
    "tcb_evaluation_min": {"simulated", "sgx", "tdx"},
    "accepted_advisories": {"simulated", "sgx", "tdx"},
    "refused_advisories": {"simulated", "sgx", "tdx"},
}


class Accepted(Struct, frozen=True, kw_only=True):
    """One kind of enclave, or of untrusted worker, that the owner accepts.

    Attributes:
        kind: what vouches for it. ``simulated`` also needs the owner's explicit consent.
        roots: key ids (hex) of accepted roots, or names: ``intel``, ``amd-milan``, ``amd-genoa``,
            ``amd-turin``, ``nvidia``; none for ``accelerator``.
        measurements: MRENCLAVE values (hex); for ``simulated``, digests of the worker's code.
        signers: alternatives to measurements, for ``sgx``.
        trust_domains: for ``tdx``. guests: for ``snp``. gpus: for ``nvidia``.
        public_keys: for ``accelerator``, a worker that nothing vouches for: Ed25519 keys (hex).
        tcb_statuses: accepted states of the platform's firmware and quoting enclave.
        tcb_grace: further states, for a time.
        accepted_advisories: security advisories that may apply to the platform; any other refuses.
        refused_advisories: these refuse in any case.
        refused_platforms: properties of a platform that refuse it.
        products: processor families, for ``snp``; empty: whichever the roots vouch for.
        tcb_min: least firmware versions, for ``snp``: reported, committed and at launch.
        vmpl_max: highest VMPL that may answer.
        collateral_days_max: greatest age of the oldest statement that vendors renew: TCB info, QE
            identity, list of platforms; every list of AMD's and NVIDIA's.
        tcb_evaluation_min: least number of the vendor's rules by which the platform was rated.
        require_report_data: refuse where nothing was said to compare the report data with.
        unsafe_any_advisory: accept whatever advisories apply, but for the refused ones.
        unsafe_allow_debug: accept a guest whose memory the host can read.
        unsafe_allow_migration: accept a guest that its host may move, by an agent of its choosing.
        unsafe_skip_revocation: accept without the vendor's revocation lists.
    """

    kind: AcceptedKind
    roots: tuple[str, ...] = ()
    measurements: tuple[str, ...] = ()
    signers: tuple[Signer, ...] = ()
    trust_domains: tuple[TrustDomain, ...] = ()
    guests: tuple[SnpGuest, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    public_keys: tuple[str, ...] = ()
    tcb_statuses: tuple[TcbStatus, ...] = ("UpToDate",)
    tcb_grace: tuple[Grace, ...] = ()
    accepted_advisories: tuple[str, ...] = ()
    refused_advisories: tuple[str, ...] = ()
    refused_platforms: tuple[PlatformFlag, ...] = ()
    products: tuple[Product, ...] = ()
    tcb_min: SnpTcb = SnpTcb()
    vmpl_max: int = 0
    collateral_days_max: int | None = None
    tcb_evaluation_min: int = 0
    require_report_data: bool = False
    unsafe_any_advisory: bool = False
    unsafe_allow_debug: bool = False
    unsafe_allow_migration: bool = False
    unsafe_skip_revocation: bool = False

    def __post_init__(self) -> None:
        self._check_values()
        self._check_kind()
        if self.kind == "accelerator" and self.roots:
            raise InputError("an accelerator has no root: nothing vouches for it", got="roots")
        if self.kind != "accelerator" and not (self.roots and self.tcb_statuses):
            raise InputError("an empty list of roots or tcb_statuses accepts nothing")
        if self.kind == "simulated" and self.root_ids & set(NAMED_ROOTS.values()):
            raise InputError(
                "a simulated enclave cannot have Intel's root, or another vendor's",
                expected="the key id of a development root",
                remedy="use the policy that `vaultline policy dev` drafts",
            )

    def _check_values(self) -> None:
        for root in self.roots:
            if root not in NAMED_ROOTS:
                check_hex(root, 48, f"a root's key id (or {', '.join(sorted(NAMED_ROOTS))})")
        for measurement in self.measurements:
            check_hex(measurement, 32, "a measurement")
        for key in self.public_keys:
            check_hex(key, 32, "an accelerator's public key")
        if not 0 <= self.vmpl_max <= 3 or self.tcb_evaluation_min < 0:
            raise InputError("vmpl_max is 0 to 3, and tcb_evaluation_min not negative")
        if self.collateral_days_max is not None and self.collateral_days_max < 1:
            raise InputError("collateral_days_max is at least 1")
        lists = (self.accepted_advisories, self.refused_advisories)
        both = set.intersection(*({name.upper() for name in names} for names in lists))
        if both:
            raise InputError("advisories are both accepted and refused", got=", ".join(both))

    def _check_kind(self) -> None:
        allowed = _ALLOWED[self.kind]
        given = {name for name in _REFERENCES if getattr(self, name)}
        if not given or given - allowed:
            raise InputError(
                f"an accepted device of kind `{self.kind}` needs other reference values",
                got=", ".join(sorted(given)) or "none",
                expected=" or ".join(sorted(allowed)),
            )
        defaults = dict(
            zip(
                self.__struct_fields__[-len(self.__struct_defaults__) :],
                self.__struct_defaults__,
                strict=True,
            )
        )
        for name, kinds in _ONLY_FOR.items():
            if self.kind not in kinds and getattr(self, name) != defaults[name]:
                raise InputError(
                    f"`{name}` means nothing for kind `{self.kind}`",
                    expected="only for " + ", ".join(sorted(kinds)),
                    remedy="remove the line",
                )

    @property
    def pinned_keys(self) -> frozenset[str]:
        """The accepted public keys, in lower case."""
        return frozenset(key.lower() for key in self.public_keys)

    @property
    def root_ids(self) -> frozenset[str]:
        """Key ids of the accepted roots, in lower case."""
        return frozenset(NAMED_ROOTS.get(root, root.lower()) for root in self.roots)

    @property
    def unsafe(self) -> tuple[str, ...]:
        """Names of the unsafe options that are on, for every result."""
        names = (name for name in self.__struct_fields__ if name.startswith("unsafe_"))
        return tuple(name for name in names if getattr(self, name))


class Policy(Struct, frozen=True, kw_only=True):
    """The owner's appraisal policy. Evidence must satisfy one entry of ``accept`` entirely.

    Policies compose: several can be asked for, and then evidence must satisfy each.

    Attributes:
        version: 1.
        accept: at least one entry.
        debug: may be written down as false; debuggable enclaves are refused (``unsafe_allow_debug``
            of an entry says otherwise).
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

    @property
    def unsafe(self) -> tuple[str, ...]:
        """Names of the unsafe options that any entry has, for every result."""
        return tuple(sorted({name for entry in self.accept for name in entry.unsafe}))
