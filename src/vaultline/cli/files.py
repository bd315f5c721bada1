"""Reading the files that several verbs take, each with an error that says what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vaultline.core.cluster import Cluster, parse_cluster
from vaultline.core.errors import InputError
from vaultline.core.plan import Plan, read_plan
from vaultline.core.profile import ModelProfile, read_profile


def read_file(path: Path, what: str, remedy: str | None = None) -> bytes:
    """A file's bytes.

    Raises:
        InputError: it can't be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot read {what}", got=f"{path}: {error.strerror}", remedy=remedy
        ) from error


def load_plan(path: Path) -> Plan:
    """A plan file."""
    return read_plan(read_file(path, "the plan", "make one with `vaultline plan`"))


def load_profile(path: Path) -> ModelProfile:
    """A profile file."""
    return read_profile(read_file(path, "the profile", "make one with `vaultline profile`"))


def load_cluster(path: Path) -> Cluster:
    """A cluster file."""
    remedy = "see examples/clusters for files to start from"
    text = read_file(path, "the cluster file", remedy).decode(errors="replace")
    return parse_cluster(text, str(path))


def parse_shapes(texts: Sequence[str]) -> Mapping[str, tuple[int, ...]]:
    """``NAME=1,3,224,224`` for each dynamic input.

    Raises:
        InputError: not of that form.
    """
    shapes = {}
    for text in texts:
        name, equals, sides = text.rpartition("=")
        parts = sides.replace("x", ",").split(",")
        if not (equals and name and all(part.strip().isdecimal() for part in parts)):
            raise InputError("not an input shape", got=text, expected="NAME=1,3,224,224")
        shapes[name] = tuple(int(part) for part in parts)
    return shapes
