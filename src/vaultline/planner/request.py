"""What a user asks of the planner, and the text form of a partition."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from vaultline.core.cluster import Cluster, Device
from vaultline.core.errors import InputError
from vaultline.core.limits import FRAMES_PER_PASS_MAX, REPLICAS_MAX, STAGES_MAX
from vaultline.core.plan import Objective
from vaultline.planner.settings import Release, Settings

_PART = re.compile(r"\s*(\d+):(\d+)@([^@,:\s]+)\s*\Z")
_REPEATED = re.compile(r"(.+)\*(\d{1,4})\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Nodes ``[first, last)`` on a device, or in turn on several, as the user wants it."""

    first: int
    last: int
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """A checked request.

    Attributes:
        chunk_frames: frames of the video chunk that the plan's ``chunk_s`` is about.
        devices: the only devices to use, by name; all of the cluster where None.
        stages: use exactly so many stages.
        partition: the user's own cuts and devices; then nothing is searched.
        input_shapes: shapes that the user fixed for dynamic inputs; copied into the plan.
    """

    objective: Objective = "chunk"
    chunk_frames: int = 100
    devices: tuple[str, ...] | None = None
    stages: int | None = None
    partition: tuple[Part, ...] | None = None
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)
    release: Release = field(default_factory=Release)

    def __post_init__(self) -> None:
        if self.objective not in ("latency", "throughput", "chunk"):
            raise InputError(
                "no such objective",
                got=self.objective,
                expected="latency, throughput or chunk",
            )
        if self.chunk_frames < 1:
            raise InputError("a chunk holds at least one frame", got=str(self.chunk_frames))
        if self.stages is not None and not 1 <= self.stages <= STAGES_MAX:
            raise InputError(
                "impossible number of stages", got=str(self.stages), expected=f"1 to {STAGES_MAX}"
            )
        if not 1 <= self.settings.frames_per_pass_max <= FRAMES_PER_PASS_MAX:
            raise InputError(
                "impossible number of frames a pass",
                got=str(self.settings.frames_per_pass_max),
                expected=f"1 to {FRAMES_PER_PASS_MAX}",
            )
        if not 1 <= self.settings.replicas_max <= REPLICAS_MAX:
            raise InputError(
                "impossible number of replicas",
                got=str(self.settings.replicas_max),
                expected=f"1 to {REPLICAS_MAX}",
            )
        parts = None if self.partition is None else len(self.partition)
        if parts is not None and self.stages not in (None, parts):
            raise InputError(
                "the partition and the number of stages contradict each other",
                got=f"{parts} parts and {self.stages} stages",
                remedy="give one of the two",
            )


def parse_partition(text: str) -> tuple[Part, ...]:
    """Read ``0:12@edge,12:40@cloud-0+cloud-1``: replicas are joined by ``+``.

    ``cloud*2`` stands for ``cloud+cloud``: two units of a counted device.

    Raises:
        InputError: not of that form, or the parts are empty or not contiguous from 0.
    """
    parts: list[Part] = []
    for piece in text.split(","):
        match = _PART.match(piece)
        if match is None:
            raise InputError(
                "not a partition",
                got=repr(piece),
                expected="FIRST:LAST@DEVICE, as in 0:12@edge, or 0:12@a+b for replicas",
            )
        devices = _replicas(match[3])
        part = Part(first=int(match[1]), last=int(match[2]), devices=devices)
        expected = parts[-1].last if parts else 0
        if part.first != expected or part.last <= part.first:
            raise InputError(
                "the parts of a partition must follow one another from node 0",
                got=piece.strip(),
                expected=f"a part that starts at {expected} and holds at least one node",
            )
        parts.append(part)
    return tuple(parts)


def _replicas(text: str) -> tuple[str, ...]:
    """The devices of a part: ``a+b``, or ``cloud*2`` for two units of a counted device."""
    names: list[str] = []
    for piece in text.split("+"):
        match = _REPEATED.match(piece)
        names += [match[1]] * int(match[2]) if match else [piece]
    if not 1 <= len(names) <= REPLICAS_MAX or not all(names):
        raise InputError(
            "not the replicas of a stage",
            got=repr(text),
            expected=f"1 to {REPLICAS_MAX} devices, as in a+b or cloud*2",
        )
    return tuple(names)


def choose_units(cluster: Cluster, names: tuple[str, ...] | None) -> tuple[Device, ...]:
    """The devices that a request may use; a counted device's name stands for all of it.

    Raises:
        InputError: a name that the cluster does not have, or none left.
    """
    if names is None:
        return cluster.units
    chosen: list[Device] = []
    for name in names:
        chosen += [unit for unit in units_named(cluster, name) if unit not in chosen]
    if not chosen:
        raise InputError("no device to plan for", remedy="name at least one device")
    return tuple(chosen)


def units_named(cluster: Cluster, name: str) -> tuple[Device, ...]:
    """The units that a name stands for.

    Raises:
        InputError: the cluster has no device of that name.
    """
    for unit in cluster.units:
        if unit.name == name:
            return (unit,)
    for device in cluster.devices:
        if device.name == name:
            members = {f"{name}-{index}" for index in range(device.count)}
            return tuple(unit for unit in cluster.units if unit.name in members)
    raise InputError(
        "the cluster has no such device",
        got=name,
        expected="one of " + ", ".join(unit.name for unit in cluster.units),
    )
