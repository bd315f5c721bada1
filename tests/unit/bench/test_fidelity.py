"""Measured against simulated: the same requests, and the worst ratio is the figure."""

from __future__ import annotations

import pytest

from vaultline.bench.fidelity import (
    FidelityResult,
    Performance,
    Predicted,
    measured_performance,
    simulated_performance,
)
from vaultline.sched.events import Request
from vaultline.serve.load import Sent
from vaultline.sim.cluster import Timing
from vaultline.testing.serving import group, model, poisson, server

MODELS = {
    each.name: each for each in (model("a", group(run_s=0.01)), model("b", group(run_s=0.02)))
}


def predicted(workload: str, ratio: float, *, counts: bool = True) -> Predicted:
    measured = Performance(throughput=10.0, mean_s=0.1, p95_s=0.3)
    simulated = Performance(throughput=10.0 * ratio, mean_s=0.1 / ratio, p95_s=0.3)
    return Predicted(
        workload=workload,
        requests=100,
        rate_per_s=10.0,
        measured=measured,
        simulated=simulated,
        counts=counts,
    )


def test_the_figure_is_the_ratio_furthest_from_one_on_either_side() -> None:
    found = FidelityResult(predicted=[predicted("x", 1.05), predicted("y", 0.9)])
    made = found.figures()
    assert made["fidelity_throughput"] == pytest.approx(0.9)
    assert made["fidelity_mean"] == pytest.approx(1 / 0.9)
    assert made["fidelity_p95"] == pytest.approx(1.0)
    assert made["fidelity_throughput.x"] == pytest.approx(1.05)


def test_a_workload_that_does_not_count_is_shown_all_the_same() -> None:
    found = FidelityResult(predicted=[predicted("x", 1.05), predicted("all", 2.0, counts=False)])
    assert found.figures()["fidelity_throughput"] == pytest.approx(1.05)
    assert found.figures()["fidelity_throughput.all"] == pytest.approx(2.0)


def test_a_simulation_of_itself_is_exact() -> None:
    """What a real run would have to be for the ratios to be 1."""
    requests = poisson(list(MODELS), rate=60, count=80, seed=2)
    servers = [server("s0", list(MODELS)), server("s1", list(MODELS))]
    one = simulated_performance(requests, servers, MODELS, "vaultline", Timing())
    other = simulated_performance(requests, servers, MODELS, "vaultline", Timing())
    assert one == other
    assert 0.01 < one.mean_s < 1.0
    assert one.throughput == pytest.approx(60, rel=0.3)


def test_a_measured_run_counts_answers_from_the_first_arrival_to_the_last_end() -> None:
    def sent(number: int, ended_s: float | None, reason: str = "") -> Sent:
        request = Request(number=number, model="a", arrived_s=1.0 + number)
        return Sent(request=request, sent_s=1.0 + number, ended_s=ended_s, reason=reason)

    found = measured_performance([sent(0, 1.5), sent(1, 2.1, "no"), sent(2, 5.0), sent(3, None)])
    assert found.throughput == pytest.approx(2 / 4.0)
    assert found.mean_s == pytest.approx((0.5 + 2.0) / 2)
