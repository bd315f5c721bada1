"""What happens to a server, and what it is told to do. All times are seconds of one clock."""

from __future__ import annotations

from vaultline.core.errors import InputError
from vaultline.core.serde import Struct


class Request(Struct, frozen=True):
    """One frame for one model.

    Attributes:
        number: unique in a cluster, rising with arrival.
        deadline_s: when the answer is worth nothing any more, or None.
        priority: higher ones go first within a queue.
    """

    number: int
    model: str
    arrived_s: float
    deadline_s: float | None = None
    priority: int = 0

    def __post_init__(self) -> None:
        if self.deadline_s is not None and self.deadline_s < self.arrived_s:
            raise InputError("a request's deadline lies before its arrival", got=str(self))


class Arrived(Struct, frozen=True, tag="arrived"):
    """A request has come to this server."""

    now_s: float
    request: Request


class Finished(Struct, frozen=True, tag="finished"):
    """A core has done what it was told: a run, or an installation."""

    now_s: float
    core: int


class Failed(Struct, frozen=True, tag="failed"):
    """A core could not do it: the run's requests end, or those that wait for the installation."""

    now_s: float
    core: int
    reason: str


class Draining(Struct, frozen=True, tag="draining"):
    """No request will be taken any more; those that are here are finished."""

    now_s: float


class Installing(Struct, frozen=True, tag="installing"):
    """This server is to serve a model from now on; requests for it may come at once."""

    now_s: float
    model: str


class Removing(Struct, frozen=True, tag="removing"):
    """No request for a model will come again: it goes when those that are here are done."""

    now_s: float
    model: str


Event = Arrived | Finished | Failed | Draining | Installing | Removing


class Run(Struct, frozen=True, tag="run"):
    """Run a step group for these requests on a core.

    Attributes:
        streamed: its weights are decrypted for this run; else they are resident.
        keep: they stay afterwards.
    """

    core: int
    model: str
    group: int
    requests: tuple[int, ...]
    streamed: bool
    keep: bool


class Evict(Struct, frozen=True, tag="evict"):
    """Forget the weights of a resident group."""

    model: str
    group: int


class Answer(Struct, frozen=True, tag="answer"):
    """A request has been through its last group."""

    request: int


class Refuse(Struct, frozen=True, tag="refuse"):
    """A request will not be answered here, and why.

    Attributes:
        elsewhere: another server may well answer it: this one lacks the model or is shutting down.
    """

    request: int
    reason: str
    elsewhere: bool = False


class Install(Struct, frozen=True, tag="install"):
    """Open a model and make its sessions, on a core: ends with ``Finished`` or ``Failed``."""

    core: int
    model: str


class Remove(Struct, frozen=True, tag="remove"):
    """Forget a model of which nothing waits or runs: its sessions and the weights that are here."""

    model: str


class Decline(Struct, frozen=True, tag="decline"):
    """A model will not be installed, and why."""

    model: str
    reason: str


Action = Run | Evict | Answer | Refuse | Install | Remove | Decline
