"""Signature files of SGX enclaves, made here."""

from __future__ import annotations

from functools import cache

from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256

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
