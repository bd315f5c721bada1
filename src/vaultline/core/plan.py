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
    REPLICAS_MAX,
    STAGES_MAX,
    TENSOR_BYTES_MAX,
)
from vaultline.core.memory import MemoryPlan, StreamRates
from vaultline.core.program import Mode, PageMode
from vaultline.core.serde import Struct, canonical_json, from_json
from vaultline.core.tensors import TensorSpec, layout

PLAN_VERSION = 3
#: Workers of one plan: one host process watches them all.
WORKERS_MAX = 256
Objective = Literal["latency", "throughput", "chunk"]
DeviceKind = Literal["simulated", "sgx", "tdx", "snp", "accelerator"]
LeakageMetric = Literal["resolution", "similarity", "reconstruction"]


class PlannedDevice(Struct, frozen=True):
    """What the plan needs to know of a device: copied from the cluster file."""

    name: str
    host: str
    kind: DeviceKind
    cores: int
    memory_bytes: int

    @property
    def untrusted(self) -> bool:
        """Whether nothing vouches for it: it sees only what a policy releases."""
        return self.kind == "accelerator"


class PlannedStage(Struct, frozen=True):
    """One stage: nodes ``[first, last)`` of the model's topological order on equal devices.

    Attributes:
        devices: replicas of the stage: frame n runs on ``devices[n % len(devices)]``.
        inputs, outputs: the tensors crossing the cuts before and after, in the order in which
            they travel.
        step_bytes: the largest tile of a product when weights are streamed.
        page_mode: what a swapped page costs when the stage is paged, in a simulation.
        predicted_s: seconds that a busy replica takes per frame of its own.
        estimated: the time was not measured on such a device but scaled from another one.
        memory: how it is expected to use its protected memory, at the granularity of the model's
            cuts; None where nothing was priced.
        rates: what streaming costs there: the compiler weighs steps by it.
    """

    devices: tuple[PlannedDevice, ...]
    first: int
    last: int
    threads: int
    mode: Mode
    step_bytes: int
    frames_per_pass: int
    queue_frames: int
    portable: bool
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    predicted_s: float
    estimated: bool = False
    page_mode: PageMode = "crypto"
    memory: MemoryPlan | None = None
    rates: StreamRates = StreamRates()

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.last:
            raise InputError("a stage holds no nodes", got=f"[{self.first}, {self.last})")
        self._check_devices()
        self._check_numbers()
        for tensors in (self.inputs, self.outputs):
            if layout(tensors)[1] > FRAME_BYTES_MAX:
                raise InputError(
                    "the tensors that cross a cut are too large for one frame",
                    got=f"{layout(tensors)[1]} bytes",
                    expected=f"at most {FRAME_BYTES_MAX}",
                )

    @property
    def device(self) -> PlannedDevice:
        """The first replica: the others are of the same kind, with the same memory and cores."""
        return self.devices[0]

    @property
    def period_s(self) -> float:
        """Seconds between the stage's frames when all replicas are busy."""
        return self.predicted_s / len(self.devices)

    @property
    def prefetch(self) -> bool:
        """Whether a step's weights are decrypted while the step before runs."""
        return self.memory is not None and self.memory.prefetch

    def _check_devices(self) -> None:
        """Replicas run one sealed program, so they must be able to."""
        traits = {(each.kind, each.memory_bytes, each.cores) for each in self.devices}
        if not 1 <= len(self.devices) <= REPLICAS_MAX or len(traits) != 1:
            raise InputError(
                f"stage [{self.first}, {self.last}) runs on devices that are not replicas",
                got=", ".join(each.name for each in self.devices) or "no device",
                expected=f"1 to {REPLICAS_MAX} devices of one kind, memory and number of cores",
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
        sizes = () if self.memory is None else _sizes(self.memory)
        if not all(0 <= size <= 1 << 62 for size in sizes):
            raise InputError(f"stage [{self.first}, {self.last}) has an impossible memory plan")
        if not (isfinite(self.predicted_s) and self.predicted_s >= 0):
            raise InputError("a stage's predicted time is negative", got=str(self.predicted_s))


def _sizes(memory: MemoryPlan) -> tuple[int, ...]:
    held = (memory.resident_bytes, memory.workspace_bytes, memory.engine_bytes, memory.io_bytes)
    steps = [each for step in memory.steps for each in (step.streamed_bytes, step.activation_bytes)]
    return (*held, *steps)


class ReleasedTensor(Struct, frozen=True):
    """A tensor that an untrusted device sees, and why it may.

    Attributes:
        stage: the stage on that device.
        leakage: measured with ``metric``, the worst of all cuts that the stage can compute from it.
        limit: the most that the owner's policy allows.
    """

    stage: int
    tensor: str
    metric: LeakageMetric
    leakage: float
    limit: float

    def __post_init__(self) -> None:
        if not (isfinite(self.leakage) and isfinite(self.limit) and self.leakage <= self.limit):
            raise InputError(
                f"tensor {self.tensor!r} leaks more than may be released to stage {self.stage}",
                got=f"{self.metric} {self.leakage:g}",
                expected=f"at most {self.limit:g}",
                remedy="keep that stage on attested devices, or raise the limit in the policy",
            )


class Plan(Struct, frozen=True):
    """Stages in order. Hop k enters stage k; the last hop goes back to the owner.

    Attributes:
        model_digest: SHA-256 (hex) of the model's structure and weights, as ``graph`` computes it.
        input_shapes: shapes that the user fixed for dynamic inputs.
        hop_s: predicted time of each hop, owner's first and last included.
        predicted: seconds: ``latency_s``, ``bottleneck_s`` and ``chunk_s`` for ``chunk_frames``.
        released: every tensor that enters an untrusted stage, and no other.
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
    released: tuple[ReleasedTensor, ...] = ()

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
        names = [device.name for stage in self.stages for device in stage.devices]
        if len(names) > WORKERS_MAX or len(set(names)) < len(names):
            raise InputError(
                "a device runs one stage, and a plan has a limited number of them",
                got=f"{len(names)} places on {len(set(names))} devices",
                expected=f"at most {WORKERS_MAX}, all different",
            )
        self._check_released()

    def _check_released(self) -> None:
        """What untrusted devices see is written down, all of it."""
        seen = [
            (number, tensor.name)
            for number, stage in enumerate(self.stages)
            if stage.device.untrusted
            for tensor in stage.inputs
        ]
        if sorted(seen) != sorted((each.stage, each.tensor) for each in self.released):
            raise InputError(
                "the plan does not list exactly the tensors that its untrusted stages see",
                got=", ".join(f"{each.tensor} to stage {each.stage}" for each in self.released)
                or "none",
                expected=", ".join(f"{name} to stage {stage}" for stage, name in seen) or "none",
                remedy="make the plan again with `vaultline plan`",
            )

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
