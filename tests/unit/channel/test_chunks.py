"""The chunk format: golden bytes, places, and the walk over headers and tags."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vaultline.channel.chunks import (
    HEADER_BYTES,
    OVERHEAD_BYTES,
    ChunkOpener,
    Place,
    VaultFormatError,
    VaultTruncatedError,
    chunk_header,
    mismatch,
    places,
)
from vaultline.channel.sections import ChunkSealer, walk
from vaultline.core import limits
from vaultline.core.errors import InputError, LocalProtocolError, RefusedError
from vaultline.core.section import SectionId

KEY = bytes(range(32))
SECTION = SectionId(vault_id=b"v" * 16, model_id=b"m" * 16, plan_digest=b"p" * 32, stage=3)


def seal(place: Place, plaintext: bytes, section: SectionId = SECTION) -> bytes:
    out = memoryview(bytearray(len(plaintext) + OVERHEAD_BYTES))
    return bytes(ChunkSealer(KEY, section).seal_into(place, plaintext, out))


def reader(data: bytes):
    def read(offset: int, count: int) -> bytes:
        if offset + count > len(data):
            raise VaultTruncatedError("the end")
        return data[offset : offset + count]

    return read


def section_of(*sizes: int) -> bytes:
    data = b""
    for tensor, size in enumerate(sizes):
        for place in places(tensor, size, last_tensor=tensor == len(sizes) - 1):
            data += seal(place, bytes(place.length))
    return data


def test_a_chunk_has_exactly_the_documented_bytes() -> None:
    """Written out field by field with nothing of ours but the label of each."""
    header = (
        b"VLc1"
        + b"v" * 16
        + b"m" * 16
        + b"p" * 16
        + bytes([3])  # stage
        + bytes([1])  # flags: last of its tensor
        + (2).to_bytes(2, "big")  # chunk
        + (9).to_bytes(4, "big")  # tensor
        + (5).to_bytes(4, "big")  # length
    )
    nonce = (9).to_bytes(4, "big") + (2).to_bytes(8, "big")
    expected = header + AESGCM(KEY).encrypt(nonce, b"hello", header)
    place = Place(tensor=9, chunk=2, length=5, last_of_tensor=True, last_of_section=False)
    assert seal(place, b"hello") == expected
    assert len(header) == HEADER_BYTES == 64


def test_a_section_digest_is_of_headers_and_tags_in_order() -> None:
    data = section_of(3, 0)
    first, second = data[: 80 + 3], data[80 + 3 :]
    digest = hashlib.sha256(b"vaultline vault section v1")
    for chunk in (first, second):
        digest.update(chunk[:64] + chunk[-16:])
    outline = walk(reader(data), SECTION)
    assert outline == ((3, 0), len(data), digest.digest())


def test_a_walk_reads_eighty_bytes_a_chunk() -> None:
    data, counts = section_of(limits.VAULT_CHUNK_BYTES_MAX + 1, 0, 700), []

    def read(offset: int, count: int) -> bytes:
        counts.append(count)
        return data[offset : offset + count]

    assert walk(read, SECTION).tensor_bytes == (limits.VAULT_CHUNK_BYTES_MAX + 1, 0, 700)
    assert counts == [64, 80, 80, 80, 16]


def relabelled(place: Place) -> bytes:
    return chunk_header(SECTION, place) + bytes(place.length + 16)


#: Well-formed headers that an attacker who knows the ids can write.
BREACHES = {
    "a chunk longer than any": relabelled(
        Place(0, 0, limits.VAULT_CHUNK_BYTES_MAX + 1, True, True)
    ),
    "a short chunk that is not its tensor's last": relabelled(Place(0, 0, 5, False, False)),
    "an empty chunk that is not its tensor's last": relabelled(Place(0, 0, 0, False, False)),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_framing_beyond_the_format_is_refused(breach: str) -> None:
    with pytest.raises(VaultFormatError):
        walk(reader(BREACHES[breach]), SECTION)


def endless(place: Place):
    """A file that never ends and numbers its chunks or its tensors correctly."""
    state = {"offset": 0, "chunk": 0, "tensor": 0}

    def header() -> bytes:
        now = place._replace(chunk=state["chunk"], tensor=state["tensor"])
        return chunk_header(SECTION, now)

    def read(offset: int, count: int) -> bytes:
        if count == HEADER_BYTES:
            return header()
        state["tensor" if place.last_of_tensor else "chunk"] += 1
        return bytes(16) + header()

    return read


@pytest.mark.parametrize("kind", ["tensors", "chunks of one tensor"])
def test_a_section_without_end_meets_a_limit(kind: str) -> None:
    place = Place(
        0, 0, *((0, True) if kind == "tensors" else (limits.VAULT_CHUNK_BYTES_MAX, False)), False
    )
    with pytest.raises(VaultFormatError) as refusal:
        walk(endless(place), SECTION)
    assert "limit" in refusal.value.message


FRAMING = {
    "another length": Place(1, 0, 6, True, False),
    "another end of the tensor": Place(1, 0, 5, False, False),
    "another end of the section": Place(1, 0, 5, True, True),
}


@pytest.mark.parametrize("framing", FRAMING)
def test_a_header_with_other_framing_is_named(framing: str) -> None:
    place = Place(1, 0, 5, True, False)
    error = mismatch(SECTION, chunk_header(SECTION, FRAMING[framing]), place)
    assert type(error) is VaultFormatError


def test_every_vault_error_is_a_refusal_with_exit_code_1() -> None:
    assert issubclass(VaultFormatError, RefusedError)
    assert VaultFormatError("x").exit_code == 1


MISUSE = {
    "a key of the wrong length": lambda: ChunkSealer(b"short", SECTION),
    "an id of the wrong length": lambda: SectionId(
        vault_id=b"v", model_id=b"m" * 16, plan_digest=b"p" * 32, stage=0
    ),
    "a stage beyond a byte": lambda: SectionId(
        vault_id=b"v" * 16, model_id=b"m" * 16, plan_digest=b"p" * 32, stage=256
    ),
    "plaintext that is not as long as its place": lambda: seal(Place(0, 0, 4, True, True), b"abc"),
}


@pytest.mark.parametrize("misuse", MISUSE)
def test_misuse_by_our_own_code_is_a_local_error(misuse: str) -> None:
    with pytest.raises((LocalProtocolError, InputError)):
        MISUSE[misuse]()


def test_a_chunk_opens_only_at_its_own_place() -> None:
    place = Place(1, 0, 3, True, False)
    cell, cipher = seal(place, b"abc")[64:], ChunkOpener(KEY)
    out = bytearray(3)
    assert (
        cipher.open_into(place, chunk_header(SECTION, place), cell, memoryview(out))
        and out == b"abc"
    )
    for other in (
        place._replace(tensor=2),
        place._replace(chunk=1),
        place._replace(last_of_section=True),
    ):
        assert not cipher.open_into(
            other, chunk_header(SECTION, other), cell, memoryview(bytearray(3))
        )
