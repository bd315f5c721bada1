"""Signature files of SGX enclaves: read when right, refused after any change."""

from __future__ import annotations

import hashlib

import pytest
from sigstructs import MRENCLAVE, key, sigstruct

from vaultline.attest.sgx_sigstruct import SIGSTRUCT_BYTES, read_sigstruct
from vaultline.core.errors import InputError


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
