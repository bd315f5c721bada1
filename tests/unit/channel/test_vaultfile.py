"""The public front of a vault file."""

from __future__ import annotations

import re
import struct

import msgspec
import pytest

from vaultline.channel.chunks import VaultFormatError
from vaultline.channel.vaultfile import (
    VAULT_HEADER_BYTES_MAX,
    VERSION,
    SectionEntry,
    VaultHeader,
    read_front,
    write_front,
)
from vaultline.core.errors import InputError

ENTRY = SectionEntry(offset=0, length=500, chunks=3, isa="portable", engine_version="1.0.0")
HEADER = VaultHeader(
    vault_id=b"v" * 16,
    model_id=b"m" * 16,
    plan_digest=b"p" * 32,
    created="2026-11-01T12:00:00+00:00",
    sections=(ENTRY, msgspec.structs.replace(ENTRY, offset=500)),
)


def read(data: bytes):
    return read_front(lambda offset, count: data[offset : offset + count])


def test_what_was_written_is_read_and_bounds_count_from_the_file() -> None:
    data, digest = write_front(HEADER)
    front = read(data + b"sections")
    assert (front.header, front.digest) == (HEADER, digest)
    assert front.bounds(1) == (len(data) + 500, 500)
    assert data.startswith(b"VLTVAULT\x00\x00\x00\x02" + struct.pack("!I", len(data) - 16) + b"{")


@pytest.mark.parametrize("stage", [-1, 2, 64])
def test_a_stage_beyond_the_vault_is_refused(stage: int) -> None:
    with pytest.raises(VaultFormatError):
        read(write_front(HEADER)[0]).bounds(stage)


def prefixed(text: bytes, *, length: int | None = None, version: int = VERSION) -> bytes:
    return struct.pack("!8sII", b"VLTVAULT", version, length or len(text)) + text


TEXT = write_front(HEADER)[0][16:]
BROKEN = {
    "another magic": b"X" * 16 + TEXT,
    "a later version": prefixed(TEXT, version=VERSION + 1),
    "a header beyond the limit": prefixed(TEXT, length=VAULT_HEADER_BYTES_MAX + 1),
    "no JSON": prefixed(b"{"),
    "not UTF-8": prefixed(b'{"created":"\xff"}'),
    "an unknown field": prefixed(TEXT.replace(b'{"created"', b'{"x":1,"created"')),
    "a negative offset": prefixed(TEXT.replace(b'"offset":500', b'"offset":-50')),
    "an offset beyond 63 bits": prefixed(TEXT.replace(b'"offset":500', b'"offset":' + b"9" * 20)),
    "a short id": prefixed(TEXT.replace(b"dnZ2dnZ2", b"")),
    "no sections": prefixed(re.sub(rb'"sections":\[.*\]', b'"sections":[]', TEXT)),
    "an unknown instruction set": prefixed(TEXT.replace(b"portable", b"pdp-11")),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_front_is_refused_by_format(case: str) -> None:
    assert BROKEN[case] != prefixed(TEXT)
    with pytest.raises(VaultFormatError) as refusal:
        read(BROKEN[case])
    assert refusal.value.remedy


def test_a_header_has_1_to_64_sections() -> None:
    for count in (0, 65):
        with pytest.raises(InputError):
            msgspec.structs.replace(HEADER, sections=(ENTRY,) * count)
