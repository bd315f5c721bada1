"""SIGSTRUCT: what an SGX enclave's signer signed, from which its reference values are read.

Layout: Intel SDM volume 3D, table 38-19. Numbers are little-endian; the key is RSA-3072 with
exponent 3, the signature PKCS #1 v1.5 over SHA-256 of the first 128 bytes and bytes 900 to 1028.
"""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
from cryptography.hazmat.primitives.hashes import SHA256

from vaultline.core.errors import InputError
from vaultline.core.serde import Struct

SIGSTRUCT_BYTES = 1808
_HEADER = bytes.fromhex("06000000e10000000000010000000000")
_HEADER2 = bytes.fromhex("01010000600000006000000001000000")
_EXPONENT = 3
_DEBUG = 0x02


class Sigstruct(Struct, frozen=True, kw_only=True):
    """Reference values of one signed enclave.

    Attributes:
        mrenclave: SHA-256 (hex) over its pages as they are built.
        mrsigner: SHA-256 (hex) of its signer's modulus.
        debug: it may be started for debugging; evidence of one that was is refused.
    """

    mrenclave: str
    mrsigner: str
    product_id: int
    svn: int
    debug: bool


def read_sigstruct(data: bytes) -> Sigstruct:
    """Read a ``.sig`` file, as ``gramine-sgx-sign`` writes it.

    Raises:
        InputError: not one, or its signature is not right.
    """
    if len(data) != SIGSTRUCT_BYTES or (data[:16], data[24:40]) != (_HEADER, _HEADER2):
        raise InputError(
            "not an enclave's signature file",
            got=f"{len(data)} bytes",
            expected=f"{SIGSTRUCT_BYTES} bytes of a SIGSTRUCT",
            remedy="name the .sig file that `gramine-sgx-sign` wrote beside the manifest",
        )
    modulus = data[128:512]
    signed, signature = data[:128] + data[900:1028], data[516:900][::-1]
    exponent = int.from_bytes(data[512:516], "little")
    try:
        if exponent != _EXPONENT:
            raise ValueError(f"exponent {exponent}")
        key = RSAPublicNumbers(exponent, int.from_bytes(modulus, "little")).public_key()
        key.verify(signature, signed, PKCS1v15(), SHA256())
    except (InvalidSignature, ValueError) as error:
        raise InputError(
            "the enclave's signature file is damaged: its signature is not right",
            got=str(error) or None,
            remedy="sign the manifest again",
        ) from error
    return Sigstruct(
        mrenclave=data[960:992].hex(),
        mrsigner=hashlib.sha256(modulus).hexdigest(),
        product_id=int.from_bytes(data[1024:1026], "little"),
        svn=int.from_bytes(data[1026:1028], "little"),
        debug=bool(data[928] & _DEBUG),
    )
