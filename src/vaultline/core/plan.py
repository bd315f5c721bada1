"""A plan: which stage of the model runs on which device, and how. Data the owner signs off on."""

from __future__ import annotations

import hashlib
from math import isfinite
from typing import Literal

from vaultline.core.errors import InputError
from vaultline.core.limits import (
    FRAME_BYTES_MAX,
    FRAMES_PER_PASS_MAX,
    QUEUE_FRAMES_MAX,
    STAGES_MAX,
    TENSOR_BYTES_MAX,
)
from vaultline.core.serde import Struct, canonical_json, from_json
from vaultline.core.tensors import TensorSpec, layout

PLAN_VERSION = 1
#: What one more step of a streamed stage is worth in bytes of tensors kept between steps: a step
#: costs a call, tensors between steps cost memory for every waiting frame. The compiler cuts by
#: it, and the planner predicts by it what the compiler will do.
STEP_WORTH_BYTES = 1 << 18
Objective = Literal["latency", "throughput", "chunk"]
DeviceKind = Literal["simulated", "sgx", "tdx", "snp", "accelerator"]


class PlannedDevice(Struct, frozen=True):
    """What the plan needs to know of a device: copied from the cluster file."""

    name: str
    host: str
    kind: DeviceKind
    cores: int
    memory_bytes: int


class PlannedStage(Struct, frozen=True):
    """One stage: nodes ``[first, last)`` of the model's topological order on one device.

    ``inputs`` and ``outputs`` are the tensors crossing the cuts before and after, in the order in
    which they travel. ``step_bytes`` bounds the weights of one step when they are streamed.
    """

    device: PlannedDevice
    first: int
    last: int
    threads: int
    mode: Literal["resident", "streamed"]
    step_bytes: int
    frames_per_pass: int
    queue_frames: int
    portable: bool
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    predicted_s: float

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.last:
            raise InputError("a stage holds no nodes", got=f"[{self.first}, {self.last})")
        self._check_numbers()
        for tensors in (self.inputs, self.outputs):
            if layout(tensors)[1] > FRAME_BYTES_MAX:
                raise InputError(
                    "the tensors that cross a cut are too large for one frame",
                    got=f"{layout(tensors)[1]} bytes",
                    expected=f"at most {FRAME_BYTES_MAX}",
                )

    def _check_numbers(self) -> None:
        """Nothing that the planner would not write: the file is data from outside."""
        numbers = (
            ("threads", self.threads, 1024),
            ("step_bytes", self.step_bytes, TENSOR_BYTES_MAX),
            ("frames_per_pass", self.frames_per_pass, FRAMES_PER_PASS_MAX),
            ("queue_frames", self.queue_frames, QUEUE_FRAMES_MAX),
            ("cores", self.device.cores, 1024),
            ("memory_bytes", self.device.memory_bytes, 1 << 62),
        )
        for name, value, most in numbers:
            if not 1 <= value <= most:
                raise InputError(
                    f"stage [{self.first}, {self.last}) has an impossible {name}",
                    got=str(value),
                    expected=f"1 to {most}",
                    remedy="make the plan again with `vaultline plan`",
                )
        if not (isfinite(self.predicted_s) and self.predicted_s >= 0):
            raise InputError("a stage's predicted time is negative", got=str(self.predicted_s))


class Plan(Struct, frozen=True):
    """Stages in order. Hop k enters stage k; the last hop goes back to the owner.

    Attributes:
        model_digest: SHA-256 (hex) of the model's structure and weights, as ``graph`` computes it.
        input_shapes: shapes that the user fixed for dynamic inputs.
        hop_s: predicted time of each hop, owner's first and last included.
        predicted: seconds: ``latency_s``, ``bottleneck_s`` and ``chunk_s`` for ``chunk_frames``.
    """

    version: int
    model_name: str
    model_digest: str
    input_shapes: dict[str, tuple[int, ...]]
    objective: Objective
    chunk_frames: int
    stages: tuple[PlannedStage, ...]
    hop_s: tuple[float, ...]
    predicted: dict[str, float]

    def __post_init__(self) -> None:
        if self.version != PLAN_VERSION:
            raise InputError("plan of another version", got=str(self.version))
        if not 1 <= len(self.stages) <= STAGES_MAX:
            raise InputError("a plan has 1 to 64 stages", got=str(len(self.stages)))
        position = 0
        for stage in self.stages:
            if stage.first != position:
                raise InputError(
                    "the plan's stages are not contiguous",
                    got=f"a stage that starts at node {stage.first}",
                    expected=f"node {position}",
                )
            position = stage.last
        if len(self.hop_s) != len(self.stages) + 1 or self.chunk_frames < 1:
            raise InputError(
                "a plan predicts one hop more than it has stages",
                got=f"{len(self.hop_s)} hops and {self.chunk_frames} frames a chunk",
                expected=f"{len(self.stages) + 1} hops",
            )
        missing = {"latency_s", "bottleneck_s", "chunk_s"} - self.predicted.keys()
        if missing:
            raise InputError("the plan lacks a prediction", got=", ".join(sorted(missing)))
        for before, after in zip(self.stages, self.stages[1:], strict=False):
            if before.outputs != after.inputs:
                raise InputError("a stage's inputs are not the outputs of the stage before it")

    @property
    def digest(self) -> bytes:
        """SHA-256 of the canonical text: what evidence, grants and results are bound to."""
        return hashlib.sha256(canonical_json(self)).digest()


def write_plan(plan: Plan) -> bytes:
    """The canonical text of a plan, whose SHA-256 is the plan digest."""
    return canonical_json(plan)


def read_plan(data: bytes) -> Plan:
    """Parse a plan file.

    Raises:
        InputError: not a plan, or not in canonical form (then its digest would be ambiguous).
    """
    plan = from_json(data, Plan, what="the plan", remedy="make it again with `vaultline plan`")
    if canonical_json(plan) != data.rstrip(b"\n"):
        raise InputError(
            "the plan is not in canonical form",
            expected="the text that `vaultline plan` wrote",
            remedy="run `vaultline plan` again instead of editing the file",
        )
    return plan
