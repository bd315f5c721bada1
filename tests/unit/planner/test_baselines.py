"""Baselines on problems whose answers can be worked out by hand."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from vaultline.core.errors import InfeasibleError, InputError
from vaultline.core.profile import ModelProfile
from vaultline.cost.paging import PAGE_BYTES
from vaultline.planner import PlanRequest
from vaultline.planner.baselines import BASELINES, compare, price
from vaultline.planner.problem import Release
from vaultline.testing.planning import MIB, both_ways, cluster, device, profile

LAYERS = profile([1.0] * 8, weight_bytes=MIB, scale={"slow": 2.0})
TWO = cluster(device("a"), device("b"))


def with_pages(layers: ModelProfile, **page_s: float) -> ModelProfile:
    return replace(layers, rates=replace(layers.rates, page_s=page_s))


def test_the_names_are_those_of_the_design() -> None:
    assert list(BASELINES) == [
        "one-enclave",
        "one-enclave-bounded",
        "even-split",
        "neurosurgeon",
        "serdab",
        "bottleneck-dp",
        "vaultline",
    ]
    assert all(each.summary and each.source for each in BASELINES.values())


def test_an_unknown_baseline_is_refused_with_the_names() -> None:
    with pytest.raises(InputError, match="no such baseline") as caught:
        price("random", LAYERS, TWO, PlanRequest())
    assert "even-split" in str(caught.value.expected)


def test_one_enclave_that_fits_does_not_page() -> None:
    found = price("one-enclave", LAYERS, TWO, PlanRequest(objective="latency"))
    assert found.plan is not None
    assert found.latency_s == pytest.approx(8.0)
    assert (found.note, found.paged) == ("", False)


def test_one_enclave_that_does_not_fit_pays_for_every_page_of_every_frame() -> None:
    small = cluster(device("a", memory_bytes=6 * MIB))
    layers = with_pages(LAYERS, crypto=1e-3, sgx1=1e-2)
    request = PlanRequest(objective="latency")
    found = price("one-enclave", layers, small, request)
    assert found.paged
    # 8 MiB of weights in pages of 4 KiB; buffers of frames and the engine leave them less room.
    swapped = (found.latency_s - 8.0) / 1e-3
    assert 8 * MIB / PAGE_BYTES < swapped < 8 * MIB / PAGE_BYTES + 150
    assert swapped == pytest.approx(round(swapped))
    assert found.plan is not None
    (stage,) = found.plan.stages
    assert (stage.mode, stage.page_mode, stage.frames_per_pass) == ("paged", "crypto", 1)
    assert stage.device.memory_bytes == 6 * MIB
    assert found.plan.predicted["latency_s"] == found.latency_s
    assert stage.predicted_s == pytest.approx(found.bottleneck_s)
    dearer = price("one-enclave", layers, small, request, page_mode="sgx1")
    assert dearer.latency_s - 8.0 == pytest.approx(10 * (found.latency_s - 8.0))
    assert f"pages {round(swapped):,} times a frame" in found.note


def test_a_real_enclave_pages_without_a_plan_of_ours() -> None:
    small = cluster(device("a", kind="sgx", memory_bytes=6 * MIB))
    found = price("one-enclave", with_pages(LAYERS, crypto=1e-3), small, PlanRequest())
    assert (found.plan, found.paged) == (None, True)
    assert "pages" in found.note


def test_paging_without_page_costs_asks_for_a_new_profile() -> None:
    small = cluster(device("a", memory_bytes=6 * MIB))
    with pytest.raises(InputError, match="swapped page") as caught:
        price("one-enclave", LAYERS, small, PlanRequest())
    assert "vaultline profile" in str(caught.value.remedy)
    rows = {row.name: row for row in compare(LAYERS, small, PlanRequest())}
    assert "swapped page" in rows["one-enclave"].reason
    assert rows["one-enclave-bounded"].ratio == 1.0


def test_the_bounded_executor_streams_what_one_enclave_pages() -> None:
    small = cluster(device("a", memory_bytes=6 * MIB))
    found = price("one-enclave-bounded", LAYERS, small, PlanRequest())
    assert found.plan is not None
    assert found.plan.stages[0].mode == "streamed"


def test_one_enclave_takes_the_best_of_the_enclaves() -> None:
    machines = cluster(device("a", speed_class="slow"), device("b"))
    for name in ("one-enclave", "one-enclave-bounded"):
        assert price(name, LAYERS, machines, PlanRequest()).devices == (("b",),)


def test_even_split_gives_every_enclave_as_many_nodes() -> None:
    machines = cluster(device("a", speed_class="slow"), device("b"), device("c"), device("d"))
    found = price("even-split", LAYERS, machines, PlanRequest())
    assert found.cuts == (2, 4, 6)
    assert found.devices == (("a",), ("b",), ("c",), ("d",))
    assert found.bottleneck == "stage 0 on a"


def test_even_split_over_more_devices_than_blocks_leaves_some_out() -> None:
    found = price("even-split", profile([1.0, 1.0]), cluster(device("a", count=5)), PlanRequest())
    assert len(found.devices) == 2


def test_even_split_that_does_not_fit_says_what_is_missing() -> None:
    machines = cluster(device("a"), device("b", memory_bytes=MIB))
    with pytest.raises(InfeasibleError, match="nodes 4:8 do not fit on b") as caught:
        price("even-split", LAYERS, machines, PlanRequest())
    assert caught.value.expected


def test_neurosurgeon_moves_everything_to_the_faster_end_when_the_link_is_fast() -> None:
    machines = cluster(
        device("edge", speed_class="slow"),
        device("cloud", "far"),
        links=both_ways("box", "far", 1e9),
    )
    assert price("neurosurgeon", LAYERS, machines, PlanRequest()).devices == (("cloud",),)


def test_neurosurgeon_cuts_where_little_crosses() -> None:
    layers = profile([1.0] * 4, crossing_bytes=[4000, 4000, 10, 4000, 10], scale={"slow": 3.0})
    machines = cluster(
        device("edge", speed_class="slow"),
        device("cloud", "far"),
        links=both_ways("box", "far", 1000.0),
    )
    found = price("neurosurgeon", layers, machines, PlanRequest())
    # At the start 4 s of crossing and 4 s of computing; in the middle 0.01 s, 6 s and 2 s.
    assert found.devices == (("cloud",),)
    dearer = replace(layers, class_scale={"slow": 1.5})
    found = price("neurosurgeon", dearer, machines, PlanRequest())
    assert (found.devices, found.cuts) == ((("edge",), ("cloud",)), (2,))


def test_serdab_keeps_the_listed_order_and_ours_does_not() -> None:
    # The large device comes second, but only the first layers are large.
    layers = replace(
        profile([1.0] * 4, scale={"slow": 5.0}),
        blocks=tuple(
            replace(
                block,
                weight_bytes=size * MIB,
                largest_weight_bytes=size * MIB,
                cut_bytes=size * MIB,
            )
            for block, size in zip(profile([1.0] * 4).blocks, (40, 40, 1, 1), strict=True)
        ),
    )
    machines = cluster(device("small", memory_bytes=5 * MIB), device("large"))
    ours = price("vaultline", layers, machines, PlanRequest())
    assert ours.devices == (("large",), ("small",))
    serdab = price("serdab", layers, machines, PlanRequest())
    assert serdab.devices == (("large",),)
    assert serdab.chunk_s > ours.chunk_s


def test_serdab_may_leave_a_listed_device_out() -> None:
    machines = cluster(
        device("a"), device("slow", speed_class="slow", memory_bytes=4 * MIB), device("c")
    )
    layers = replace(LAYERS, class_scale={"slow": 1000.0})
    assert price("serdab", layers, machines, PlanRequest()).devices == (("a",), ("c",))


def test_serdab_runs_released_layers_on_an_accelerator() -> None:
    machines = cluster(device("a"), device("gpu", kind="accelerator", trust="none"))
    release = Release(
        cuts=(False,) * 5 + (True,) * 4, blocks=(True,) * 8, leakage=(0.2,) * 9, limit=0.3
    )
    kept = price("serdab", LAYERS, machines, PlanRequest())
    assert kept.devices == (("a",),)
    found = price("serdab", LAYERS, machines, PlanRequest(release=release))
    assert (found.devices, found.cuts) == ((("a",), ("gpu",)), (5,))
    assert found.plan is not None
    assert [each.tensor for each in found.plan.released] == ["t5"]


def test_the_bottleneck_programme_ignores_latency() -> None:
    machines = cluster(device("a"), device("far", "away"), links=both_ways("box", "away", 1e9, 0.6))
    layers = profile([0.7, 0.1])
    request = PlanRequest(objective="latency")
    assert (
        price("bottleneck-dp", layers, machines, request).latency_s
        > price("vaultline", layers, machines, request).latency_s
    )
    assert price("bottleneck-dp", layers, machines, request).bottleneck_s == pytest.approx(0.7)


def test_the_case_that_a_search_by_device_type_gets_wrong() -> None:
    layers = profile([0.1] * 12, scale={"slow": 10.0})
    machines = cluster(device("slow", speed_class="slow", count=2), device("fast", count=2))
    found = price("bottleneck-dp", layers, machines, PlanRequest(objective="throughput"))
    assert found.bottleneck_s == pytest.approx(0.6)


def test_without_an_enclave_the_enclave_baselines_say_so() -> None:
    machines = cluster(device("gpu", kind="accelerator", trust="none"))
    rows = {row.name: row for row in compare(LAYERS, machines, PlanRequest())}
    for name in ("one-enclave", "one-enclave-bounded", "even-split"):
        assert "trust" in rows[name].reason
    for name in ("neurosurgeon", "serdab", "bottleneck-dp", "vaultline"):
        assert rows[name].priced is None
        assert rows[name].ratio is None


def test_a_fixed_number_of_stages_does_not_bind_the_comparison() -> None:
    rows = {row.name: row for row in compare(LAYERS, TWO, PlanRequest(stages=1))}
    assert rows["one-enclave-bounded"].ratio == pytest.approx(2.0, rel=0.02)
