"""A stage program's references: the enclave indexes with them, so none may be wrong."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from vaultline.core.errors import InputError, RemoteProtocolError
from vaultline.core.limits import REPLICAS_MAX
from vaultline.core.program import Place, StageProgram, StageSettings, Step, StepWeight, Weight
from vaultline.core.serde import from_msgpack, to_msgpack
from vaultline.core.tensors import TensorSpec
from vaultline.testing.vaults import small_stage

TENSORS = tuple(TensorSpec(name=name, dtype="uint8", shape=(1, 4)) for name in "abc")
STEP = Step(
    graph=0, feeds=(("i", 0),), weights=(StepWeight(input="w", weight=0),), fetches=(("o", 1),)
)


def program(**changes: Any) -> StageProgram:
    parts: dict[str, Any] = {
        "tensors": TENSORS,
        "places": (Place(),) * 3,
        "workspace_bytes": 64,
        "outputs": (1,),
        "weights": (Weight(spec=TENSORS[0]),),
        "graphs": (b"",),
        "steps": (STEP,),
    }
    return replace(small_stage(()).program, **(parts | changes))


WRONG: dict[str, dict[str, Any]] = {
    "an input from behind": {"inputs": (-1,)},
    "an input that is not there": {"inputs": (3,)},
    "an input twice": {"inputs": (0, 0)},
    "an output twice, one of which nobody would write": {"outputs": (1, 1)},
    "an output from behind": {"outputs": (-2,)},
    "an output that no step makes": {"outputs": (2,)},
    "a graph from behind": {"steps": (replace(STEP, graph=-1),)},
    "a weight from behind": {
        "steps": (replace(STEP, weights=(StepWeight(input="w", weight=-1),)),)
    },
    "a weight that is not there": {
        "steps": (replace(STEP, weights=(StepWeight(input="w", weight=1),)),)
    },
    "a feed from behind": {"steps": (replace(STEP, feeds=(("i", -3),)),)},
    "a feed that no step has made": {"steps": (replace(STEP, feeds=(("i", 2),)),)},
    "a fetch from behind": {"steps": (replace(STEP, fetches=(("o", -2),)),)},
    "a fetch into an input": {"steps": (replace(STEP, fetches=(("o", 0),)),)},
    "a fetch twice": {"steps": (STEP, STEP)},
    "a weight beyond the workspace": {
        "steps": (replace(STEP, weights=(StepWeight(input="w", weight=0, offset=61),)),)
    },
    "a weight before the workspace": {
        "steps": (replace(STEP, weights=(StepWeight(input="w", weight=0, offset=-1),)),)
    },
    "a resident weight beyond its buffer": {"weights": (Weight(spec=TENSORS[0], resident_at=0),)},
    "a tensor beyond the workspace": {"places": (Place(), Place(offset=61, frames=1), Place())},
    "a tensor with room for more frames than a pass has": {
        "places": (Place(), Place(frames=2), Place())
    },
    "a tensor without a place": {"places": (Place(), Place())},
    "less than no memory": {"steps": (replace(STEP, activation_bytes=-1),)},
}


def test_the_program_without_these_mistakes_is_right() -> None:
    made = program()
    read = from_msgpack(to_msgpack(made), StageProgram, what="the program", bytes_max=4096)
    assert read == made


@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_reference_is_refused(mistake: str) -> None:
    with pytest.raises(InputError):
        program(**WRONG[mistake]).__post_init__()


def test_a_sealed_program_with_a_wrong_reference_is_refused() -> None:
    data = to_msgpack(program()).replace(b"\xa7outputs\x91\x01", b"\xa7outputs\x91\xff")
    with pytest.raises(RemoteProtocolError):
        from_msgpack(data, StageProgram, what="the program", bytes_max=4096)


@pytest.mark.parametrize("name", ["sources", "replicas", "targets"])
@pytest.mark.parametrize("count", [-1, 0, REPLICAS_MAX + 1])
def test_a_number_of_replicas_is_within_its_limits(name: str, count: int) -> None:
    settings = program().settings
    with pytest.raises(InputError, match=name):
        replace(settings, **{name: count}).__post_init__()


@pytest.mark.parametrize(
    ("counts", "connections"),
    [
        ((1, 1, 1), (1, 1)),
        ((1, 16, 1), (1, 1)),
        ((16, 1, 16), (16, 16)),
        ((2, 4, 6), (1, 3)),
        ((3, 4, 5), (3, 5)),
    ],
)
def test_a_replica_has_connections_to_those_with_which_it_shares_frames(
    counts: tuple[int, int, int], connections: tuple[int, int]
) -> None:
    names = dict(zip(("sources", "replicas", "targets"), counts, strict=True))
    assert replace(program().settings, **names).connections == connections


def test_a_stage_sealed_before_there_were_replicas_has_one() -> None:
    data = to_msgpack(
        {
            "stage": 0,
            "stages": 1,
            "threads": 1,
            "budget_bytes": 1,
            "mode": "resident",
            "frames_per_pass": 1,
            "queue_frames": 1,
        }
    )
    read = from_msgpack(data, StageSettings, what="settings", bytes_max=4096)
    assert (read.sources, read.replicas, read.targets) == (1, 1, 1)
