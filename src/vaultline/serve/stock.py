"""Models that can be served, as simulations need them: prepared ones of a folder, or only facts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vaultline.core.cluster import Cluster, Device
from vaultline.core.errors import InputError
from vaultline.owner.served import MANIFEST_SUFFIX, ServedModel, read_served
from vaultline.owner.server_release import server_memory
from vaultline.sched.facts import ModelFacts, ServerFacts
from vaultline.sched.policies import ServingPolicy
from vaultline.sim.study import servers_of

#: Models for policies on paged memory lie in a folder of this name within that of the others.
PAGED_FOLDER = "paged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stock:
    """Models by name, divided into step groups for bounded memory, and whole for paged memory.

    Attributes:
        prepared: manifests, where there are some; else servers hold nothing all the time but
            sessions, and the facts of step groups state their workspaces.
    """

    bounded: Mapping[str, ModelFacts]
    paged: Mapping[str, ModelFacts]
    prepared: Sequence[ServedModel] = ()

    def models(self, policy: ServingPolicy) -> Mapping[str, ModelFacts]:
        """As a policy runs them."""
        return self.paged if policy.paged else self.bounded

    def servers(self, policy: ServingPolicy, cluster: Cluster) -> list[ServerFacts]:
        """A server for each attested device, with all models and what it holds all the time.

        Raises:
            InputError: no device is attested.
            InfeasibleError: a device has too little memory for these models.
        """
        used = [each for each in self.prepared if each.paged == policy.paged]

        def fixed_bytes(device: Device) -> int:
            if not used:
                return 0
            size = {"cores": device.cores, "memory_bytes": device.memory_bytes}
            return server_memory(used, **size).fixed_bytes

        return servers_of(cluster, list(self.models(policy)), fixed_bytes)


def stock_of_folder(folder: Path) -> Stock:
    """All prepared models of a folder, and of the one for paged memory in it.

    Raises:
        InputError: no such folder, none in it, or a manifest that is not one.
    """
    paths = sorted(folder.glob(f"*{MANIFEST_SUFFIX}"))
    paths += sorted((folder / PAGED_FOLDER).glob(f"*{MANIFEST_SUFFIX}"))
    if not paths:
        raise InputError(
            "there are no prepared models",
            got=str(folder) if folder.is_dir() else f"no folder {folder}",
            expected=f"files called NAME{MANIFEST_SUFFIX}",
            remedy="make them with `vaultline prepare`",
        )
    prepared = [read_served(path) for path in paths]
    return Stock(
        bounded=_by_name(each.facts for each in prepared if not each.paged),
        paged=_by_name(each.facts for each in prepared if each.paged),
        prepared=prepared,
    )


def stock_of_facts(facts: Iterable[ModelFacts]) -> Stock:
    """Facts without manifests, which then hold for both kinds of memory.

    Raises:
        InputError: two models of one name.
    """
    named = _by_name(facts)
    return Stock(bounded=named, paged=named)


def _by_name(models: Iterable[ModelFacts]) -> dict[str, ModelFacts]:
    found: dict[str, ModelFacts] = {}
    for model in models:
        if model.name in found:
            raise InputError("two models have one name", got=model.name)
        found[model.name] = model
    return found
