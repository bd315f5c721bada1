"""Arrivals are reproducible, as many and as popular as the workload says, and in order."""

from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise
from math import sqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultline.core.errors import InputError
from vaultline.sim.workload import (
    Arrivals,
    Bursty,
    Phase,
    Poisson,
    Recorded,
    RecordedRequest,
    Workload,
    WorkloadModel,
    arrivals,
    recording,
    zipf_weights,
)

POISSON = Poisson(rate=50.0)
BURSTY = Bursty(burst=Phase(rate=200.0, mean_s=0.5), calm=Phase(rate=10.0, mean_s=2.0))


def workload(
    source: Arrivals = POISSON, *, names: str = "abcdef", zipf: float = 1.0, **more: object
) -> Workload:
    weights = zipf_weights(len(names), zipf)
    models = tuple(
        WorkloadModel(name=name, weight=weight) for name, weight in zip(names, weights, strict=True)
    )
    settings = {"duration_s": 100.0, **more}
    return Workload(models=models, arrivals=source, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("source", [POISSON, BURSTY], ids=["poisson", "bursty"])
def test_the_same_seed_gives_the_same_requests_and_another_gives_others(source: Arrivals) -> None:
    first, again = list(arrivals(workload(source))), list(arrivals(workload(source)))
    assert first == again
    assert [request.number for request in first] == list(range(len(first)))
    other = list(arrivals(workload(source, seed=1)))
    assert first[0].arrived_s != other[0].arrived_s


def test_these_very_requests_come_for_a_seed() -> None:
    """On every machine and with every version: recorded results stay comparable."""
    found = [(r.model, round(r.arrived_s, 9)) for r in islice(arrivals(workload(seed=5)), 4)]
    assert found == [("d", 0.012641478), ("b", 0.060405207), ("b", 0.092119995), ("e", 0.171947214)]


def test_other_models_come_at_the_same_times() -> None:
    flat, steep = (list(arrivals(workload(zipf=zipf))) for zipf in (0.0, 2.0))
    assert [r.arrived_s for r in flat] == [r.arrived_s for r in steep]
    assert [r.model for r in flat] != [r.model for r in steep]


@settings(derandomize=True, deadline=None, max_examples=25)
@given(seed=st.integers(0, 1 << 30), rate=st.floats(1.0, 300.0))
def test_poisson_arrivals_are_as_many_as_the_rate_says_and_as_irregular(
    seed: int, rate: float
) -> None:
    times = [
        r.arrived_s
        for r in arrivals(workload(Poisson(rate=rate), seed=seed, count=2000, duration_s=None))
    ]
    gaps = [b - a for a, b in pairwise([0.0, *times])]
    mean_s = sum(gaps) / len(gaps)
    # The mean of n exponential gaps has a standard deviation of mean / sqrt(n); five of them.
    assert abs(mean_s * rate - 1) < 5 / sqrt(len(gaps))
    variation = sqrt(sum((gap - mean_s) ** 2 for gap in gaps) / len(gaps)) / mean_s
    assert 0.85 < variation < 1.15
    assert all(a <= b for a, b in pairwise(times))


def test_bursty_arrivals_have_the_mean_rate_and_are_burstier_than_poisson() -> None:
    source = workload(BURSTY, duration_s=4000.0)
    assert source.rate == pytest.approx((200 * 0.5 + 10 * 2) / 2.5)
    times = [request.arrived_s for request in arrivals(source)]
    assert len(times) / 4000 == pytest.approx(source.rate, rel=0.08)
    counts = Counter(int(time_s) for time_s in times)
    mean = len(times) / 4000
    spread = sum((counts[second] - mean) ** 2 for second in range(4000)) / 4000
    assert spread / mean > 10  # of counts a second; 1 for Poisson arrivals


def test_a_phase_may_be_silent() -> None:
    source = Bursty(burst=Phase(rate=100.0, mean_s=1.0), calm=Phase(rate=0.0, mean_s=1.0))
    times = [request.arrived_s for request in arrivals(workload(source, duration_s=400.0))]
    assert len(times) / 400 == pytest.approx(50, rel=0.15)
    assert max(b - a for a, b in pairwise(times)) > 2


@pytest.mark.parametrize("exponent", [0.0, 0.8, 1.5])
def test_models_are_as_popular_as_zipf_says(exponent: float) -> None:
    found = list(arrivals(workload(zipf=exponent, count=20_000, duration_s=None)))
    counts = Counter(request.model for request in found)
    weights = zipf_weights(6, exponent)
    for name, weight in zip("abcdef", weights, strict=True):
        share = weight / sum(weights)
        sigma = sqrt(share * (1 - share) / len(found))
        assert abs(counts[name] / len(found) - share) < 5 * sigma


def test_a_model_without_weight_never_comes() -> None:
    models = (WorkloadModel(name="a"), WorkloadModel(name="b", weight=0.0))
    found = arrivals(Workload(models=models, arrivals=POISSON, count=500))
    assert {request.model for request in found} == {"a"}


def test_popularity_rotates() -> None:
    found = list(arrivals(workload(zipf=3.0, rotate_s=10.0, duration_s=60.0)))
    for turn in range(6):
        counts = Counter(r.model for r in found if turn * 10 <= r.arrived_s < turn * 10 + 10)
        assert counts.most_common(1)[0][0] == "abcdef"[turn]


def test_deadlines_and_priorities_are_the_models() -> None:
    model = WorkloadModel(name="a", deadline_s=0.25, priority=3)
    for request in arrivals(Workload(models=(model,), arrivals=POISSON, count=9)):
        assert request.deadline_s == request.arrived_s + 0.25
        assert request.priority == 3


@pytest.mark.parametrize("source", [POISSON, BURSTY], ids=["poisson", "bursty"])
def test_a_workload_ends_at_its_count_or_its_duration_whichever_is_first(source: Arrivals) -> None:
    assert len(list(arrivals(workload(source, count=7)))) == 7
    long = list(arrivals(workload(source, count=1_000_000, duration_s=3.0)))
    assert 0 < len(long) < 1000
    assert long[-1].arrived_s < 3.0


@pytest.mark.parametrize("source", [POISSON, BURSTY], ids=["poisson", "bursty"])
def test_a_recording_gives_the_same_requests_again(source: Arrivals) -> None:
    first = list(arrivals(workload(source, duration_s=10.0)))
    names = tuple(WorkloadModel(name=name) for name in "abcdef")
    again = Workload(models=names, arrivals=recording(first))
    assert list(arrivals(again)) == first
    assert again.rate == pytest.approx(len(first) / first[-1].arrived_s)


def test_a_recording_takes_deadlines_from_the_models_where_it_has_none() -> None:
    requests = (
        RecordedRequest(time_s=1.0, model="a"),
        RecordedRequest(time_s=1.0, model="a", deadline_s=1.5, priority=0),
    )
    model = WorkloadModel(name="a", deadline_s=2.0, priority=4)
    found = list(arrivals(Workload(models=(model,), arrivals=Recorded(requests=requests))))
    assert [(each.deadline_s, each.priority) for each in found] == [(3.0, 4), (1.5, 0)]


@pytest.mark.parametrize("kind", ["poisson", "bursty", "recorded"])
def test_a_faster_workload_has_the_same_models_sooner_and_deadlines_as_long(kind: str) -> None:
    slow = workload(BURSTY if kind == "bursty" else POISSON, duration_s=20.0)
    if kind == "recorded":
        deadline = (RecordedRequest(time_s=4.0, model="a", deadline_s=5.0),)
        slow = workload(Recorded(requests=deadline))
    fast = slow.faster(4.0)
    assert fast.rate == pytest.approx(4 * slow.rate)
    before, after = list(arrivals(slow)), list(arrivals(fast))
    assert [request.model for request in before] == [request.model for request in after]
    for early, late in zip(after, before, strict=True):
        assert early.arrived_s == pytest.approx(late.arrived_s / 4)
        if late.deadline_s is not None and early.deadline_s is not None:
            assert early.deadline_s - early.arrived_s == pytest.approx(1.0)


A = WorkloadModel(name="a")
IMPOSSIBLE = {
    "no end": lambda: Workload(models=(A,), arrivals=POISSON),
    "no model": lambda: Workload(models=(), arrivals=POISSON, count=1),
    "no weight": lambda: workload(names="a", zipf=0.0, count=None, duration_s=None),
    "a model twice": lambda: Workload(models=(A, A), arrivals=POISSON, count=1),
    "a rate of nothing": lambda: Poisson(rate=0.0),
    "a rate that is no number": lambda: Poisson(rate=float("nan")),
    "a phase that takes no time": lambda: Phase(rate=1.0, mean_s=0.0),
    "a calm that is busier": lambda: Bursty(burst=BURSTY.calm, calm=BURSTY.burst),
    "a deadline at once": lambda: WorkloadModel(name="a", deadline_s=0.0),
    "a negative weight": lambda: WorkloadModel(name="a", weight=-1.0),
    "a request before the start": lambda: RecordedRequest(time_s=-1.0, model="a"),
    "a deadline before its request": lambda: RecordedRequest(time_s=1, model="a", deadline_s=0.5),
    "more requests than anybody means": lambda: workload(Poisson(rate=1e6)),
    "no speed": lambda: workload().faster(0.0),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_an_impossible_workload_is_refused(case: str) -> None:
    with pytest.raises(InputError):
        IMPOSSIBLE[case]()


def test_a_recording_out_of_order_or_of_unknown_models_is_refused() -> None:
    late, early = (RecordedRequest(time_s=time_s, model="a") for time_s in (2.0, 1.0))
    for requests, models in (((late, early), (A,)), ((early,), (WorkloadModel(name="b"),))):
        with pytest.raises(InputError, match="of a recording"):
            Workload(models=models, arrivals=Recorded(requests=requests))
