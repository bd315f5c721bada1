"""The parts that policies are made of: reference values, grace periods, minimum versions."""

from __future__ import annotations

from typing import Literal

from vaultline.core.errors import InputError
from vaultline.core.serde import Struct

TcbStatus = Literal[
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "TDRelaunchAdvised",
    "TDRelaunchAdvisedConfigurationNeeded",
]
GraceStatus = Literal["OutOfDate", "OutOfDateConfigurationNeeded", "Unlisted"]


#: Names of a GPU's measurements.
_INDICES = frozenset(f"m{index:02}" for index in range(1, 65))


def check_hex(text: str, size_bytes: int, what: str) -> None:
    """Refuse a text that is not so many bytes in hex.

    Raises:
        InputError: it is not.
    """
    try:
        right = len(bytes.fromhex(text)) == size_bytes and len(text) == 2 * size_bytes
    except ValueError:
        right = False
    if not right:
        raise InputError(
            f"{what} is not right", got=repr(text), expected=f"{2 * size_bytes} hex digits"
        )


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
        check_hex(self.mrsigner, 32, "mrsigner")
        if not (0 <= self.product_id < 1 << 16 and 0 <= self.svn_min < 1 << 16):
            raise InputError("product_id and svn_min are 16-bit numbers")


class TrustDomain(Struct, frozen=True, kw_only=True):
    """Reference values of a TDX guest: firmware, and what the firmware started.

    MRTD alone covers the virtual firmware only, so RTMR1 (boot loader, kernel) and RTMR2 (command
    line, initial file system) are required; RTMR0 (hardware set-up), RTMR3, MRSEAM and MRCONFIGID
    are not checked when left out.
    """

    mrtd: str
    rtmr1: str
    rtmr2: str
    rtmr0: str | None = None
    rtmr3: str | None = None
    mrseam: str | None = None
    mrconfigid: str | None = None

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if value is not None:
                check_hex(value, 48, name)


class SnpGuest(Struct, frozen=True, kw_only=True):
    """Reference values of a SEV-SNP guest.

    Attributes:
        launch_digest: of the initial memory, which covers firmware; with measured direct boot also
            kernel, command line and initial file system.
        host_data: what the host committed to at launch; not checked when left out.
        id_key_digest: of the key that signed the guest's identity; not checked when left out.
        svn_min: least guest security version. Who signs the identity says it, which is whoever
            launches the guest unless ``id_key_digest`` is given.
    """

    launch_digest: str
    host_data: str | None = None
    id_key_digest: str | None = None
    svn_min: int = 0

    def __post_init__(self) -> None:
        check_hex(self.launch_digest, 48, "launch_digest")
        if self.host_data is not None:
            check_hex(self.host_data, 32, "host_data")
        if self.id_key_digest is not None:
            check_hex(self.id_key_digest, 48, "id_key_digest")
        if not 0 <= self.svn_min < 1 << 32:
            raise InputError("svn_min is a 32-bit number")


class Gpu(Struct, frozen=True, kw_only=True):
    """Reference values of a GPU in confidential mode.

    Attributes:
        driver, vbios: versions, exactly.
        measurements: digests (hex) by index, ``m01`` to ``m64``; others are not checked.
    """

    driver: str
    vbios: str
    measurements: dict[str, str]

    def __post_init__(self) -> None:
        if not self.measurements:
            raise InputError("a GPU without measurements says nothing about its firmware")
        for name, digest in self.measurements.items():
            if name not in _INDICES:
                raise InputError("a measurement has no index", got=name, expected="m01 to m64")
            check_hex(digest, 48, f"measurement {name}")


class Grace(Struct, frozen=True, kw_only=True):
    """How long an outdated platform is still accepted.

    Attributes:
        status: what it is accepted in spite of. ``Unlisted``: below every level that the vendor
            lists; it counts as having the lowest one.
        days: after the date of the level that the platform has.
    """

    status: GraceStatus
    days: int

    def __post_init__(self) -> None:
        if not 1 <= self.days <= 36_500:
            raise InputError("a grace period has 1 to 36500 days", got=str(self.days))


class SnpTcb(Struct, frozen=True, kw_only=True):
    """Least versions of AMD's firmware; ``fmc`` exists from Turin on."""

    boot_loader: int = 0
    tee: int = 0
    snp: int = 0
    microcode: int = 0
    fmc: int = 0

    def __post_init__(self) -> None:
        if any(not 0 <= getattr(self, name) <= 255 for name in self.__struct_fields__):
            raise InputError("AMD's firmware versions are numbers up to 255")
