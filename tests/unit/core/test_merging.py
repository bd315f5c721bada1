"""Profiles of several classes of devices as one, and classes that nobody has measured."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from vaultline.core.errors import InputError
from vaultline.core.merging import estimate_class, merge_profiles
from vaultline.core.profile import ModelProfile, RecordedOn, read_profile, write_profile
from vaultline.testing import planning

BASE = planning.profile(
    [0.1, 0.2, 0.3], crossing_bytes=[64, 128, 64, 8], weight_bytes=4096, passes=((4, 2.0),)
)


def measured(device_class: str, factor: float = 1.0, **changes: object) -> ModelProfile:
    """The base, as another class of device would have measured it."""
    blocks = tuple(
        replace(block, compute_s=tuple((f, s * factor) for f, s in block.compute_s))
        for block in BASE.blocks
    )
    on = RecordedOn(
        host=f"{device_class}-host",
        cpu="c",
        date="2026-01-01",
        command="vaultline profile",
        device_class=device_class,
    )
    return replace(BASE, blocks=blocks, recorded_on=on, **changes)


def test_others_become_classes_of_the_base() -> None:
    merged = merge_profiles(BASE, [measured("gpu", 0.1), measured("old", 3.0)])
    assert [each.name for each in merged.classes] == ["gpu", "old"]
    gpu = merged.class_named("gpu")
    assert gpu is not None
    assert gpu.recorded_on.host == "gpu-host"
    assert gpu.compute_s[0][0] == (1, pytest.approx(0.01))
    assert len(gpu.compute_s[0]) == len(BASE.blocks[0].compute_s)
    assert gpu.rates == BASE.rates
    assert replace(merged, classes=()) == BASE
    assert read_profile(write_profile(merged)) == merged


def test_profiles_may_be_merged_one_after_another() -> None:
    at_once = merge_profiles(BASE, [measured("gpu"), measured("old")])
    in_turn = merge_profiles(merge_profiles(BASE, [measured("gpu")]), [measured("old")])
    nested = merge_profiles(BASE, [merge_profiles(measured("gpu"), [measured("old")])])
    assert at_once == in_turn == nested


def test_a_measurement_replaces_an_estimate() -> None:
    estimated = estimate_class(estimate_class(BASE, "gpu", 0.2, "a guess"), "old", 3.0, "a table")
    merged = merge_profiles(estimated, [measured("gpu", 0.1)])
    assert merged.class_scale == {"old": 3.0}
    assert merged.class_notes == {"old": "a table"}
    assert merged.class_named("gpu") is not None


def test_estimates_of_others_stay_behind() -> None:
    assert merge_profiles(BASE, [estimate_class(measured("gpu"), "x", 2.0)]).class_scale == {}


REFUSED = {
    "another model": (measured("gpu", model_digest="cd" * 32), "another model"),
    "other cuts": (
        measured("gpu", positions=(*BASE.positions[:-1], BASE.positions[-1] + 1)),
        "other cuts",
    ),
    "the class of the base itself": (measured("simulated"), "measured twice"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_merge_is_refused_of(case: str) -> None:
    other, words = REFUSED[case]
    with pytest.raises(InputError, match=words) as caught:
        merge_profiles(BASE, [other])
    assert caught.value.got and caught.value.remedy


def test_one_class_from_two_profiles_is_refused() -> None:
    with pytest.raises(InputError, match="gpu was measured twice"):
        merge_profiles(BASE, [measured("gpu"), measured("gpu")])
    with pytest.raises(InputError, match="gpu was measured twice"):
        merge_profiles(merge_profiles(BASE, [measured("gpu")]), [measured("gpu")])


def test_an_estimate_is_kept_with_where_it_comes_from() -> None:
    scaled = estimate_class(BASE, "gpu", 0.2, "vendor's figures")
    assert (scaled.class_scale, scaled.class_notes) == ({"gpu": 0.2}, {"gpu": "vendor's figures"})
    again = estimate_class(scaled, "gpu", 0.3)
    assert (again.class_scale, again.class_notes) == ({"gpu": 0.3}, {})
    assert read_profile(write_profile(scaled)) == scaled


@pytest.mark.parametrize("name", ["simulated", "old"])
def test_an_estimate_of_a_measured_class_is_refused(name: str) -> None:
    profile = merge_profiles(BASE, [measured("old")])
    with pytest.raises(InputError, match="was measured"):
        estimate_class(profile, name, 2.0)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_factor_is_refused(factor: float) -> None:
    with pytest.raises(InputError, match="above zero"):
        estimate_class(BASE, "gpu", factor)


def test_a_class_without_a_name_is_refused() -> None:
    with pytest.raises(InputError, match="no name"):
        estimate_class(BASE, "", 2.0)
