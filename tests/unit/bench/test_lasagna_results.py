"""Figures of `bench lasagna`: what is divided by what, and which policies keep up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from lasagna_cases import offered, result, saturated, use

from vaultline.bench.lasagna_results import LasagnaResult, figures
from vaultline.cli.lasagna_pictures import draw_lasagna


def test_throughput_is_the_median_of_the_rounds_over_the_quicker_paged_one() -> None:
    made = figures(result())
    assert made["throughput.vaultline"] == pytest.approx(32)
    assert made["throughput_vs_fifo"] == pytest.approx(32 / 6)
    assert made["throughput_vs_fifo.sgx1"] == pytest.approx(32 / 2.5)
    assert made["throughput_vs_best_baseline"] == pytest.approx(32 / 21)


def test_the_gain_is_divided_into_the_executors_and_the_schedulers() -> None:
    made = figures(result())
    assert made["executor_gain"] == pytest.approx(18 / 6)
    assert made["policy_gain"] == pytest.approx(32 / 18)
    product = made["executor_gain"] * made["policy_gain"]
    assert product == pytest.approx(made["throughput_vs_fifo"])
    assert made["throughput_vs_best_batched_baseline"] == pytest.approx(32 / 24)


def test_latency_is_compared_with_the_best_baseline_of_each_percentile() -> None:
    made = figures(result())
    assert made["p95_vs_best_baseline"] < 0.6
    assert made["p95_ms.at_baseline.lasagna"] > made["mean_ms.at_baseline.lasagna"]
    assert made["mean_vs_best_baseline.at_baseline"] == pytest.approx(0.12 / 0.25, rel=0.02)


def test_policies_that_cannot_keep_up_are_marked() -> None:
    made = figures(result())
    assert made["keeps_up.at_vaultline.vaultline"] == 1
    assert made["keeps_up.at_vaultline.fifo.sgx1"] == 0
    assert made["keeps_up.at_baseline.round-robin"] == 1


def test_an_unbalanced_tail_counts_in_throughput_and_not_without_it() -> None:
    run = saturated("round-robin", 10.0)
    assert run.throughput == pytest.approx(10.0)
    assert run.tail_free == pytest.approx(10.0 / 0.9)
    assert use(10.0).overhead == pytest.approx(0.02)


def test_who_else_had_the_cores_is_told() -> None:
    run = use(10.0)
    assert run.disturbed == pytest.approx(0.0)
    assert replace(run, workers_cpu_s=8.8).disturbed == pytest.approx(0.5)


def test_without_baselines_there_is_no_figure_that_needs_them() -> None:
    found = LasagnaResult(saturated=[saturated("vaultline", 10.0)])
    found.offered = [offered("vaultline", "vaultline", 7.0, 0.1)]
    made = figures(found)
    assert {"throughput.vaultline", "tail_free.vaultline"} <= set(made)
    assert not [name for name in made if "_vs_" in name]


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    draw_lasagna(result(), tmp_path / "lasagna.png")
    assert (tmp_path / "lasagna.png").stat().st_size > 10_000
