"""Bounded execution's benchmark: what follows from what was measured."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultline.bench.bounded import SGX1_BYTES, SMALL_BYTES, BoundedResult, figures
from vaultline.bench.bounded_choice import ChoiceAt, Way, same_order
from vaultline.bench.bounded_memory import (
    ProcessMemory,
    mapped_bytes,
    page_cache_bytes,
    parse_status,
)
from vaultline.bench.bounded_paged import PagedRun
from vaultline.bench.bounded_pipeline import PipelineRun
from vaultline.bench.bounded_process import MemoryUse, memory_use
from vaultline.bench.bounded_ratio import (
    BoundedRun,
    LeastBudget,
    Turn,
    least_feasible,
    max_relative_error,
    sweep_budgets,
)
from vaultline.bench.bounded_switching import (
    Option,
    Share,
    SwitchingResult,
    SwitchingTurn,
    divide,
    option_of,
)
from vaultline.bench.bounded_worker import Loaded, Pages, Weighed
from vaultline.cli.bench_bounded import document, show
from vaultline.cli.bounded_pictures import draw_bounded
from vaultline.core.errors import InfeasibleError, MachineError
from vaultline.core.limits import MIB
from vaultline.core.memory import MemoryPlan, StepMemory, StreamRates
from vaultline.core.serde import canonical_json
from vaultline.planner import make_plan
from vaultline.testing.planning import cluster, device, profile

STATUS = """Name:\tpython
VmHWM:\t    3000 kB
VmRSS:\t    2500 kB
RssAnon:\t    1000 kB
RssFile:\t    1400 kB
RssShmem:\t     100 kB
"""
SMAPS = """7f00-7f80 r--p 00000000 08:01 12 /vaults/a b.vault
Size:                512 kB
Rss:                 300 kB
Pss:                 300 kB
7f80-7f90 r--p 00000000 08:01 12 /vaults/a b.vault
Rss:                   4 kB
7f90-7fa0 rw-p 00000000 00:00 0
Rss:                  64 kB
7fa0-7fb0 r--p 00000000 08:01 13 /lib/libc.so
Rss:                  32 kB
"""
PLAN = MemoryPlan(
    resident_bytes=10 * MIB,
    workspace_bytes=4 * MIB,
    engine_bytes=MIB,
    io_bytes=MIB,
    prefetch=False,
    steps=(
        StepMemory(first=0, last=1, frames=1, streamed_bytes=3 * MIB, activation_bytes=MIB),
        StepMemory(first=1, last=2, frames=4, streamed_bytes=2 * MIB, activation_bytes=MIB),
    ),
)


def use(peak_bytes: int, budget_bytes: int = SGX1_BYTES) -> MemoryUse:
    return MemoryUse(
        budget_bytes=budget_bytes,
        peak_bytes=peak_bytes,
        code_bytes=0,
        held_bytes=peak_bytes,
        vault_mapped_bytes=0,
        page_cache_bytes=0,
        idle_bytes=0,
        imported_bytes=0,
    )


def run(
    *turns: tuple[float, float, float],
    model: str = "m",
    budget_bytes: int = SGX1_BYTES,
    asked: int = 1,
    frames: int | None = None,
    peak_bytes: int = MIB,
    error: float = 0.0,
) -> BoundedRun:
    return BoundedRun(
        model=model,
        budget_bytes=budget_bytes,
        asked_frames=asked,
        frames=frames or asked,
        plan=PLAN,
        turns=tuple(Turn(native_s=n, rewritten_s=r, bounded_s=b) for n, r, b in turns),
        decrypted_bytes=5 * MIB,
        decrypt_s=0.5,
        memory=use(peak_bytes, budget_bytes),
        max_relative_error=error,
    )


def paged(mode: str, *seconds: float, swapped: int = 100) -> PagedRun:
    pages = Pages(
        fresh=0, swapped=swapped, evictions=0, cipher_s=1e-4, bookkeeping_s=2e-4, spin_s=8e-4
    )
    return PagedRun(
        model="m",
        page_mode="sgx1" if mode == "sgx1" else "crypto",
        budget_bytes=SGX1_BYTES,
        seconds=seconds,
        bookkeeping_s=(0.0,) * len(seconds),
        pages=pages,
        memory=use(0),
        max_relative_error=0.0,
    )


def pipeline(enclaves: int, latency_s: float, period_s: float) -> PipelineRun:
    return PipelineRun(
        model="m",
        asked_enclaves=enclaves,
        budget_bytes=SGX1_BYTES,
        plan=make_plan(profile([1.0] * 4, weight_bytes=MIB), cluster(device("a"))),
        frames=32,
        latencies_s=(latency_s,),
        periods_s=(period_s, period_s, 100.0),
    )


def result(**parts: object) -> BoundedResult:
    return BoundedResult(rates=StreamRates(), **parts)  # type: ignore[arg-type]


def test_ratios_are_medians_of_rounds_and_not_ratios_of_medians() -> None:
    found = run((1.0, 0.5, 2.0), (2.0, 0.5, 3.0), (4.0, 0.5, 4.0))
    assert found.ratio == 1.5
    assert found.ratio_rewritten == 6.0
    assert found.pass_s == 3.0


def test_the_limit_is_the_rewritten_model_and_its_decryption() -> None:
    assert run((2.0, 1.5, 9.0)).limit == 1.0  # (1.5 + 0.5) / 2


def test_the_kernels_account_of_a_process_is_read() -> None:
    memory = parse_status(STATUS)
    assert memory == ProcessMemory(
        peak_bytes=3000 << 10,
        resident_bytes=2500 << 10,
        anonymous_bytes=1000 << 10,
        shared_bytes=100 << 10,
        file_bytes=1400 << 10,
    )
    with pytest.raises(MachineError):
        parse_status(STATUS.replace("RssAnon", "Other"))


def test_only_the_files_that_are_named_are_counted() -> None:
    assert mapped_bytes(SMAPS, {"/vaults/a b.vault"}) == 304 << 10
    assert mapped_bytes(SMAPS.replace(".vault", ".vault (deleted)"), {"/vaults/a b.vault"}) > 0
    assert mapped_bytes(SMAPS, ()) == 0


def test_a_file_that_was_just_written_is_cached(tmp_path: Path) -> None:
    (tmp_path / "full").write_bytes(bytes(100_000))
    (tmp_path / "empty").write_bytes(b"")
    assert page_cache_bytes(tmp_path / "full") >= 100_000
    assert page_cache_bytes(tmp_path / "empty") == 0


def weighed(peak: int, vault: int, file: int = 0) -> Weighed:
    memory = ProcessMemory(
        peak_bytes=peak, resident_bytes=peak, anonymous_bytes=0, shared_bytes=0, file_bytes=file
    )
    return Weighed(memory=memory, held={"io": 3, "idle": 4}, vault_mapped_bytes=vault, sessions=1)


def test_the_vaults_pages_are_no_protected_memory() -> None:
    idle = weighed(100, 0, file=40).memory
    loaded = Loaded(held={}, before=idle, cold=weighed(90, 0).memory)
    found = memory_use(50, loaded, [weighed(180, 25), weighed(190, 30, file=75)], 64)
    assert found.peak_bytes == 60  # 190 - 30 - 100
    assert found.over_budget == pytest.approx(0.2)
    assert (found.code_bytes, found.held_bytes, found.vault_mapped_bytes) == (5, 7, 30)
    assert (found.idle_bytes, found.imported_bytes, found.page_cache_bytes) == (100, 90, 64)


def test_a_peak_before_the_last_reading_counts() -> None:
    loaded = Loaded(held={}, before=weighed(100, 0).memory, cold=weighed(90, 0).memory)
    assert memory_use(50, loaded, [weighed(200, 20), weighed(150, 20)], 0).peak_bytes == 80


def test_the_least_budget_is_found_with_the_reason_for_it() -> None:
    asked = []

    def compiled(budget_bytes: int) -> None:
        asked.append(budget_bytes)
        if budget_bytes < 10 * MIB + 1:
            raise InfeasibleError("too little", expected=str(budget_bytes))

    budget, error = least_feasible(compiled, 100 * MIB)
    assert budget == 10 * MIB + MIB // 4
    assert error.expected == str(10 * MIB)
    assert len(asked) < 12


def test_a_sweep_goes_from_the_least_budget_to_that_of_all_weights() -> None:
    least = LeastBudget(frames=1, budget_bytes=10 * MIB, all_bytes=160 * MIB + 5, why="")
    budgets = sweep_budgets(least, 5)
    assert budgets[0] == 10 * MIB
    assert budgets[-1] >= least.all_bytes
    assert np.diff(np.log(budgets)) == pytest.approx(math.log(2), rel=1e-2)
    same = LeastBudget(frames=1, budget_bytes=MIB, all_bytes=MIB, why="")
    assert sweep_budgets(same, 3)[0] == MIB


def test_errors_are_relative_to_the_largest_output_and_no_number_is_an_error() -> None:
    expected = [{"a": np.array([0.0, 4.0]), "b": np.array([1.0])}]
    assert max_relative_error(["a", "b"], [[np.array([1.0, 4.0]), np.array([1.0])]], expected) == (
        0.25
    )
    broken = max_relative_error(["a", "b"], [[np.array([np.nan, 4.0]), np.array([1.0])]], expected)
    assert math.isnan(broken)
    found = figures(result(runs=[run((1, 1, 1), error=0.5), run((1, 1, 1), error=math.nan)]))
    assert math.isnan(found["max_relative_error"])


OPTIONS = st.lists(
    st.builds(
        lambda workspace, own, seconds: Option(
            budget_bytes=workspace + own,
            workspace_bytes=workspace << 14,
            own_bytes=own << 14,
            seconds=float(seconds),
        ),
        workspace=st.integers(0, 6),
        own=st.integers(0, 8),
        seconds=st.integers(0, 50),
    ),
    min_size=1,
    max_size=4,
)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.lists(OPTIONS, min_size=1, max_size=3), st.integers(0, 25))
def test_the_budget_is_divided_as_well_as_by_trying_all_ways(
    options: list[list[Option]], budget: int
) -> None:
    fitting = [
        sum(each.seconds for each in chosen)
        for chosen in product(*options)
        if max(each.workspace_bytes for each in chosen) + sum(each.own_bytes for each in chosen)
        <= budget << 14
    ]
    if not fitting:
        with pytest.raises(InfeasibleError):
            divide(options, budget << 14)
        return
    chosen = divide(options, budget << 14)
    assert all(each in some for each, some in zip(chosen, options, strict=True))
    held = max(each.workspace_bytes for each in chosen) + sum(each.own_bytes for each in chosen)
    assert held <= budget << 14
    assert sum(each.seconds for each in chosen) == min(fitting)


def test_streaming_costs_bytes_and_calls() -> None:
    rates = StreamRates(decrypt_bytes_per_s=5 * MIB, step_s=0.1)
    option = option_of(PLAN, 20 * MIB, 4, rates)
    assert option.seconds == pytest.approx(1.0 + 0.1 * (4 + 1))  # a stacked step is one call
    assert (option.workspace_bytes, option.own_bytes) == (4 * MIB, 12 * MIB)


def test_models_in_turn_are_compared_by_the_sum_of_their_times() -> None:
    assert switching().ratio == pytest.approx((3.0 + 1.5) / 4.0)


def switching() -> SwitchingResult:
    return SwitchingResult(
        budget_bytes=SGX1_BYTES,
        frames=4,
        workspace_bytes=MIB,
        shares=(Share(model="m", plan=PLAN), Share(model="n", plan=PLAN)),
        turns=(SwitchingTurn(native_s=(3.0, 1.0), bounded_s=(3.0, 1.5)),),
        sessions_made=0,
        memory=use(100 * MIB),
        max_relative_error=1e-6,
    )


def test_a_chunk_is_the_first_frames_way_and_the_others_periods() -> None:
    assert pipeline(2, 5.0, 0.5).chunk_s(1000) == 5.0 + 999 * 0.5


def test_a_paged_enclaves_chunk_is_its_frames_alone() -> None:
    found = result(
        paged=[paged("sgx1", 2.0, 3.0, 4.0), paged("crypto", 1.0)],
        pipelines=[pipeline(1, 1.0, 1.0), pipeline(2, 0.5, 0.5)],
        runs=[run((1, 1, 1.5)), run((4, 4, 4.0), asked=4, frames=2)],
    )
    assert found.pipeline_speedup("m", "sgx1") == pytest.approx(3000 / 500)
    assert found.pipeline_speedup("m", "crypto") == pytest.approx(2.0)
    assert found.speedup("m", "sgx1", 1) == 2.0
    assert found.speedup("m", "sgx1", 4) == 1.5  # two frames fitted: 2 s each
    assert found.partition_gain("m") == pytest.approx(2.0)
    assert found.partition_gain("other") is None
    made = figures(found)
    assert made["pipeline_speedup_sgx1.m"] == pytest.approx(6.0)
    assert "pipeline_speedup_sgx1.other" not in made


def test_a_page_costs_the_cipher_or_all_of_its_time() -> None:
    assert paged("crypto", 1.0).page_s == pytest.approx(1e-6)
    assert paged("sgx1", 1.0).page_s == pytest.approx(11e-6)
    assert paged("sgx1", 1.0, swapped=0).page_s is None


ORDERS = {
    "the same order": (Way(enclaves=1, predicted_s=1.0, measured_s=3.0), True),
    "the other order": (Way(enclaves=1, predicted_s=1.0, measured_s=5.0), False),
    "about equal when measured": (Way(enclaves=1, predicted_s=1.0, measured_s=4.1), True),
    "about equal when predicted": (Way(enclaves=1, predicted_s=1.99, measured_s=9.0), True),
    "one can't be run": (Way(enclaves=1, predicted_s=1.0), True),
    "one is infeasible": (Way(enclaves=1, why="too little"), True),
}


@pytest.mark.parametrize("sentence", ORDERS)
def test_orders_agree_unless_measuring_contradicts(sentence: str) -> None:
    one, agrees = ORDERS[sentence]
    two = Way(enclaves=2, predicted_s=2.0, measured_s=4.0)
    assert same_order(one, two) is agrees
    assert same_order(two, one) is agrees
    found = ChoiceAt(model="m", budget_bytes=MIB, chosen=1, ways=(one, two))
    assert found.agrees is agrees


def test_nothing_that_ran_has_no_fastest_way() -> None:
    nothing = Way(enclaves=1, why="too little")
    assert ChoiceAt(model="m", budget_bytes=MIB, chosen=0, ways=(nothing,)).fastest is None


def everything() -> BoundedResult:
    ways = (
        Way(enclaves=1, predicted_s=1.0, measured_s=1.0),
        Way(enclaves=2, why="too little"),
    )
    small = run((4, 4, 5.0), budget_bytes=SMALL_BYTES, asked=4, frames=2, peak_bytes=70 * MIB)
    return result(
        runs=[run((1, 1, 1.2)), run((4, 4, 4.2), asked=4), small],
        sweep={"m": [run((1, 1, 2.0), budget_bytes=10 * MIB), run((1, 1, 1.0))]},
        least={"m": [LeastBudget(frames=1, budget_bytes=10 * MIB, all_bytes=MIB, why="[Conv]")]},
        switching=switching(),
        paged=[paged("sgx1", 2.0), paged("crypto", 1.0)],
        pipelines=[pipeline(1, 1.0, 1.0), pipeline(2, 1.0, 1.0)],
        choices=[ChoiceAt(model="m", budget_bytes=MIB, chosen=1, ways=ways)],
    )


def test_the_figures_have_their_names() -> None:
    made = figures(everything())
    assert made["ratio_native.m"] == 1.2
    assert made["ratio_native_4_frames.m"] == 1.05
    assert made["ratio_64mib_max"] == 1.25
    assert made["ratio_switching"] == pytest.approx(1.125)
    assert made["sessions_switching"] == 0.0
    assert made["memory_over_budget_max"] == pytest.approx(70 / 64 - 1)
    assert {"pipeline_speedup_sgx1.m", "pipeline_speedup_crypto.m"} <= made.keys()
    assert figures(result()) == {}


def test_everything_is_told_as_json_and_to_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    found = everything()
    told = json.loads(canonical_json(document(found)))
    assert told["runs"][0]["ratio"] == 1.2
    assert told["runs"][0]["limit"] == 1.5
    assert told["paged"][0]["speedup_bounded"] == pytest.approx(2.0 / 1.2)
    assert told["pipelines"][1]["gain_over_one"] == 1.0
    assert told["choices"][0]["agrees"] is True
    assert told["switching"]["memory_over_budget"] == pytest.approx(100 / 93 - 1)
    show(found)
    shown = capsys.readouterr().out
    assert "no help" in shown
    assert "2 of 4" in shown
    assert "[Conv]" in shown


def test_the_picture_is_drawn_with_and_without_points(tmp_path: Path) -> None:
    for number, found in enumerate((everything(), result())):
        path = tmp_path / f"{number}.png"
        draw_bounded(found, path)
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
