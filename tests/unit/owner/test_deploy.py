"""From a plan to workers: what is checked on the way."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from vaultline.bench.profiling import ProfileRequest, profile_model
from vaultline.core.errors import InfeasibleError, InputError
from vaultline.core.plan import Plan, PlannedStage
from vaultline.graph.model import Model, load_model
from vaultline.owner.deploy import (
    PlanForAnotherModelError,
    compile_stages,
    launch_workers,
    stage_settings,
)
from vaultline.owner.starting import Place, check_platform, parse_place
from vaultline.planner import make_plan
from vaultline.testing import planning

DIGITS = Path(__file__).parents[3] / "examples" / "digits" / "digits.onnx"


@pytest.fixture(scope="module")
def digits() -> tuple[Model, Plan]:
    model = load_model(DIGITS)
    known = profile_model(model, ProfileRequest(repeats=1))
    places = planning.cluster(planning.device("enclave", count=2))
    return model, make_plan(known, places, stages=2)


def with_stage(plan: Plan, number: int, **changes: object) -> Plan:
    stages: list[PlannedStage] = list(plan.stages)
    stages[number] = replace(stages[number], **changes)
    return replace(plan, stages=tuple(stages))


def test_every_stage_is_compiled_with_the_plans_settings(digits: tuple[Model, Plan]) -> None:
    model, plan = digits
    seen: list[tuple[int, int]] = []
    stages = compile_stages(model, plan, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    for number, (stage, planned) in enumerate(zip(stages, plan.stages, strict=True)):
        assert stage.program.settings == stage_settings(plan, number)
        assert stage.program.settings.budget_bytes == planned.device.memory_bytes
        assert stage.program.specs(stage.program.outputs) == planned.outputs


def test_a_plan_for_another_model_is_refused(digits: tuple[Model, Plan]) -> None:
    model, plan = digits
    with pytest.raises(PlanForAnotherModelError) as caught:
        compile_stages(model, replace(plan, model_digest="00" * 32))
    assert caught.value.got
    assert caught.value.expected
    assert caught.value.remedy


def test_a_plan_with_other_tensors_at_a_cut_is_refused(digits: tuple[Model, Plan]) -> None:
    model, plan = digits
    out = replace(plan.stages[-1].outputs[0], name="another")
    with pytest.raises(PlanForAnotherModelError, match="stage 1"):
        compile_stages(model, with_stage(plan, 1, outputs=(out,)))


def test_a_plan_that_ends_early_is_refused(digits: tuple[Model, Plan]) -> None:
    model, plan = digits
    with pytest.raises(PlanForAnotherModelError, match="end of the model"):
        compile_stages(model, replace(plan, stages=plan.stages[:1], hop_s=plan.hop_s[:2]))


def test_a_stage_that_will_not_fit_is_refused_with_what_is_missing(
    digits: tuple[Model, Plan],
) -> None:
    model, plan = digits
    small = replace(plan.stages[1].device, memory_bytes=1 << 20)
    with pytest.raises(InfeasibleError, match="stage 1 does not fit on device enclave-1") as caught:
        compile_stages(model, with_stage(plan, 1, devices=(small,)))
    assert "for weights, tensors" in str(caught.value.got)
    assert "at least" in str(caught.value.expected)


PLACES = {
    "edge=10.0.0.2": ("edge", Place(bind="10.0.0.2")),
    "edge=10.0.0.2%left": ("edge", Place(bind="10.0.0.2", netns="left")),
    "edge=::1": ("edge", Place(bind="::1")),
}


@pytest.mark.parametrize("text", PLACES)
def test_a_place_is_read(text: str) -> None:
    assert parse_place(text) == PLACES[text]


@pytest.mark.parametrize("text", ["", "edge", "edge=", "=10.0.0.2", "edge=%left"])
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_place(text)
    assert caught.value.expected


def test_workers_are_asked_for_as_planned(digits: tuple[Model, Plan], tmp_path: Path) -> None:
    _, plan = digits
    places = {"box": Place(bind="127.0.0.2", netns="left")}
    workers = launch_workers(plan, tmp_path / "v", platform_file=tmp_path / "p", places=places)
    assert [worker.name for worker in workers] == ["stage0", "stage1"]
    for worker in workers:
        assert (worker.bind, worker.netns) == ("127.0.0.2", "left")
        assert Path(worker.vault).is_absolute()
        assert worker.cores
        assert worker.busy_s_max >= 1.5


def with_replicas(plan: Plan, *counts: int) -> Plan:
    stages = []
    for number, (stage, count) in enumerate(zip(plan.stages, counts, strict=True)):
        devices = tuple(replace(stage.device, name=f"d{number}-{k}") for k in range(count))
        stages.append(replace(stage, devices=devices))
    return replace(plan, stages=tuple(stages))


def test_a_stage_of_several_devices_has_a_worker_on_each(
    digits: tuple[Model, Plan], tmp_path: Path
) -> None:
    plan = with_replicas(digits[1], 1, 3)
    workers = launch_workers(plan, tmp_path / "v", platform_file=tmp_path / "p", places={})
    assert [(each.name, each.stage, each.replica) for each in workers] == [
        ("stage0", 0, 0),
        ("stage1-0", 1, 0),
        ("stage1-1", 1, 1),
        ("stage1-2", 1, 2),
    ]


def test_workers_share_cores_only_where_there_are_too_few(
    digits: tuple[Model, Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3, 4, 5, 6})
    files = {"platform_file": tmp_path / "p", "places": {}}
    enough = launch_workers(with_replicas(digits[1], 2, 2), tmp_path / "v", **files)
    assert [worker.cores for worker in enough] == [(3,), (4,), (5,), (6,)]
    too_few = launch_workers(with_replicas(digits[1], 2, 4), tmp_path / "v", **files)
    assert [worker.cores for worker in too_few] == [(3,), (4,), (5,), (6,), (3,), (4,)]


def test_settings_tell_a_stage_its_replicas_and_its_neighbours(digits: tuple[Model, Plan]) -> None:
    plan = with_replicas(digits[1], 2, 3)
    first, last = (stage_settings(plan, number) for number in range(2))
    assert (first.sources, first.replicas, first.targets) == (1, 2, 3)
    assert (last.sources, last.replicas, last.targets) == (2, 3, 1)


def test_devices_that_cannot_be_started_here_are_refused(
    digits: tuple[Model, Plan], tmp_path: Path
) -> None:
    _, plan = digits
    sgx = replace(plan.stages[0].device, kind="sgx")
    with pytest.raises(InputError, match="nothing says how the SGX worker"):
        launch_workers(with_stage(plan, 0, devices=(sgx,)), tmp_path, platform_file=None, places={})
    with pytest.raises(InputError, match="no platform"):
        launch_workers(plan, tmp_path, platform_file=None, places={})


def test_a_platform_is_read_before_a_worker_has_to(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match="cannot read") as caught:
            check_platform(path)
        assert caught.value.remedy
    (tmp_path / "p").write_text("{}")
    with pytest.raises(InputError, match="not valid"):
        check_platform(tmp_path / "p")
