"""Measured against simulated: which ratios become figures, and which requests are compared."""

from __future__ import annotations

import pytest

from vaultline.bench.fidelity import (
    Compared,
    FidelityRequest,
    FidelityResult,
    Performance,
    Round,
    outcomes,
    performance,
)
from vaultline.core.errors import MachineError
from vaultline.sched.events import Request
from vaultline.serve.load import Sent
from vaultline.sim.workload import Poisson


def compared(workload: str, ratio: float, *, counts: bool = True) -> Compared:
    measured = Performance(answered=100, throughput=10.0, mean_s=0.1, p95_s=0.3)
    simulated = Performance(answered=100, throughput=10.0 * ratio, mean_s=0.1 / ratio, p95_s=0.3)
    return Compared(
        workload=workload,
        requests=100,
        rate_per_s=10.0,
        rounds=[Round(measured=measured, simulated=simulated)],
        counts=counts,
    )


def test_the_figure_is_the_ratio_furthest_from_one_on_either_side() -> None:
    made = FidelityResult(compared=[compared("x", 1.05), compared("y y", 0.9)]).figures()
    assert made["fidelity_throughput"] == pytest.approx(0.9)
    assert made["fidelity_mean"] == pytest.approx(1 / 0.9)
    assert made["fidelity_p95"] == pytest.approx(1.0)
    assert made["fidelity_throughput.y-y"] == pytest.approx(0.9)


def test_a_workload_that_does_not_count_is_shown_all_the_same() -> None:
    found = FidelityResult(compared=[compared("x", 1.05), compared("all", 2.0, counts=False)])
    assert found.figures()["fidelity_throughput"] == pytest.approx(1.05)
    assert found.figures()["fidelity_throughput.all"] == pytest.approx(2.0)


def test_outcomes_have_the_gateways_numbers_and_keep_refusals() -> None:
    requests = [Request(number=n, model="m", arrived_s=float(n)) for n in range(2)]
    sent = [
        Sent(request=requests[0], sent_s=0.0, ended_s=0.5),
        Sent(request=requests[1], sent_s=1.0, ended_s=1.1, reason="too late"),
    ]
    found = outcomes(sent, 18)
    assert [each.request.number for each in found] == [18, 19]
    assert [each.reason for each in found] == ["", "too late"]
    assert found[0].latency_s == 0.5


def test_throughput_is_from_the_first_arrival_to_the_last_answer() -> None:
    requests = [Request(number=n, model="m", arrived_s=1.0 + n) for n in range(3)]
    sent = [
        Sent(request=requests[0], sent_s=1.0, ended_s=1.5),
        Sent(request=requests[1], sent_s=2.0, ended_s=2.1, reason="no"),
        Sent(request=requests[2], sent_s=3.0, ended_s=5.0),
    ]
    found = performance(outcomes(sent, 0))
    assert found.throughput == pytest.approx(2 / 4.0)
    assert found.mean_s == pytest.approx((0.5 + 2.0) / 2)
    with pytest.raises(MachineError, match="no request was answered"):
        performance(outcomes(sent[1:2], 0))


def test_a_workloads_ratio_is_the_median_of_its_rounds() -> None:
    rounds = [compared("x", ratio).rounds[0] for ratio in (0.5, 0.9, 1.1)]
    found = Compared(workload="x", requests=9, rate_per_s=1.0, rounds=rounds)
    assert found.ratio("throughput") == pytest.approx(0.9)
    assert found.ratio("mean") == pytest.approx(1 / 0.9)


def test_a_request_without_an_end_is_an_error() -> None:
    request = Request(number=0, model="m", arrived_s=0.0)
    with pytest.raises(MachineError, match="not answered"):
        outcomes([Sent(request=request, sent_s=0.0)], 0)
    with pytest.raises(MachineError, match="not answered"):
        outcomes([Sent(request=request, sent_s=0.0, ended_s=1.0, reason="x", failed=True)], 0)


def test_workloads_are_shares_of_what_saturates() -> None:
    request = FidelityRequest(models=("a", "b"), seed=5)
    sources = request.sources(100.0)
    assert list(sources) == ["poisson 50%", "poisson 80%", "bursty"]
    half = request.workload(sources["poisson 50%"], 400)
    assert 400 / half[-1].arrived_s == pytest.approx(50, rel=0.15)
    bursty = request.workload(sources["bursty"], 2000)
    assert 2000 / bursty[-1].arrived_s == pytest.approx(70, rel=0.25)
    again = request.workload(Poisson(rate=50.0), 400)
    assert [each.model for each in half] == [each.model for each in again], "same seed"
    counts = [sum(each.model == name for each in half) for name in ("a", "b")]
    assert counts[0] / counts[1] == pytest.approx(2, rel=0.25), "Zipf"
