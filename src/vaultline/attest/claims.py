"""What verified evidence says, in one vocabulary for every kind."""

from __future__ import annotations

from typing import Literal

from vaultline.core.serde import Struct

#: States of a platform's firmware, in Intel's words. ``Unlisted``: below every level that the
#: vendor lists. AMD and NVIDIA state versions and not a status: ``Unrated``.
TcbState = Literal[
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "TDRelaunchAdvised",
    "TDRelaunchAdvisedConfigurationNeeded",
    "Revoked",
    "Unlisted",
    "Unrated",
]
Product = Literal["Milan", "Genoa", "Turin"]


class Claims(Struct, frozen=True, kw_only=True):
    """What evidence says, after its signatures, certificates and dates have been checked.

    Nothing here has been compared with a policy yet, except the root.

    Attributes:
        kind: ``sgx``, ``tdx``, ``snp`` or ``nvidia``, by what the evidence is.
        format: of the evidence, such as ``sgx-quote-3`` or ``snp-report-2``.
        root: key id (hex) of the root that the chain ends in.
        chip: what tells platforms apart (hex): PPID, chip id, device serial; empty where masked.
        product: family of processors or devices, where the evidence names it.
        measurements: by register: ``mrenclave`` and ``mrsigner``, ``mrtd`` and ``rtmr0`` to
            ``rtmr3``, ``launch_digest``, ``host_data`` and ``id_key_digest`` (hex);
            ``driver``, ``vbios`` and ``m01`` to ``m64``.
        versions: numbers: ``product_id``, ``svn``, ``vmpl``, and AMD's firmware versions.
        report_data: what the evidence commits to (hex); of NVIDIA, the requester's nonce.
        debug: the host can read its memory.
        development: its certificate marks a simulated platform.
        tcb_date_s: Unix time of the oldest TCB level that counts; 0 where there is none.
        advisories: those that apply to the platform.
        flags: properties of the platform: ``True``, ``False`` or ``Undefined``.
        revocation_checked: no certificate of the chain is on a list by its issuer, and there
            were such lists.
        issued_s, expires_s: all collateral and certificates are valid from and until (Unix).
        stated_s: when the oldest of the statements was issued that vendors renew (Unix): TCB info,
            QE identity and list of platforms; all lists of AMD and NVIDIA, or where there are none
            the newest certificate.
        tcb_evaluation: number of the vendor's rules by which the platform was rated.
    """

    kind: str
    format: str
    root: str
    chip: str = ""
    product: str = ""
    measurements: dict[str, str]
    versions: dict[str, int]
    report_data: str
    debug: bool
    development: bool = False
    tcb_status: TcbState
    tcb_date_s: int = 0
    advisories: tuple[str, ...] = ()
    flags: dict[str, str]
    revocation_checked: bool
    issued_s: int
    stated_s: int
    expires_s: int
    tcb_evaluation: int = 0

    @property
    def measurement(self) -> str:
        """The one that names the code: MRENCLAVE, MRTD, launch digest, or the driver."""
        names = ("mrenclave", "mrtd", "launch_digest", "driver")
        return next(self.measurements[name] for name in names if name in self.measurements)
