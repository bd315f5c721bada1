"""Serdab's table: what is compared with what, and what counts as measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from vaultline.bench.checking import Checked, CheckedTime
from vaultline.bench.planning import planner_times
from vaultline.bench.serdab import (
    Placed,
    Predicted,
    SerdabResult,
    edge_and_cloud,
    figures,
    here,
    released,
)
from vaultline.cli.bench_pictures import draw_growth, draw_serdab
from vaultline.core.cluster import Link
from vaultline.core.plan import Plan
from vaultline.core.tensors import TensorSpec
from vaultline.planner import PlanRequest, make_plan, plan_request
from vaultline.testing.planning import MIB, cluster, device, profile

LAYERS = profile([1.0] * 4, weight_bytes=MIB)
PLAN: Plan = make_plan(LAYERS, cluster(device("a")))


def placed(
    placement: str,
    predicted_s: float,
    measured_s: float | None = None,
    serdab_s: float | None = 100.0,
    paged_s: float | None = 400.0,
) -> Placed:
    baselines = {"serdab": serdab_s, "one-enclave.sgx1": paged_s, "one-enclave.crypto": None}
    return Placed(
        model="m",
        placement=placement,
        plan=PLAN,
        predicted_s=predicted_s,
        baselines_s=baselines,
        measured_s=measured_s,
    )


def check(where: str, predicted_s: float, measured_s: float) -> Predicted:
    time = CheckedTime(predicted_s=predicted_s, measured_s=measured_s)
    checked = Checked(
        plan=PLAN, frames=32, chunk=time, latency=time, period=time, stages=(time,), chunks_s=(1.0,)
    )
    return Predicted(model="m", where=where, checked=checked)


def test_a_speedup_is_measured_only_if_both_sides_are() -> None:
    found = SerdabResult(
        placed=[placed("one", 100.0, 110.0), placed("two", 50.0, 55.0), placed("accelerator", 40.0)]
    )
    assert found.speedup("m", "two") == (2.0, True)
    assert found.speedup("m", "accelerator") == (2.5, False)
    assert found.speedup("m", "two+accelerator") is None
    made = figures(found)
    assert (made["speedup.m.two"], made["measured.m.two"]) == (2.0, 1.0)
    assert (made["speedup.m.accelerator"], made["measured.m.accelerator"]) == (2.5, 0.0)


def test_the_speedup_over_a_paged_enclave_is_of_predictions() -> None:
    found = SerdabResult(placed=[placed("one", 100.0, 110.0), placed("two", 50.0, 60.0)])
    made = figures(found)
    assert made["speedup_paged_sgx1.m.two"] == 8.0
    assert "speedup_paged_crypto.m.two" not in made


def test_plans_slower_than_serdabs_are_counted() -> None:
    cells = [placed("one", 100.0), placed("two", 101.0), placed("accelerator", 90.0, serdab_s=None)]
    assert figures(SerdabResult(placed=cells))["slower_than_serdab"] == 1.0


def test_errors_are_counted_by_place() -> None:
    checks = [
        check("local", 10.0, 10.9),
        check("local", 10.0, 8.0),
        check("30mbit", 10.0, 10.5),
    ]
    made = figures(SerdabResult(checks=checks))
    assert (made["error_within_10pct"], made["error_models"]) == (1.0, 2.0)
    assert made["error_max"] == pytest.approx(0.2)
    assert made["error_within_10pct.30mbit"] == 1.0


def test_this_machine_has_a_core_for_each_enclave() -> None:
    machines = here(93 * MIB, enclaves=2, accelerator=True)
    assert [unit.name for unit in machines.units] == ["enclave-0", "enclave-1", "accelerator"]
    assert machines.units[-1].trust == "none"


def test_edge_and_cloud_are_linked_as_measured() -> None:
    there, back = (
        Link(source=a, target=b, bytes_per_s=rate, latency_s=0.0)
        for a, b, rate in (("edge", "cloud", 3e6), ("cloud", "edge", 4e6))
    )
    machines = edge_and_cloud(MIB, there, back)
    found = [machines.link("edge", "cloud"), machines.link("cloud", "edge")]
    assert [link and link.bytes_per_s for link in found] == [3e6, 4e6]
    assert machines.owner == "edge"


def test_serdabs_rule_releases_small_planes_only() -> None:
    sides = (224, 56, 21, 20, 1)
    crossing = tuple(
        (TensorSpec(name=f"t{n}", dtype="float32", shape=(1, 3, side, side)),)
        for n, side in enumerate(sides)
    )
    release = released(replace(LAYERS, crossing=crossing))
    assert release.cuts == (False, False, False, True, True)
    assert release.leakage == tuple(map(float, sides))
    machines = here(93 * MIB, enclaves=1, accelerator=True)
    layers = replace(LAYERS, crossing=crossing, class_scale={"estimated-accelerator": 0.1})
    plan = plan_request(layers, machines, PlanRequest(chunk_frames=100, release=release))
    assert [stage.device.kind for stage in plan.stages] == ["simulated", "accelerator"]
    assert plan.stages[1].first == 3
    assert plan.stages[1].estimated


def test_the_table_is_drawn_with_and_without_measurements(tmp_path: Path) -> None:
    whole = SerdabResult(
        placed=[
            placed("one", 100.0, 110.0),
            placed("two", 50.0, 55.0),
            placed("accelerator", 40.0),
        ],
        checks=[check("local", 10.0, 10.9), check("30mbit", 1.0, 1.1)],
    )
    for name, found in (("whole.png", whole), ("empty.png", SerdabResult())):
        draw_serdab(found, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_growth_is_drawn(tmp_path: Path) -> None:
    times = planner_times(cuts=(8, 16), devices=(2, 4), chunks=(10,), seeds=(1,))
    draw_growth(times, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
