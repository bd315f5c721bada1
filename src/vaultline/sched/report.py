"""What a server tells the balancer of itself."""

from __future__ import annotations

from math import isfinite

from vaultline.core.errors import InputError
from vaultline.core.serde import Struct


class Report(Struct, frozen=True):
    """What a server says of itself.

    Attributes:
        turn: counts a server's reports: an older one says nothing new.
        taken: how many requests it had been sent by then; later ones are not in the report.
        backlog_s: core time of all that waits or runs.
        waiting: requests that wait, by model; those that have none may be absent.
        resident_s: by model, decryption time that its resident groups save on every pass.
        changes: how many times it had been told to install or to remove a model by then.
        models: that it serves or will soon; None: as the balancer knows.
    """

    server: str
    turn: int
    taken: int
    backlog_s: float
    waiting: dict[str, int]
    resident_s: dict[str, float]
    changes: int = 0
    models: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """A host may lie, but not say what no server can be."""
        counts = (self.turn, self.taken, self.changes, *self.waiting.values())
        if min(counts) < 0 or not all(map(isfinite, (self.backlog_s, *self.resident_s.values()))):
            raise InputError("a server reports what can't be", got=str(self))
