"""Templates of deployments: package data, filled in with values that can't break out of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from string import Template

from vaultline.core.errors import InputError

#: What a path or a name in a unit, a manifest or a recipe may consist of: nothing that any of their
#: languages gives a meaning to.
_PLAIN = re.compile(r"[A-Za-z0-9_./+:@=,~-]+")


def template(name: str) -> str:
    """A template's text, by its place below ``vaultline/deploy``."""
    path = resources.files("vaultline") / "deploy" / name
    return path.read_text(encoding="utf-8")


def fill(name: str, values: Mapping[str, str]) -> str:
    """A template with every ``$name`` replaced, each of them by one of ``values``.

    Raises:
        KeyError: a name without a value: a bug of ours.
    """
    return Template(template(name)).substitute(values)


def plain(text: str, what: str) -> str:
    """The text itself, if it means itself in every language of the templates.

    Raises:
        InputError: it has spaces, quotes, line breaks or signs with a meaning.
    """
    if not _PLAIN.fullmatch(text):
        raise InputError(
            f"{what} can't be written into a deployment",
            got=repr(text),
            expected="letters, digits and _ . / + : @ = , ~ -",
            remedy="install into a folder with a plain name",
        )
    return text


def quoted(text: str, what: str = "a path") -> str:
    """A plain text as a TOML or JSON string."""
    return json.dumps(plain(text, what))


def write_files(folder: Path, files: Mapping[str, str]) -> list[Path]:
    """Write the files of a deployment into a folder, which is made if missing.

    Raises:
        InputError: the folder can't be written, or holds one of the files already.
    """
    paths = [folder / name for name in files]
    present = [path.name for path in paths if path.exists()]
    if present:
        raise InputError(
            "files are in the way",
            got=", ".join(present),
            remedy=f"name another folder than {folder}, or remove them",
        )
    try:
        for path, text in zip(paths, files.values(), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError("cannot write the deployment", got=f"{folder}: {error}") from error
    return paths
