"""Labels that keep apart what is hashed, signed and derived: no one begins like another.

A label stands first, and what follows it is data; so a label that another one begins with could be
the other one with chosen data.
"""

from __future__ import annotations

import ast
from itertools import permutations
from pathlib import Path

import vaultline

ROOT = Path(vaultline.__file__).parent
#: Neither measures nor makes anything that somebody relies on.
ASIDE = ("bench", "testing")
#: What each label is put before, and the function that takes it.
LABELS = {
    b"vaultline report data v%d\0": "SHA-512, in evidence",
    b"vaultline grant transcript v1\0": "SHA-256, HPKE's info",
    b"vaultline accelerator evidence v1\0": "Ed25519",
    b"vaultline served models v1\0": "SHA-256, a server's plan digest",
    b"vaultline hop v2": "HKDF of a hop's secret",
    b"vaultline request v1": "HKDF of a server's or a client connection's secret",
    b"vaultline client connection v1": "HKDF of a client's credential",
    b"vaultline client v1\0": "a greeting",
    b"vaultline stage key v1": "HKDF of a model's key, with a salt",
    b"vaultline model id v1": "HKDF of a model's key",
    b"vaultline vault header v1": "SHA-256",
    b"vaultline vault section v1": "SHA-256",
    b"vaultline development quoting enclave": "SHA-256, a name",
    b"vaultline development platform": "SHA-256, a name",
}


def found() -> list[bytes]:
    """Every literal of bytes that begins like a label, as often as it stands there."""
    files = (f for f in ROOT.rglob("*.py") if f.relative_to(ROOT).parts[0] not in ASIDE)
    trees = (ast.parse(file.read_text(encoding="utf-8")) for file in files)
    constants = (n.value for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Constant))
    return [c for c in constants if isinstance(c, bytes) and c.startswith(b"vaultline")]


def test_every_label_is_listed_and_stands_in_one_place() -> None:
    assert sorted(found()) == sorted(LABELS)


def test_no_label_begins_like_another() -> None:
    labels = [label % 1 if b"%d" in label else label for label in LABELS]
    assert not [pair for pair in permutations(labels, 2) if pair[0].startswith(pair[1])]
