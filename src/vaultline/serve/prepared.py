"""Prepared models as a gateway needs them: manifest, sealed file, keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vaultline.core.errors import InputError
from vaultline.owner.keyfile import Kek, SealedKeys, read_keyfile
from vaultline.owner.seal import check_vault
from vaultline.owner.served import MANIFEST_SUFFIX, ServedModel, read_served


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A model to serve, with what opens it."""

    served: ServedModel
    vault: Path
    keys: SealedKeys = field(repr=False)

    @property
    def name(self) -> str:
        """What requests call it."""
        return self.served.name


def load_prepared(folder: Path, kek: Kek, *, names: Sequence[str] = ()) -> list[Prepared]:
    """The prepared models of a folder by name, or only those of ``names`` in that order.

    Raises:
        InputError: there is none, or one of the names is missing.
        RefusedError: keys or a sealed file that don't belong to the manifest.
    """
    found = {path.name.removesuffix(MANIFEST_SUFFIX): path for path in _manifests(folder)}
    missing = [name for name in names if name not in found]
    if missing or not found:
        raise InputError(
            "there is no such prepared model" if missing else "there are no prepared models",
            got=", ".join(missing) or str(folder),
            expected=", ".join(sorted(found)) or f"files *{MANIFEST_SUFFIX}",
            remedy="prepare it: `vaultline prepare`",
        )
    return [load_one(found[name], kek) for name in names or sorted(found)]


def _manifests(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.name.endswith(MANIFEST_SUFFIX)]
    except OSError as error:
        raise InputError(
            "cannot read the models' folder", got=f"{folder}: {error.strerror}"
        ) from error


def load_one(manifest: Path, kek: Kek) -> Prepared:
    """One prepared model, its sealed file checked against the owner's record.

    Raises:
        InputError: not a manifest of this version.
        RefusedError: keys or a sealed file that don't belong to it.
    """
    served = read_served(manifest)
    vault = manifest.with_name(served.vault)
    keys = read_keyfile(manifest.with_name(served.keys), kek)
    check_vault(vault, keys.sealing_for(served.plan_digest))
    return Prepared(served=served, vault=vault, keys=keys)
