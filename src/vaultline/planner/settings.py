"""What the user fixes before anything is searched: how stages may run, and what may be seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vaultline.core.limits import REPLICAS_MAX
from vaultline.core.plan import LeakageMetric

Mode = Literal["resident", "streamed"]
MODES: tuple[Mode, Mode] = ("resident", "streamed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How stages are run, where the planner has a choice.

    Attributes:
        frames_per_pass_max: most frames of one pass; fewer where memory is short or nothing is won.
        queue_passes: passes whose frames the input queue holds: one is computed, one arrives.
        replicas_max: most devices that may run one stage in turn; 1 switches replication off.
    """

    frames_per_pass_max: int = 4
    queue_passes: int = 2
    replicas_max: int = REPLICAS_MAX

    def queue_frames(self, frames: int) -> int:
        """Buffers of the input queue for passes of so many frames."""
        return self.queue_passes * frames


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What devices of trust ``none`` may see; by default nothing.

    Input privacy and model privacy are two policies, because protecting one does not protect the
    other.

    Attributes:
        cuts: per candidate cut, whether the tensors that cross it may be seen.
        blocks: per block, whether its weights may be seen.
        leakage: per candidate cut, measured with ``metric``; what the plan then states.
        limit: the most that may leak.
    """

    cuts: tuple[bool, ...] = ()
    blocks: tuple[bool, ...] = ()
    leakage: tuple[float, ...] = ()
    metric: LeakageMetric = "reconstruction"
    limit: float = 0.0
