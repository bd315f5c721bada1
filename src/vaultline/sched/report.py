"""What a server tells the balancer of itself."""

from __future__ import annotations

from vaultline.core.serde import Struct


class Report(Struct, frozen=True):
    """What a server says of itself.

    Attributes:
        turn: counts a server's reports: an older one says nothing new.
        taken: how many requests it had been sent by then; later ones are not in the report.
        backlog_s: core time of all that waits or runs.
        waiting: requests that wait, by model.
        resident_s: by model, decryption time that its resident groups save on every pass.
    """

    server: str
    turn: int
    taken: int
    backlog_s: float
    waiting: dict[str, int]
    resident_s: dict[str, float]
