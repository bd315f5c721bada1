"""What a plan predicts that devices and hops do when: the first frames of a full pipeline.

The source keeps up, so a frame is sent as soon as there is room for it. A stage runs the frames of
each of its replicas one after the other; a hop carries one frame at a time, and only when the
stage behind it has a free input buffer. Stages take their busy time from the first frame on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vaultline.core.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """A stretch of time, in seconds from the first frame's sending, in which one frame is handled.

    Attributes:
        number: of the stage or hop; hop k enters stage k and the last one returns to the owner.
        replica: which device of the stage; 0 for hops.
    """

    what: Literal["stage", "hop"]
    number: int
    replica: int
    frame: int
    start_s: float
    stop_s: float


def timeline(plan: Plan, frames: int) -> tuple[Busy, ...]:
    """The way of the first ``frames`` frames, frame by frame."""
    busy: list[Busy] = []
    #: When each hop and each replica is free again, and when each stage's frames were done.
    hop_free = [0.0] * len(plan.hop_s)
    free = [[0.0] * len(stage.devices) for stage in plan.stages]
    done: list[list[float]] = [[] for _ in plan.stages]
    for frame in range(frames):
        ready_s = 0.0
        for hop, hop_s in enumerate(plan.hop_s):
            room_s = 0.0
            if hop < len(plan.stages):
                stage = plan.stages[hop]
                before = frame - stage.queue_frames * len(stage.devices)
                room_s = done[hop][before] if before >= 0 else 0.0
            start_s = max(ready_s, hop_free[hop], room_s)
            ready_s = hop_free[hop] = start_s + hop_s
            busy.append(_busy("hop", hop, 0, frame, start_s, ready_s))
            if hop < len(plan.stages):
                replica = frame % len(stage.devices)
                start_s = max(ready_s, free[hop][replica])
                ready_s = free[hop][replica] = start_s + stage.predicted_s
                done[hop].append(ready_s)
                busy.append(_busy("stage", hop, replica, frame, start_s, ready_s))
    return tuple(busy)


def _busy(
    what: Literal["stage", "hop"],
    number: int,
    replica: int,
    frame: int,
    start_s: float,
    stop_s: float,
) -> Busy:
    return Busy(
        what=what, number=number, replica=replica, frame=frame, start_s=start_s, stop_s=stop_s
    )
