"""Signature files of SGX enclaves: read when right, refused after any change."""

from __future__ import annotations

import hashlib
from functools import cache

import pytest
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256

from vaultline.attest.sgx_sigstruct import SIGSTRUCT_BYTES, read_sigstruct
from vaultline.core.errors import InputError

MRENCLAVE = bytes(range(32))


@cache
def key() -> RSAPrivateKey:
    return generate_private_key(3, 3072)  # as SGX has it


def sigstruct(*, flags: int = 0x04) -> bytes:
    """As Gramine's signing tool would write it."""
    numbers = key().public_key().public_numbers()
    modulus = numbers.n.to_bytes(384, "little")
    head = bytes.fromhex("06000000e10000000000010000000000") + bytes(4) + b"\x22\x11\x26\x20"
    head += bytes.fromhex("01010000600000006000000001000000") + bytes(88)
    body = bytearray(128)
    body[28:36] = flags.to_bytes(8, "little")
    body[60:92] = MRENCLAVE
    body[124:126], body[126:128] = (7).to_bytes(2, "little"), (3).to_bytes(2, "little")
    signature = key().sign(head + bytes(body), PKCS1v15(), SHA256())
    made = head + modulus + (3).to_bytes(4, "little") + signature[::-1] + bytes(body)
    return made + bytes(12 + 768)


def test_reference_values_are_read() -> None:
    found = read_sigstruct(sigstruct())
    modulus = key().public_key().public_numbers().n.to_bytes(384, "little")
    assert found.mrenclave == MRENCLAVE.hex()
    assert found.mrsigner == hashlib.sha256(modulus).hexdigest()
    assert (found.product_id, found.svn, found.debug) == (7, 3, False)
    assert read_sigstruct(sigstruct(flags=0x06)).debug


@pytest.mark.parametrize(
    "place", [0, 16, 24, 44, 127, 128, 300, 512, 516, 899, 900, 960, 991, 1026]
)
def test_a_changed_byte_is_refused(place: int) -> None:
    changed = bytearray(sigstruct())
    changed[place] ^= 0x10
    with pytest.raises(InputError):
        read_sigstruct(bytes(changed))


def test_impossible_keys_and_lengths_are_refused() -> None:
    for data in (sigstruct()[:-1], sigstruct() + b"\0", b""):
        with pytest.raises(InputError):
            read_sigstruct(data)
    assert len(sigstruct()) == SIGSTRUCT_BYTES
    no_modulus = sigstruct()
    with pytest.raises(InputError):
        read_sigstruct(no_modulus[:128] + bytes(384) + no_modulus[512:])
