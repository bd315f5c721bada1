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
    """A core has done what it was told to run."""

    now_s: float
    core: int


class Failed(Struct, frozen=True, tag="failed"):
    """A core could not do it: its requests end with an error."""

    now_s: float
    core: int
    reason: str


class Draining(Struct, frozen=True, tag="draining"):
    """No request will be taken any more; those that are here are finished."""

    now_s: float


Event = Arrived | Finished | Failed | Draining


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
    """A request will not be answered, and why."""

    request: int
    reason: str


Action = Run | Evict | Answer | Refuse
