"""Frames as the owner has them, and as they travel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vaultline.core.errors import InputError
from vaultline.core.frame_meta import FrameMeta, read_meta, read_times, tensor_bytes, write_meta
from vaultline.core.frames import FrameLayout, StageTimes
from vaultline.core.plan import Plan
from vaultline.owner.arrays import Array, check_array, view_of, write_array


@dataclass(frozen=True, slots=True)
class OwnerFrame:
    """A preprocessed frame: tensors in the order of the plan's first inputs."""

    index: int
    timestamp_s: float
    tensors: Sequence[Array]


@dataclass(frozen=True, slots=True)
class ResultFrame:
    """A frame's outputs and times; ``sent_ns`` and ``received_ns`` are the owner's clock."""

    index: int
    timestamp_s: float
    outputs: dict[str, Array]
    times: tuple[StageTimes, ...]
    sent_ns: int
    received_ns: int


class FrameCodec:
    """A plan's frames to messages, and messages to results.

    Attributes:
        sent: of a frame's message; ``returned``: of a result's.
    """

    def __init__(self, plan: Plan) -> None:
        stages = len(plan.stages)
        self.sent = FrameLayout(plan.stages[0].inputs, stages)
        self.returned = FrameLayout(plan.stages[-1].outputs, stages)

    def write(self, message: memoryview, frame: OwnerFrame, *, now_ns: int) -> None:
        """Write a frame into a message.

        Raises:
            InputError: it does not fit the model.
        """
        specs = self.sent.specs
        if len(frame.tensors) != len(specs):
            raise InputError(
                "a frame has the wrong number of tensors",
                got=str(len(frame.tensors)),
                expected=str(len(specs)),
            )
        meta = FrameMeta(index=frame.index, timestamp_s=frame.timestamp_s, sent_ns=now_ns)
        write_meta(self.sent, message, meta)
        for position, (spec, tensor) in enumerate(zip(specs, frame.tensors, strict=True)):
            check_array(tensor, spec, f"a frame does not fit the model's input {spec.name!r}")
            write_array(tensor, tensor_bytes(self.sent, message, position))

    def read(self, message: memoryview, *, now_ns: int) -> ResultFrame:
        """What a message says, copied out of it."""
        meta = read_meta(message)
        outputs = {
            spec.name: view_of(tensor_bytes(self.returned, message, position), spec).copy()
            for position, spec in enumerate(self.returned.specs)
        }
        return ResultFrame(
            index=meta.index,
            timestamp_s=meta.timestamp_s,
            outputs=outputs,
            times=read_times(self.returned, message),
            sent_ns=meta.sent_ns,
            received_ns=now_ns,
        )
