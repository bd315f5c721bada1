"""A whole section, as its owner seals it and checks it without opening anything."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vaultline.channel.chunks import (
    DIGEST_LABEL,
    HEADER,
    HEADER_BYTES,
    LAST_OF_SECTION,
    LAST_OF_TENSOR,
    OVERHEAD_BYTES,
    RESEAL,
    TAG_BYTES,
    Buffer,
    Place,
    VaultFormatError,
    chunk_header,
    mismatch,
)
from vaultline.core.errors import LocalProtocolError
from vaultline.core.limits import (
    PROGRAM_BYTES_MAX,
    TENSOR_BYTES_MAX,
    VAULT_CHUNK_BYTES_MAX,
)
from vaultline.core.section import SectionId

KEY_BYTES = 32
#: Weights of one stage, tiles counted one by one, and the program (vgg19 whole: under 100).
VAULT_TENSORS_MAX = 1 << 16


class ChunkSealer:
    """Seals the chunks of one section under the stage's key."""

    def __init__(self, key: bytes, section: SectionId) -> None:
        if len(key) != KEY_BYTES:
            raise LocalProtocolError(f"a stage key has {KEY_BYTES} bytes")
        self._aead = AESGCM(key)
        self._section = section
        self._digest = hashlib.sha256(DIGEST_LABEL)

    def seal_into(self, place: Place, plaintext: Buffer, out: memoryview) -> memoryview:
        """Write the next chunk to the start of ``out``; each place may be sealed once per key."""
        if len(plaintext) != place.length or place.length > VAULT_CHUNK_BYTES_MAX:
            raise LocalProtocolError("a chunk's plaintext does not have the length of its place")
        header = chunk_header(self._section, place)
        sealed = out[: place.length + OVERHEAD_BYTES]
        sealed[:HEADER_BYTES] = header
        self._aead.encrypt_into(place.nonce, plaintext, header, sealed[HEADER_BYTES:])
        self._digest.update(header)
        self._digest.update(sealed[-TAG_BYTES:])
        return sealed

    def digest(self) -> bytes:
        """SHA-256 over headers and tags of the chunks so far: what the grant carries."""
        return self._digest.digest()


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
    digest, sizes, size, offset, chunk = hashlib.sha256(DIGEST_LABEL), list[int](), 0, 0, 0
    header = read(0, HEADER_BYTES)
    while True:
        *_, flags, _, _, length = HEADER.unpack(header)
        last, end = bool(flags & LAST_OF_TENSOR), bool(flags & LAST_OF_SECTION)
        place = Place(len(sizes), chunk, length, last, end)
        if header != chunk_header(section, place) or (end and not last):
            raise mismatch(section, header, place)
        size += length
        _check_sizes(place, size)
        offset += HEADER_BYTES + length
        after = read(offset, TAG_BYTES if end else OVERHEAD_BYTES)
        digest.update(header)
        digest.update(after[:TAG_BYTES])
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
