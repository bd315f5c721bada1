"""What a server's enclave is granted, and how its protected memory is shared out beforehand."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vaultline.attest.challenge import Challenge
from vaultline.attest.evidence import Evidence
from vaultline.attest.server_grant import ServedAccess, ServerGrant
from vaultline.channel.keys import SECRET_BYTES
from vaultline.channel.requests import OVERHEAD_BYTES
from vaultline.core.errors import InfeasibleError
from vaultline.core.serving import CELL_BYTES
from vaultline.owner.keyfile import SealedKeys
from vaultline.owner.release import Release, release_grant
from vaultline.owner.served import ServedModel
from vaultline.transport.sockets import Address

_LABEL = b"vaultline served models v1\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerMemory:
    """How a server's protected memory is shared out before any model is installed.

    Attributes:
        workspace_bytes, message_bytes, cache_bytes: as in ``ServerGrant``.
        fixed_bytes: of all these, for all cores: ``ServerFacts.fixed_bytes``.
    """

    workspace_bytes: int
    message_bytes: int
    cache_bytes: int
    fixed_bytes: int


def fixed_bytes(
    *, cores: int, workspace_bytes: int, message_bytes: int, cache_bytes: int = 0
) -> int:
    """What a serving worker holds from its start to its end: for each core a workspace and a cell
    of ciphertext; one sealed request and one sealed answer; the simulated page cache."""
    return cores * (workspace_bytes + CELL_BYTES) + 2 * message_bytes + cache_bytes


def server_memory(models: Sequence[ServedModel], *, cores: int, memory_bytes: int) -> ServerMemory:
    """Share out a server's memory for all models that it may ever get.

    Where some are paged, the page cache takes what is left once every model's sessions and, on
    each core, the messages of the largest run have their room.

    Raises:
        InfeasibleError: there is not enough for what is held all the time.
    """
    paged = [each for each in models if each.paged]
    workspace = max((each.workspace_bytes for each in models if not each.paged), default=0)
    layouts = [layout for each in models for layout in (each.input_layout, each.output_layout)]
    message = max((layout.message_bytes for layout in layouts), default=0) + OVERHEAD_BYTES
    fixed = fixed_bytes(cores=cores, workspace_bytes=workspace, message_bytes=message)
    needed, cache = fixed, 0
    if paged:
        sessions = sum(each.facts.fixed_bytes for each in models)
        besides = fixed + cores * (sessions + max(map(_run_bytes, models)))
        needed = besides + max(each.workspace_bytes for each in paged)
        cache = memory_bytes - besides
    if needed > memory_bytes:
        raise InfeasibleError(
            "a server has too little protected memory for these models",
            got=f"{memory_bytes:,} bytes",
            expected=f"at least {needed:,}",
            remedy="give it more memory, fewer cores or fewer models",
        )
    return ServerMemory(
        workspace_bytes=workspace,
        message_bytes=message,
        cache_bytes=cache,
        fixed_bytes=fixed + cache,
    )


def _run_bytes(model: ServedModel) -> int:
    """Messages of a model's largest run."""
    return max(
        group.frames_max * (model.facts.input_of(number) + group.output_bytes)
        for number, group in enumerate(model.facts.groups)
    )


def served_digest(models: Sequence[ServedModel]) -> bytes:
    """What stands for a plan's digest in challenge and grant: which models, divided how."""
    return hashlib.sha256(_LABEL + b"".join(each.plan_digest for each in models)).digest()


def server_grant(
    models: Sequence[tuple[ServedModel, SealedKeys]],
    memory: ServerMemory,
    *,
    cores: int,
    memory_bytes: int,
) -> ServerGrant:
    """A grant for one server, which is a deployment of its own with a secret of its own.

    Args:
        models: in the order of the worker's vault files.

    Raises:
        RefusedError: a model's keys are of another sealing.
    """
    accesses = []
    for served, keys in models:
        sealing = keys.sealing_for(served.plan_digest)
        sections = [sealing.access(keys.model_key, g) for g in range(len(served.groups))]
        accesses.append(ServedAccess(sections=tuple(sections)))
    return ServerGrant(
        epoch=0,
        deployment=os.urandom(16),
        plan_digest=served_digest([served for served, _ in models]),
        stage=0,
        secret=os.urandom(SECRET_BYTES),
        memory_bytes=memory_bytes,
        cores=cores,
        workspace_bytes=memory.workspace_bytes,
        message_bytes=memory.message_bytes,
        cache_bytes=memory.cache_bytes,
        models=tuple(accesses),
    )


def release_server(
    address: Address, grant: ServerGrant, appraise: Callable[[Evidence, Challenge], object]
) -> Release:
    """Grant a server's enclave its models if its evidence is accepted; each grant only once.

    Raises:
        RefusedError: the evidence is not accepted; nothing was released.
        PeerError: the enclave refused, misbehaved or vanished.
    """
    return release_grant(address, grant, appraise)
