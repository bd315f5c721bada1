"""Prepared models of a folder, as simulations need them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vaultline.core.errors import InputError
from vaultline.owner.served import MANIFEST_SUFFIX, ServedModel, read_served
from vaultline.sched.facts import ModelFacts
from vaultline.sim.study import Stock


def read_folder(folder: Path) -> list[ServedModel]:
    """All prepared models of a folder.

    Raises:
        InputError: no such folder, none in it, or a manifest that is not one.
    """
    paths = sorted(folder.glob(f"*{MANIFEST_SUFFIX}"))
    if not paths:
        raise InputError(
            "no prepared models",
            got=str(folder) if folder.is_dir() else f"no folder {folder}",
            expected=f"files called NAME{MANIFEST_SUFFIX}",
            remedy="make them with `vaultline prepare`",
        )
    return [read_served(path) for path in paths]


def stock_of(models: Iterable[ServedModel]) -> Stock:
    """What simulations need of prepared models; their workspaces are held by the servers."""
    facts: dict[str, ModelFacts] = {}
    paged: dict[str, ModelFacts] = {}
    workspace_bytes = paged_workspace_bytes = 0
    for model in models:
        target = paged if model.paged else facts
        if model.facts.name in target:
            raise InputError("two prepared models have one name", got=model.facts.name)
        target[model.facts.name] = model.facts
        if model.paged:
            paged_workspace_bytes = max(paged_workspace_bytes, model.workspace_bytes)
        else:
            workspace_bytes = max(workspace_bytes, model.workspace_bytes)
    return Stock(
        facts=facts,
        paged=paged,
        workspace_bytes=workspace_bytes,
        paged_workspace_bytes=paged_workspace_bytes,
    )
