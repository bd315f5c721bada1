"""What the untrusted host of a server tells its worker, and what the worker answers.

Both travel over one connection: a length of four bytes, a message, then for some the sealed
requests or answers that it announces, whose sizes follow from the model. Nothing here is secret,
and the worker believes none of it: a host that lies can delay and drop, which it can anyway.
"""

from __future__ import annotations

from typing import Literal

from vaultline.core.control import ProviderName, StageMetrics
from vaultline.core.limits import VAULT_CHUNK_BYTES_MAX
from vaultline.core.serde import Struct

#: A command names up to ``FRAMES_PER_PASS_MAX`` requests: no more than this.
COMMAND_BYTES_MAX = 64 << 10
#: A chunk's ciphertext and tag, while a core decrypts weights.
CELL_BYTES = VAULT_CHUNK_BYTES_MAX + 64


class ServerWorkerConfig(Struct, frozen=True):
    """The first line that a serving worker reads. Untrusted: wrong values make it refuse or stop.

    Attributes:
        platform, provider, platform_file: as in ``WorkerConfig``.
        vaults: the files of the models, in the order of the grant's.
        control: address to listen on for the owner.
        commands: address to listen on for the host, once the owner has granted the keys.
    """

    name: str
    platform: Literal["process", "gramine"]
    provider: ProviderName
    platform_file: str | None
    vaults: tuple[str, ...]
    control: str
    commands: str
    runtime_dir: str
    heartbeat_s: float = 0.25


class InstallCommand(Struct, frozen=True, tag="install"):
    """Open a model's sections and make its sessions for all cores, on one of them; ends with
    ``DoneReply`` or ``FailedReply``."""

    core: int
    model: int


class RemoveCommand(Struct, frozen=True, tag="remove"):
    """Forget a model, of which nothing runs: sessions, weights that are here, what requests carry.
    One that is not installed, or failed to be, is forgotten already. Not answered."""

    model: int


class RunCommand(Struct, frozen=True, tag="run"):
    """Run a step group for requests on a core; ends with ``DoneReply`` or ``FailedReply``.

    Before group 0 each request's sealed input follows, in this order. The others must have been
    through the group before.

    Attributes:
        keep: its weights stay afterwards, until ``EvictCommand`` or a run of the group fails.
            Weights that are there stay in any case.
    """

    core: int
    model: int
    group: int
    requests: tuple[int, ...]
    keep: bool = False


class EvictCommand(Struct, frozen=True, tag="evict"):
    """Forget the weights of a group, with which nothing runs. Not answered."""

    model: int
    group: int


HostCommand = InstallCommand | RemoveCommand | RunCommand | EvictCommand


class DoneReply(Struct, frozen=True, tag="done"):
    """A core has done it. After a model's last group, each request's sealed answer follows.

    Attributes:
        answers: how many follow.
        seconds: from the command's last byte to this reply.
        load_s: of these, decrypting weights.
    """

    core: int
    answers: int
    seconds: float
    load_s: float
    metrics: StageMetrics


class FailedReply(Struct, frozen=True, tag="failed"):
    """A core could not do it. Whatever its requests carried has been forgotten."""

    core: int
    code: str
    message: str


WorkerReply = DoneReply | FailedReply
