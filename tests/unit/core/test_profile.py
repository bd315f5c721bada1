from __future__ import annotations

import msgspec
import pytest

from vaultline.core.errors import InputError
from vaultline.core.profile import (
    BlockProfile,
    DeviceRates,
    Held,
    LoopbackRate,
    ModelProfile,
    RecordedOn,
    held_between,
    read_profile,
    write_profile,
)
from vaultline.core.tensors import TensorSpec

BLOCK = BlockProfile(
    compute_s=((1, 0.5), (4, 1.0)),
    weight_bytes=8,
    activation_bytes=4,
    largest_weight_bytes=8,
    cut_bytes=8,
    ops={"Conv": 2},
)
PROFILE = ModelProfile(
    model_name="m",
    model_digest="ab" * 32,
    engine_version="1.31.1",
    isa="x86-64-avx512",
    recorded_on=RecordedOn(host="h", cpu="c", date="2026-01-01", command="vaultline profile m"),
    positions=(0, 3, 7),
    blocks=(BLOCK, BLOCK),
    crossing=tuple(
        (
            TensorSpec(name=name, dtype="float32", shape=(1, 3)),
            TensorSpec(name=f"{name}2", dtype="uint8", shape=(5,)),
        )
        for name in "xyz"
    ),
    rates=DeviceRates(
        seal_bytes_per_s=1e9, open_bytes_per_s=1e9, decrypt_bytes_per_s=1e10, call_s=1e-4
    ),
    loopback=LoopbackRate(bytes_per_s=1e9, latency_s=1e-4),
    class_scale={"slow": 2.0},
)


def test_a_profile_survives_a_round_trip() -> None:
    assert read_profile(write_profile(PROFILE)) == PROFILE


def test_crossing_bytes_include_the_alignment_of_the_second_tensor() -> None:
    assert PROFILE.crossing_bytes == (69, 69, 69)


BAD = {
    "positions that do not start at 0": {"positions": (1, 3, 7)},
    "positions that do not rise": {"positions": (0, 3, 3)},
    "a block too few": {"blocks": (BLOCK,)},
    "a crossing too many": {"crossing": (*PROFILE.crossing, ())},
    "a scale of zero": {"class_scale": {"slow": 0.0}},
    "another version": {"version": 9},
    "a tensor in a block that isn't there": {"held": (Held(nbytes=1, first=0, last=2),)},
}


@pytest.mark.parametrize("case", BAD)
def test_an_inconsistent_profile_is_refused(case: str) -> None:
    with pytest.raises(InputError):
        msgspec.structs.replace(PROFILE, **BAD[case])


BAD_BLOCKS = {
    "no times": {"compute_s": ()},
    "no time for one frame": {"compute_s": ((2, 1.0),)},
    "times out of order": {"compute_s": ((1, 1.0), (4, 2.0), (2, 1.5))},
    "a negative time": {"compute_s": ((1, -1.0),)},
    "a negative size": {"weight_bytes": -1},
    "steps that don't hold its weights": {"weight_bytes": 9},
    "a step smaller than its weights": {"cut_bytes": 7},
    "no number of values": {"values": -1},
}


@pytest.mark.parametrize("case", BAD_BLOCKS)
def test_an_inconsistent_block_is_refused(case: str) -> None:
    with pytest.raises(InputError):
        msgspec.structs.replace(BLOCK, **BAD_BLOCKS[case])


def test_rates_are_above_zero() -> None:
    with pytest.raises(InputError):
        msgspec.structs.replace(PROFILE.rates, seal_bytes_per_s=0.0)
    with pytest.raises(InputError):
        msgspec.structs.replace(PROFILE.loopback, bytes_per_s=0.0)


def test_a_tensor_lives_from_the_block_that_makes_it_to_the_last_that_reads_it() -> None:
    def specs(*names: str) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name=name, dtype="uint8", shape=(65,)) for name in names)

    crossing = (specs("in"), specs("a", "in"), specs("b", "a"), specs("c", "a"), specs("out"))
    assert held_between(crossing) == (
        Held(nbytes=128, first=0, last=3),
        Held(nbytes=128, first=1, last=2),
        Held(nbytes=128, first=2, last=3),
    )
    with pytest.raises(InputError):
        Held(nbytes=1, first=1, last=1)
