"""Sealed chunks at rest: one stage's program and weights as a section of AES-256-GCM chunks.

A chunk is ``header (64) | ciphertext (at most 1 MiB) | tag (16)``; the header is the additional
data and can be computed by whoever knows what belongs there, so the copy in the file serves only
to say *what* is wrong. The nonce is (tensor, chunk): a section has a key of its own, made with a
fresh salt, so no pair of key and nonce repeats. See docs/vault-format.md.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vaultline.core.errors import LocalProtocolError, RefusedError
from vaultline.core.limits import (
    PROGRAM_BYTES_MAX,
    TENSOR_BYTES_MAX,
    VAULT_CHUNK_BYTES_MAX,
    VAULT_TENSORS_MAX,
)

MAGIC: Final = b"VLc1"
ID_BYTES: Final = 16
KEY_BYTES: Final = 32
DIGEST_BYTES: Final = 32
TAG_BYTES: Final = 16
#: Magic, vault id, model id, start of the plan digest, stage, flags, chunk, tensor, length.
_HEADER = struct.Struct("!4s16s16s16sBBHII")
_NONCE = struct.Struct("!IQ")
HEADER_BYTES: Final = _HEADER.size
OVERHEAD_BYTES: Final = HEADER_BYTES + TAG_BYTES
#: What is read into when a chunk is opened: its ciphertext and tag.
CELL_BYTES_MAX: Final = VAULT_CHUNK_BYTES_MAX + TAG_BYTES
_LAST_OF_TENSOR, _LAST_OF_SECTION = 1, 2
_DIGEST_LABEL = b"vaultline vault section v1"
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


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionId:
    """What every chunk of one section says of itself."""

    vault_id: bytes
    model_id: bytes
    plan_digest: bytes
    stage: int

    def __post_init__(self) -> None:
        lengths = (len(self.vault_id), len(self.model_id), len(self.plan_digest))
        if lengths != (ID_BYTES, ID_BYTES, DIGEST_BYTES) or not 0 <= self.stage < 256:
            raise LocalProtocolError("ids have 16 bytes, a plan digest 32 and a stage is a byte")

    def header(self, place: Place) -> bytes:
        """The 64 bytes before a chunk's ciphertext, which are its additional data."""
        flags = place.last_of_tensor * _LAST_OF_TENSOR + place.last_of_section * _LAST_OF_SECTION
        start = (MAGIC, self.vault_id, self.model_id, self.plan_digest[:ID_BYTES], self.stage)
        return _HEADER.pack(*start, flags, place.chunk, place.tensor, place.length)

    def mismatch(self, header: Buffer, place: Place) -> VaultError:
        """Why the header found at ``place``, or else the chunk behind it, is not the right one."""
        magic, vault, model, plan, stage, _, chunk, tensor, _ = _HEADER.unpack(header)
        checks: tuple[tuple[object, object, type[VaultError], str], ...] = (
            (magic, MAGIC, VaultFormatError, "no chunk of a vault where one must start"),
            (model, self.model_id, VaultOtherModelError, "sealed under another model's key"),
            (plan, self.plan_digest[:ID_BYTES], VaultOtherPlanError, "sealed for another plan"),
            (vault, self.vault_id, VaultStaleError, "from another sealing of this model"),
            (stage, self.stage, VaultOtherStageError, "a chunk of another stage"),
            ((tensor, chunk), place[:2], VaultSwappedError, "a chunk in another's place"),
        )
        where = f"vault, stage {self.stage}, tensor {place.tensor}, chunk {place.chunk}"
        for got, expected, kind, what in checks:
            if got != expected:
                return kind(
                    f"{where}: {what}", got=_text(got), expected=_text(expected), remedy=RESEAL
                )
        return VaultTamperedError(f"{where}: altered since it was sealed", remedy=RESEAL)


def _text(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


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


class SectionDigest:
    """SHA-256 over every header and tag of a section in order: what the grant carries."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256(_DIGEST_LABEL)

    def add(self, header: Buffer, tag: Buffer) -> None:
        """Take in the next chunk."""
        self._hash.update(header)
        self._hash.update(tag)

    def digest(self) -> bytes:
        """The digest of the chunks so far."""
        return self._hash.digest()


class ChunkCipher:
    """Seals and opens the chunks of one section under the stage's key."""

    def __init__(self, key: bytes, section: SectionId) -> None:
        if len(key) != KEY_BYTES:
            raise LocalProtocolError(f"a stage key has {KEY_BYTES} bytes")
        self._aead = AESGCM(key)
        self.section = section

    def seal_into(self, place: Place, plaintext: Buffer, out: memoryview) -> memoryview:
        """Write a chunk to the start of ``out``; each place may be sealed once per key."""
        if len(plaintext) != place.length or place.length > VAULT_CHUNK_BYTES_MAX:
            raise LocalProtocolError("a chunk's plaintext does not have the length of its place")
        header = self.section.header(place)
        sealed = out[: place.length + OVERHEAD_BYTES]
        sealed[:HEADER_BYTES] = header
        nonce = _NONCE.pack(place.tensor, place.chunk)
        self._aead.encrypt_into(nonce, plaintext, header, sealed[HEADER_BYTES:])
        return sealed

    def open_into(self, place: Place, cell: Buffer, out: memoryview) -> bool:
        """Verify and decrypt ``ciphertext | tag`` into ``out``; whether the tag verified.

        ``cell`` must be memory that nobody else can write: it may be read twice.
        """
        nonce = _NONCE.pack(place.tensor, place.chunk)
        try:
            self._aead.decrypt_into(nonce, cell, self.section.header(place), out)
        except InvalidTag:
            return False
        return True


class Outline(NamedTuple):
    """A section as its headers describe it: the file's claims until the digest is compared."""

    tensor_bytes: tuple[int, ...]
    end: int
    digest: bytes


def walk(read: Callable[[int, int], Buffer], section: SectionId) -> Outline:
    """Go over a section's headers and tags without opening anything.

    Args:
        read: (offset in the section, count) to that many bytes, or raises VaultTruncatedError.
        section: what every chunk has to say of itself.

    Raises:
        VaultError: framing or place of a chunk is wrong; limits are checked as they are met.
    """
    digest, sizes, size, offset, chunk = SectionDigest(), list[int](), 0, 0, 0
    header = read(0, HEADER_BYTES)
    while True:
        *_, flags, _, _, length = _HEADER.unpack(header)
        last, end = bool(flags & _LAST_OF_TENSOR), bool(flags & _LAST_OF_SECTION)
        place = Place(len(sizes), chunk, length, last, end)
        if header != section.header(place) or (end and not last):
            raise section.mismatch(header, place)
        size += length
        _check_sizes(place, size)
        offset += HEADER_BYTES + length
        after = read(offset, TAG_BYTES if end else OVERHEAD_BYTES)
        digest.add(header, after[:TAG_BYTES])
        offset += TAG_BYTES
        header, chunk = after[TAG_BYTES:], chunk + 1
        if last:
            sizes.append(size)
            size = chunk = 0
        if end:
            return Outline(tuple(sizes), offset, digest.digest())


def _check_sizes(place: Place, size: int) -> None:
    """Limits on a chunk, its tensor so far and the number of tensors."""
    limit = TENSOR_BYTES_MAX if place.tensor else PROGRAM_BYTES_MAX
    full = place.length == VAULT_CHUNK_BYTES_MAX
    short = place.last_of_tensor and place.length < VAULT_CHUNK_BYTES_MAX
    if not (full or short) or size > limit or place.tensor >= VAULT_TENSORS_MAX:
        raise VaultFormatError(
            "vault: a chunk, a tensor or the number of tensors is beyond its limit",
            got=f"{place.length} bytes, {size} so far, in tensor {place.tensor}",
            expected=f"at most {VAULT_CHUNK_BYTES_MAX}, {limit} and {VAULT_TENSORS_MAX}",
            remedy=RESEAL,
        )
