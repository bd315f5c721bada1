"""Pictures of plans: every shape of plan is drawn, as PNG and as SVG whose text can be read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from msgspec.structs import replace

from vaultline.cli.plan_picture import draw_comparison, draw_plan
from vaultline.core.errors import InputError
from vaultline.core.plan import Plan
from vaultline.core.profile import ModelProfile
from vaultline.planner import PlanRequest, Release, make_plan, plan_request
from vaultline.planner.baselines import compare
from vaultline.testing.planning import MIB, cluster, device, profile

PNG = b"\x89PNG\r\n\x1a\n"


def layers_of(blocks: int) -> ModelProfile:
    return profile([0.01 * (1 + n % 3) for n in range(blocks)], weight_bytes=MIB)


def replicated() -> tuple[Plan, ModelProfile]:
    layers = layers_of(6)
    plan = make_plan(layers, cluster(device("a"), device("b")), stages=2)
    last = plan.stages[1]
    more = tuple(replace(last.device, name=f"b-{n}") for n in range(1, 5))
    stage = replace(last, devices=(last.device, *more), estimated=True)
    return replace(plan, stages=(plan.stages[0], stage)), layers


def untrusted() -> tuple[Plan, ModelProfile]:
    layers = layers_of(6)
    release = Release(cuts=(False, *(True,) * 6), blocks=(True,) * 6, leakage=(0.1,) * 7, limit=0.2)
    machines = cluster(device("a"), device("$gpu$", kind="accelerator", trust="none"))
    return plan_request(layers, machines, PlanRequest(release=release)), layers


def staged(blocks: int, stages: int) -> tuple[Plan, ModelProfile]:
    layers = layers_of(blocks)
    return make_plan(layers, cluster(device("a", count=8)), stages=stages), layers


def streamed(cores: int) -> tuple[Plan, ModelProfile]:
    layers = profile([0.1] * 4, weight_bytes=40 * MIB, decrypt_bytes_per_s=1e9)
    return make_plan(layers, cluster(device("a", memory_bytes=64 * MIB, cores=cores))), layers


CASES = {
    "one stage of one block": staged(1, 1),
    "two stages": staged(9, 2),
    "eight stages of 160 blocks": staged(160, 8),
    "five replicas of a stage, estimated": replicated(),
    "an untrusted stage with an odd name": untrusted(),
    "weights that are streamed": streamed(1),
    "weights that are decrypted ahead": streamed(2),
}


@pytest.mark.parametrize(("plan", "layers"), CASES.values(), ids=CASES.keys())
def test_a_plan_is_drawn(plan: Plan, layers: ModelProfile, tmp_path: Path) -> None:
    path = tmp_path / "plan.svg"
    draw_plan(plan, layers, path)
    text = path.read_text()
    for stage in plan.stages:
        for each in stage.devices:
            assert f"{each.name}  " in re.sub(r"<[^>]*>", "\n", text)


def test_memory_is_drawn_over_the_steps_of_a_pass(tmp_path: Path) -> None:
    plan, layers = CASES["weights that are decrypted ahead"]
    assert plan.stages[0].prefetch
    draw_plan(plan, layers, tmp_path / "plan.svg")
    text = (tmp_path / "plan.svg").read_text()
    for said in ("weights that stay", "weights of the step", "free", "(of 64.0 MiB)"):
        assert said in text
    # Each layer of 40 MiB is ten tiles.
    assert ">steps<" in text


def test_the_same_picture_twice_is_the_same_file(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        draw_plan(*CASES["two stages"], tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_png_is_small(tmp_path: Path) -> None:
    plan, layers = CASES["eight stages of 160 blocks"]
    draw_plan(plan, layers, tmp_path / "plan.png")
    data = (tmp_path / "plan.png").read_bytes()
    assert data.startswith(PNG)
    assert len(data) < 300_000


def test_the_plan_of_another_model_is_refused(tmp_path: Path) -> None:
    plan, layers = CASES["two stages"]
    other = replace(layers, model_digest="cd" * 32)
    with pytest.raises(InputError, match="different models"):
        draw_plan(plan, other, tmp_path / "plan.png")


def test_a_comparison_names_every_baseline_and_why_one_has_no_plan(tmp_path: Path) -> None:
    layers = layers_of(4)
    machines = cluster(device("a"), device("b", memory_bytes=MIB))
    request = PlanRequest()
    rows = compare(layers, machines, request)
    draw_comparison(rows, plan_request(layers, machines, request), tmp_path / "compare.svg")
    text = (tmp_path / "compare.svg").read_text()
    assert all(row.name in text for row in rows)
    assert "no plan: nodes 2:4 do not fit on b" in text
