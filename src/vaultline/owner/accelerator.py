"""Keys of untrusted accelerators: made once, pinned in the policy of whoever uses the device.

The key belongs to the accelerator's operator; owners need its public half. Where the owner's own
machine starts the worker (the local engine), the file lies beside the policy.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vaultline.attest.pinned import AcceleratorKey
from vaultline.core.errors import InputError
from vaultline.core.serde import canonical_json, from_json
from vaultline.owner.keyfile import PRIVATE_MODE, KeyFileModeError

ACCELERATOR_FILE = "accelerator.json"
_REMEDY = "name one with --accelerator-key; `vaultline policy accelerator` makes one"


def create_accelerator(out_dir: Path) -> AcceleratorKey:
    """Make a key and write it to ``out_dir``, readable by its owner alone.

    Raises:
        InputError: there is one already, which policies may name; or no such folder can be made.
    """
    path = out_dir / ACCELERATOR_FILE
    key = AcceleratorKey(version=1, private_key=Ed25519PrivateKey.generate().private_bytes_raw())
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_MODE)
        with os.fdopen(file, "wb") as stream:
            stream.write(canonical_json(key))
    except OSError as error:
        raise InputError(
            "cannot write an accelerator's key",
            got=f"{path}: {error.strerror}",
            expected="a folder without one, where you may write",
            remedy="use the key that is there, or choose another folder",
        ) from error
    return key


def accelerator_entry(public_keys: Sequence[bytes]) -> str:
    """The lines (YAML) of a policy's ``accept`` that let these accelerators answer."""
    lines = ["  - kind: accelerator", "    public_keys:"]
    return "\n".join([*lines, *(f'      - "{key.hex()}"' for key in public_keys)]) + "\n"


def check_accelerator_key(path: Path) -> AcceleratorKey:
    """Read an accelerator's key as its worker will, for a better message than it can send.

    Raises:
        InputError: there is no such file, or it holds no key.
        KeyFileModeError: others can read it, and so pose as the accelerator.
    """
    try:
        mode = path.stat().st_mode
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            "cannot read the accelerator's key", got=f"{path}: {error.strerror}", remedy=_REMEDY
        ) from error
    if mode & 0o077:
        raise KeyFileModeError(
            "others can read the accelerator's key",
            got=f"{path}: mode {mode & 0o777:o}",
            expected="mode 600",
            remedy=f"chmod 600 {path}",
        )
    return from_json(data, AcceleratorKey, what="the accelerator's key", remedy=_REMEDY)
