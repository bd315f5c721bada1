"""Vendors' root keys, by the ids with which policies name them.

A key id is SHA-384 (hex): of the uncompressed point for elliptic keys (as dcap-qvl's
``root_key_id``), of the DER SubjectPublicKeyInfo for RSA keys.
"""

from __future__ import annotations

import hashlib

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

#: Intel's SGX root, for SGX and TDX.
INTEL_ROOT = (
    "46e403bd34f05a3f2817ab9badcaacc7ffc98e0f261008cd30dae936cace18d5"
    "dcf58eef31463613de1570d516200993"
)
#: AMD's root keys (ARK), one per family; Genoa's signs for Bergamo and Siena as well.
AMD_ROOTS = {
    "Milan": (
        "1249f67f15cf229a4069195e1a9ce537d1765ef706a1f4a123c36be951878651"
        "5d25ecc007f366b564d2b3f31c48082e"
    ),
    "Genoa": (
        "32ab53a6ce5ec14926207396e5c475ae768a6a9831b7e860b5acf2e1c1dff222"
        "bc5a8bfc43eb5e06393189c1f246d880"
    ),
    "Turin": (
        "3475f08a9727f8ac9a1deaea5f2a2097aa59d64d05c2a678c229c873e6359d3a"
        "6926287a2a22cd5f88a385e333a2fcc5"
    ),
}
#: NVIDIA's Device Identity CA.
NVIDIA_ROOT = (
    "caf2995c609f0c5f443308d6c9b5ca90138c3adee0f0c7076cec3fed65c1b6c2"
    "c7b7dc8425843e799af7b07dcbaeba52"
)
#: Root certificates (SHA-256 of the DER) whose own signatures are known to hold: a test verifies
#: them. Of these exact bytes the signature need not be verified again, which P-384 makes dear.
SELF_SIGNED = frozenset({"102bf659d5419614c9d8e6aecebc80454eb26b1df6a769ac720b9a690b167b48"})
#: What a policy may write for a key id.
NAMED_ROOTS = {
    "intel": INTEL_ROOT,
    "amd-milan": AMD_ROOTS["Milan"],
    "amd-genoa": AMD_ROOTS["Genoa"],
    "amd-turin": AMD_ROOTS["Turin"],
    "nvidia": NVIDIA_ROOT,
}


def root_key_id(root: x509.Certificate) -> str:
    """The id by which policies name a root."""
    key = root.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey):
        encoded = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    else:
        encoded = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha384(encoded).hexdigest()
