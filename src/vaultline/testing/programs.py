"""Stage programs made by hand: what a test leaves out, and a place for every tensor and weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from msgspec.structs import replace

from vaultline.core.program import (
    PROGRAM_VERSION,
    Isa,
    Mode,
    Place,
    StageProgram,
    StageSettings,
    Step,
    Weight,
)
from vaultline.core.tensors import TensorSpec, align
from vaultline.cost.packing import Lifetime, pack, peak_bytes

#: ``apart``: nothing shares a byte. ``packed``: whatever lives at different times may.
Arrangement = Literal["apart", "packed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A program whose steps say what they read and write, but not where it lies.

    Attributes:
        weights: specs; ``kept`` are indices of those that stay, by default all if ``mode`` is
            ``resident`` and none if it is ``streamed``.
    """

    tensors: tuple[TensorSpec, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    graphs: tuple[bytes, ...] = field(default=(), repr=False)
    steps: tuple[Step, ...] = ()
    weights: tuple[TensorSpec, ...] = ()
    kept: frozenset[int] | None = None
    frames: int = 1
    mode: Mode = "resident"
    prefetch: bool = False
    isa: Isa = "portable"
    engine_bytes: int = 0
    budget_bytes: int = 1 << 24

    @property
    def resident(self) -> frozenset[int]:
        """Indices of the weights that stay."""
        if self.kept is not None:
            return self.kept
        return frozenset() if self.mode == "streamed" else frozenset(range(len(self.weights)))


def arranged(draft: Draft, how: Arrangement = "apart") -> StageProgram:
    """The program of a draft, everything in its place."""
    tensors = _tensor_lives(draft)
    loads = _weight_lives(draft)
    offsets, workspace = _offsets([*tensors.values(), *loads.values()], how)
    at = dict(zip(tensors, offsets, strict=False))
    streamed = dict(zip(loads, offsets[len(tensors) :], strict=True))
    resident, resident_bytes = _in_a_row(
        [align(draft.weights[index].nbytes) for index in sorted(draft.resident)]
    )
    stays = dict(zip(sorted(draft.resident), resident, strict=True))
    return StageProgram(
        version=PROGRAM_VERSION,
        engine_version="0.0",
        isa=draft.isa,
        settings=StageSettings(
            stage=0,
            stages=1,
            threads=1,
            budget_bytes=draft.budget_bytes,
            mode=draft.mode,
            frames_per_pass=draft.frames,
            queue_frames=draft.frames,
        ),
        tensors=draft.tensors,
        places=tuple(
            Place(offset=at[index], frames=draft.frames) if index in at else Place()
            for index in range(len(draft.tensors))
        ),
        inputs=draft.inputs,
        outputs=draft.outputs,
        weights=tuple(
            Weight(spec=spec, resident_at=stays.get(index))
            for index, spec in enumerate(draft.weights)
        ),
        graphs=draft.graphs,
        steps=tuple(
            replace(
                step,
                weights=tuple(
                    replace(each, offset=streamed.get((number, each.weight), 0))
                    for each in step.weights
                ),
                activation_bytes=peak_bytes(
                    [each for each in tensors.values() if each.first <= number <= each.last]
                ),
            )
            for number, step in enumerate(draft.steps)
        ),
        resident_bytes=resident_bytes,
        workspace_bytes=workspace,
        engine_bytes=draft.engine_bytes,
        prefetch=draft.prefetch,
    )


def _tensor_lives(draft: Draft) -> dict[int, Lifetime]:
    """Of every tensor between steps, and of those of messages that steps stack: which steps."""
    touched: dict[int, list[int]] = {}
    edge = {*draft.inputs, *draft.outputs}
    for number, step in enumerate(draft.steps):
        for _, index in (*step.feeds, *step.fetches):
            if index not in edge or (step.stackable and draft.frames > 1):
                touched.setdefault(index, []).append(number)
    return {
        index: Lifetime(
            size_bytes=align(draft.frames * draft.tensors[index].nbytes),
            first=min(steps),
            last=max(steps),
        )
        for index, steps in touched.items()
    }


def _weight_lives(draft: Draft) -> Mapping[tuple[int, int], Lifetime]:
    """Of every streamed weight of every step, from when it may be decrypted."""
    return {
        (number, each.weight): Lifetime(
            size_bytes=align(draft.weights[each.weight].nbytes),
            first=max(0, number - draft.prefetch),
            last=number,
        )
        for number, step in enumerate(draft.steps)
        for each in step.weights
        if each.weight not in draft.resident
    }


def _offsets(lives: Sequence[Lifetime], how: Arrangement) -> tuple[tuple[int, ...], int]:
    return pack(lives) if how == "packed" else _in_a_row([each.size_bytes for each in lives])


def _in_a_row(sizes: Sequence[int]) -> tuple[tuple[int, ...], int]:
    starts = tuple(sum(sizes[:index]) for index in range(len(sizes)))
    return starts, sum(sizes)
