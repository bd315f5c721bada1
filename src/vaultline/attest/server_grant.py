"""The grant of a server: what opens the sections of many models, and one secret for requests."""

from __future__ import annotations

from vaultline.core.errors import InputError
from vaultline.core.section import SectionAccess
from vaultline.core.serde import Struct

#: Models of one server, and step groups of one model.
MODELS_MAX = 1024
GROUPS_MAX = 64
CORES_MAX = 1024


class ServedAccess(Struct, frozen=True):
    """A model's step groups in the order of the network: each is a section of its vault."""

    sections: tuple[SectionAccess, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.sections) <= GROUPS_MAX:
            raise InputError(f"a model has 1 to {GROUPS_MAX} step groups")


class ServerGrant(Struct, frozen=True, kw_only=True):
    """What one server's enclave may know; it is its deployment's only stage.

    Attributes:
        deployment: 16 bytes, of this server alone.
        plan_digest: of what the owner serves: see ``owner.served``.
        secret: 32 bytes, from which the keys of requests and answers derive.
        memory_bytes: protected memory; cores: runs at the same time.
        workspace_bytes: of each core, for the tensors and tiles of the neediest step group.
        message_bytes: the largest request or answer, sealed.
        cache_bytes: of the simulated page cache that all paged models share.
        models: in the order of the worker's vault files.
    """

    epoch: int
    deployment: bytes
    plan_digest: bytes
    stage: int
    secret: bytes
    memory_bytes: int
    cores: int
    workspace_bytes: int
    message_bytes: int
    cache_bytes: int = 0
    models: tuple[ServedAccess, ...]

    def __post_init__(self) -> None:
        parts = (self.deployment, self.plan_digest, self.secret)
        if tuple(map(len, parts)) != (16, 32, 32) or not 1 <= len(self.models) <= MODELS_MAX:
            raise InputError("a deployment has 16 bytes, a digest and a secret 32; models are few")
        sizes = (self.workspace_bytes, self.message_bytes, self.cache_bytes)
        if self.memory_bytes < 1 or not 1 <= self.cores <= CORES_MAX or min(sizes) < 0:
            raise InputError("a server has memory and cores, and no size is negative")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.models)} models, secrets hidden)"
