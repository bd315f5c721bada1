"""The front of a vault file: what is inside, and where each stage's section lies.

``magic (8) | version (4) | length of the header (4) | header (JSON) | sections``. The host can
read and rewrite all of it, so no enclave reads it: grants say where to look. The owner compares
its digest with the key file's.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from typing import Final

from vaultline.channel.chunks import RESEAL, Buffer, VaultFormatError
from vaultline.core.errors import InputError
from vaultline.core.limits import MIB, STAGES_MAX
from vaultline.core.program import Isa
from vaultline.core.serde import Struct, canonical_json, from_json

MAGIC: Final = b"VLTVAULT"
VERSION: Final = 2
_PREFIX = struct.Struct("!8sII")
_DIGEST_LABEL = b"vaultline vault header v1"
#: A few hundred bytes per stage.
VAULT_HEADER_BYTES_MAX = 1 * MIB


class SectionEntry(Struct, frozen=True):
    """One stage's section, and what its program was compiled for.

    ``offset`` counts from the end of the header.
    """

    offset: int
    length: int
    chunks: int
    isa: Isa
    engine_version: str

    def __post_init__(self) -> None:
        if min(self.offset, self.length, self.chunks) < 0 or self.offset + self.length >= 1 << 63:
            raise InputError("a section's place in the file is impossible")


class VaultHeader(Struct, frozen=True):
    """The public header; section k is stage k's.

    Attributes:
        vault_id: 16 random bytes of this sealing.
        model_id: derived from the model key: equal in every sealing under it, and says no more.
        created: when it was sealed, UTC, ISO 8601.
    """

    vault_id: bytes
    model_id: bytes
    plan_digest: bytes
    created: str
    sections: tuple[SectionEntry, ...]

    def __post_init__(self) -> None:
        lengths = (len(self.vault_id), len(self.model_id), len(self.plan_digest))
        if lengths != (16, 16, 32):
            raise InputError("the ids or the plan digest have a wrong length")
        if not 1 <= len(self.sections) <= STAGES_MAX:
            raise InputError("a vault has 1 to 64 sections", got=str(len(self.sections)))


class Front(Struct, frozen=True):
    """The header, where the sections begin, and the digest of every byte before that."""

    header: VaultHeader
    sections_start: int
    digest: bytes

    def bounds(self, stage: int) -> tuple[int, int]:
        """Offset in the file and length of a stage's section: hints, still to be checked.

        Raises:
            VaultFormatError: the vault has no such stage.
        """
        if not 0 <= stage < len(self.header.sections):
            raise VaultFormatError(
                "the vault has no section for this stage",
                got=f"stage {stage}",
                expected=f"one of {len(self.header.sections)} stages",
                remedy=RESEAL,
            )
        entry = self.header.sections[stage]
        return self.sections_start + entry.offset, entry.length


def write_front(header: VaultHeader) -> tuple[bytes, bytes]:
    """The bytes that a vault starts with, and their digest."""
    text = canonical_json(header)
    front = _PREFIX.pack(MAGIC, VERSION, len(text)) + text
    return front, _digest(front)


def read_front(read: Callable[[int, int], Buffer]) -> Front:
    """Read the start of a vault.

    Args:
        read: (offset in the file, count) to that many bytes, or raises VaultTruncatedError.

    Raises:
        VaultTruncatedError: the file ends inside the header.
        VaultFormatError: not a vault of this version, or a header that breaks the format.
    """
    prefix = bytes(read(0, _PREFIX.size))
    magic, version, length = _PREFIX.unpack(prefix)
    if (magic, version) != (MAGIC, VERSION):
        raise VaultFormatError(
            "not a vault that this version can read",
            got=f"{magic!r}, version {version}",
            expected=f"{MAGIC!r}, version {VERSION}",
            remedy="name the file that `vaultline seal` wrote, or seal the model again",
        )
    if length > VAULT_HEADER_BYTES_MAX:
        raise VaultFormatError(
            "the vault's header is too long",
            got=f"{length} bytes",
            expected=f"at most {VAULT_HEADER_BYTES_MAX}",
            remedy=RESEAL,
        )
    text = bytes(read(_PREFIX.size, length))
    try:
        header = from_json(text, VaultHeader, what="the vault's header")
    except InputError as error:
        raise VaultFormatError(
            error.message, got=error.got, expected=error.expected, remedy=RESEAL
        ) from error
    return Front(header=header, sections_start=_PREFIX.size + length, digest=_digest(prefix + text))


def _digest(front: bytes) -> bytes:
    return hashlib.sha256(_DIGEST_LABEL + front).digest()
