"""Reading the files that several verbs take, each with an error that says what to do."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from vaultline.core.cluster import Cluster
from vaultline.core.cluster_file import parse_cluster
from vaultline.core.errors import InputError, MachineError
from vaultline.core.plan import Plan, read_plan
from vaultline.core.profile import ModelProfile, read_profile

T = TypeVar("T")
_PICTURES = (".png", ".svg")


def read_file(
    path: Path, what: str, remedy: str | None = None, *, bytes_max: int | None = None
) -> bytes:
    """A file's bytes; ``bytes_max`` for what comes from others.

    Raises:
        InputError: it can't be read, or is longer.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(-1 if bytes_max is None else bytes_max + 1)
    except OSError as error:
        raise InputError(
            f"cannot read {what}", got=f"{path}: {error.strerror}", remedy=remedy
        ) from error
    if bytes_max is not None and len(data) > bytes_max:
        raise InputError(f"{what} is too long", got=str(path), expected=f"{bytes_max} bytes")
    return data


def read_text(
    path: Path, what: str, remedy: str | None = None, *, bytes_max: int | None = None
) -> str:
    """A file's text; see `read_file`.

    Raises:
        InputError: it can't be read, is too long, or is not UTF-8.
    """
    try:
        return read_file(path, what, remedy, bytes_max=bytes_max).decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{what} is not UTF-8 text",
            got=f"{path}: byte 0x{error.object[error.start]:02x} at {error.start}",
            remedy="save it as UTF-8",
        ) from error


def check_target(path: Path, what: str) -> None:
    """Refuse a place that can't be written to before any work is done for it.

    Raises:
        InputError: the folder is missing or not writable, or ``path`` is a folder itself.
    """
    folder, found = path.absolute().parent, ""
    if path.is_dir():
        found = "a directory"
    elif not folder.is_dir():
        found = f"no folder {folder}"
    elif not os.access(path if path.exists() else folder, os.W_OK):
        found = "no right to write there"
    if found:
        raise InputError(
            f"cannot write {what} to {path}",
            got=found,
            expected="a file name in an existing folder",
            remedy="make the folder, or name another file",
        )


def check_picture(path: Path | None) -> None:
    """Refuse a picture that can't be drawn before any work is done for it.

    Raises:
        InputError: it can't be written there, or it is of a kind that nobody draws.
    """
    if path is None:
        return
    check_target(path, "the picture")
    if path.suffix.lower() not in _PICTURES:
        raise InputError(
            "pictures are PNG or SVG files",
            got=str(path),
            expected="a name that ends in " + " or ".join(_PICTURES),
        )


def write_file(path: Path, data: bytes, what: str) -> None:
    """Write a result.

    Raises:
        InputError: there is no such folder, or it may not be written to.
        MachineError: the disk is full or gone.
    """
    check_target(path, what)
    try:
        path.write_bytes(data)
    except OSError as error:
        raise MachineError(f"cannot write {what} to {path}", got=str(error.strerror)) from error


def named(path: Path, data: bytes, read: Callable[[bytes], T]) -> T:
    """What ``read`` makes of a file's bytes.

    Raises:
        InputError: those of ``read``, with the file's name.
    """
    try:
        return read(data)
    except InputError as error:
        got = error.got if data else "an empty file"
        raise InputError(
            f"{path}: {error.message}", got=got, expected=error.expected, remedy=error.remedy
        ) from error


def load_plan(path: Path) -> Plan:
    """A plan file."""
    data = read_file(path, "the plan", "make one with `vaultline plan`")
    return named(path, data, read_plan)


def load_profile(path: Path) -> ModelProfile:
    """A profile file."""
    data = read_file(path, "the profile", "make one with `vaultline profile`")
    return named(path, data, read_profile)


def load_cluster(path: Path) -> Cluster:
    """A cluster file."""
    remedy = "see examples/clusters for files to start from"
    return parse_cluster(read_text(path, "the cluster file", remedy), str(path))


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
