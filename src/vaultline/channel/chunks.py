"""Sealed chunks at rest: one stage's program and weights as a section of AES-256-GCM chunks.

A chunk is ``header (64) | ciphertext (at most 1 MiB) | tag (16)``; the header is the additional
data and can be computed by whoever knows what belongs there, so the copy in the file serves only
to say *what* is wrong. The nonce is (tensor, chunk): a section has a key of its own, made with a
fresh salt, so no pair of key and nonce repeats. See docs/vault-format.md.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vaultline.core.errors import RefusedError
from vaultline.core.limits import VAULT_CHUNK_BYTES_MAX
from vaultline.core.section import SectionId

MAGIC: Final = b"VLc1"
TAG_BYTES: Final = 16
#: Magic, vault id, model id, start of the plan digest, stage, flags, chunk, tensor, length.
HEADER = struct.Struct("!4s16s16s16sBBHII")
_NONCE = struct.Struct("!IQ")
HEADER_BYTES: Final = HEADER.size
OVERHEAD_BYTES: Final = HEADER_BYTES + TAG_BYTES
#: What is read into when a chunk is opened: its ciphertext and tag.
CELL_BYTES_MAX: Final = VAULT_CHUNK_BYTES_MAX + TAG_BYTES
LAST_OF_TENSOR, LAST_OF_SECTION = 1, 2
DIGEST_LABEL: Final = b"vaultline vault section v1"
#: What to do about every vault that is not what was sealed.
RESEAL: Final = "copy the vault again from where it was sealed, or run `vaultline seal` again"

Buffer = bytes | bytearray | memoryview


class VaultError(RefusedError):
    """A vault file is not what the owner sealed."""


class VaultFormatError(VaultError):
    """Not a vault, or its framing breaks the format or a limit; found before allocating."""


class VaultTruncatedError(VaultError):
    """The file ends before the vault does."""


class VaultTamperedError(VaultError):
    """A tag or digest does not verify: bytes were altered, or relabelled to look right."""


class VaultSwappedError(VaultError):
    """A chunk of this section stands where another one belongs."""


class VaultOtherModelError(VaultError):
    """Sealed under another model's key."""


class VaultOtherPlanError(VaultError):
    """The same model, sealed for another plan."""


class VaultOtherStageError(VaultError):
    """A section or chunk of another stage of this vault."""


class VaultStaleError(VaultError):
    """Another sealing of the same model and plan: an old file was put back."""


class Place(NamedTuple):
    """Where a chunk belongs, and how many bytes of plaintext it holds."""

    tensor: int
    chunk: int
    length: int
    last_of_tensor: bool
    last_of_section: bool

    @property
    def flags(self) -> int:
        """The flags of its header."""
        return self.last_of_tensor * LAST_OF_TENSOR + self.last_of_section * LAST_OF_SECTION

    @property
    def nonce(self) -> bytes:
        """The nonce under the section's key."""
        return _NONCE.pack(self.tensor, self.chunk)


def chunk_header(section: SectionId, place: Place) -> bytes:
    """The 64 bytes before a chunk's ciphertext, which are its additional data."""
    ids = (section.vault_id, section.model_id, section.plan_digest[:16], section.stage)
    return HEADER.pack(MAGIC, *ids, place.flags, place.chunk, place.tensor, place.length)


def mismatch(section: SectionId, header: Buffer, place: Place) -> VaultError:
    """Why the header found at ``place``, or else the chunk behind it, is not the right one."""
    magic, vault, model, plan, stage, flags, chunk, tensor, length = HEADER.unpack(header)
    framing, right_framing = (flags, length), (place.flags, place.length)
    checks: tuple[tuple[object, object, type[VaultError], str], ...] = (
        (magic, MAGIC, VaultFormatError, "no chunk of a vault where one must start"),
        (model, section.model_id, VaultOtherModelError, "sealed under another model's key"),
        (plan, section.plan_digest[:16], VaultOtherPlanError, "sealed for another plan"),
        (vault, section.vault_id, VaultStaleError, "from another sealing of this model"),
        (stage, section.stage, VaultOtherStageError, "a chunk of another stage"),
        ((tensor, chunk), place[:2], VaultSwappedError, "a chunk in another's place"),
        (framing, right_framing, VaultFormatError, "other flags or length than belong here"),
    )
    where = f"vault, stage {section.stage}, tensor {place.tensor}, chunk {place.chunk}"
    for got, expected, kind, what in checks:
        if got != expected:
            texts = [v.hex() if isinstance(v, bytes) else str(v) for v in (got, expected)]
            return kind(f"{where}: {what}", got=texts[0], expected=texts[1], remedy=RESEAL)
    return VaultTamperedError(f"{where}: altered since it was sealed", remedy=RESEAL)


def chunk_count(tensor_bytes: int) -> int:
    """Chunks of a tensor; one without bytes still has a chunk, so that it can't be left out."""
    return max(1, -(-tensor_bytes // VAULT_CHUNK_BYTES_MAX))


def sealed_bytes(tensor_bytes: int) -> int:
    """What a tensor of this size takes in the file."""
    return tensor_bytes + chunk_count(tensor_bytes) * OVERHEAD_BYTES


def places(tensor: int, tensor_bytes: int, *, last_tensor: bool) -> Iterator[Place]:
    """The chunks of one tensor in order."""
    last = chunk_count(tensor_bytes) - 1
    for chunk in range(last + 1):
        length = min(VAULT_CHUNK_BYTES_MAX, tensor_bytes - chunk * VAULT_CHUNK_BYTES_MAX)
        yield Place(tensor, chunk, length, chunk == last, chunk == last and last_tensor)


class ChunkOpener:
    """Opens the chunks of one section under the stage's key."""

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)

    def open_into(self, place: Place, header: bytes, cell: Buffer, out: memoryview) -> bool:
        """Verify and decrypt ``ciphertext | tag`` into ``out``; whether the tag verified.

        ``header`` is the place's (``chunk_header``). ``cell`` must be memory that nobody else can
        write: it may be read twice.
        """
        try:
            self._aead.decrypt_into(place.nonce, cell, header, out)
        except InvalidTag:
            return False
        return True
