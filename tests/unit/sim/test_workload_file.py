"""Workload files and recordings: what they mean, and where a mistake is."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultline.cli.simulate import schema_text
from vaultline.core.errors import InputError
from vaultline.core.serde import from_json
from vaultline.sched.events import Request
from vaultline.sched.facts import ModelFacts
from vaultline.sim.recordings import parse_recording, record, recording_text
from vaultline.sim.workload import (
    Bursty,
    Phase,
    Poisson,
    Recorded,
    RecordedRequest,
    Workload,
    WorkloadModel,
    arrivals,
    recording,
)
from vaultline.sim.workload_file import parse_workload, read_workload
from vaultline.testing.serving import six_models

ROOT = Path(__file__).parents[3]
GOOD = """\
seed: 4
duration: 2s
zipf: 1
arrivals: {kind: poisson, rate: 40}
models:
  - {name: alexnet, deadline: 200ms, priority: 1}
  - {name: vgg19}
"""
BURSTY = "arrivals: {kind: bursty, burst: {rate: 9, mean: 2s}, calm: {rate: 1, mean: 500ms}}"
RECORDED = "arrivals: {kind: recorded, file: r.csv}"
POISSON = "arrivals: {kind: poisson, rate: 40}"
REQUESTS = (
    RecordedRequest(time_s=0.1, model="vgg19"),
    RecordedRequest(time_s=0.30000000000000004, model="alexnet", deadline_s=0.5, priority=-2),
)


def parsed(text: str, requests: tuple[RecordedRequest, ...] = REQUESTS) -> Workload:
    return parse_workload(text, "w.yaml", lambda _: requests)


def altered(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new, 1)


def test_units_become_seconds_and_zipf_becomes_weights() -> None:
    assert parsed(GOOD) == Workload(
        models=(
            WorkloadModel(name="alexnet", weight=1.0, deadline_s=0.2, priority=1),
            WorkloadModel(name="vgg19", weight=0.5),
        ),
        arrivals=Poisson(rate=40.0),
        seed=4,
        duration_s=2.0,
    )


def test_bursts_have_two_phases() -> None:
    phases = Phase(rate=9.0, mean_s=2.0), Phase(rate=1.0, mean_s=0.5)
    found = parsed(altered(POISSON, BURSTY))
    assert found.arrivals == Bursty(burst=phases[0], calm=phases[1])


def test_a_recording_brings_its_models_and_may_run_faster() -> None:
    found = parsed("arrivals: {kind: recorded, file: r.csv, speed: 2}")
    assert [model.name for model in found.models] == ["vgg19", "alexnet"]
    assert [request.arrived_s for request in arrivals(found)] == [0.05, 0.15000000000000002]
    assert parsed(RECORDED).arrivals == Recorded(requests=REQUESTS)


WRONG = {
    "not YAML": ("a: [", "w.yaml:1: the workload file is not valid YAML"),
    "nothing at all": ("", "w.yaml: the workload file: not valid"),
    "an unknown field": (altered("zipf", "zipff"), "w.yaml:3: the workload file: unknown field"),
    "an unknown kind of arrivals": (altered("poisson", "steady"), "w.yaml:4:"),
    "arrivals of no kind": (
        altered("kind: poisson, ", ""),
        "w.yaml:4: .*arrivals: missing field `kind`",
    ),
    "no arrivals": (altered(POISSON + "\n", ""), "missing field `arrivals`"),
    "a rate of nothing": (altered("rate: 40", "rate: 0"), "w.yaml:4: .*not a rate of arrivals"),
    "a rate in words": (altered("rate: 40", "rate: 40/s"), "w.yaml:4: .*arrivals.rate: not valid"),
    "a rate that is endless": (altered("rate: 40", "rate: .inf"), "w.yaml:4: .*not a rate"),
    "a duration without a unit of time": (altered("2s", "2 days"), "w.yaml:2: not a duration"),
    "a duration of nothing": (altered("2s", "0"), "w.yaml:2: not a duration of a workload"),
    "no end": (altered("duration: 2s\n", ""), "w.yaml:1: nothing ends the workload"),
    "no request": (altered("duration: 2s", "count: 0"), "w.yaml:2: .*at least one request"),
    "an exponent below 0": (altered("zipf: 1", "zipf: -1"), "w.yaml:3: not an exponent"),
    "a model twice": (altered("vgg19", "alexnet"), "w.yaml:7: a model is named twice"),
    "a model without a name": (altered("{name: vgg19}", "{}"), "w.yaml:7: .*missing field `name`"),
    "an empty name": (altered("name: vgg19", "name: ''"), "w.yaml:7: .*has no name"),
    "a negative weight": (
        altered("zipf: 1\n", "").replace("vgg19", "vgg19, weight: -2"),
        r"w.yaml:6: .*models\[1\]: a model's weight is not 0 or more",
    ),
    "weights and an exponent": (altered("vgg19", "vgg19, weight: 2"), "w.yaml:7: .*weight of its"),
    "no weight above 0": (
        "count: 1\narrivals: {kind: poisson, rate: 1}\nmodels: [{name: a, weight: 0}]",
        "w.yaml:1: no model of a workload has a weight",
    ),
    "no model": (GOOD[: GOOD.index("models")], "names no model"),
    "an empty list of models": (GOOD[: GOOD.index("  -")] + "  []", "w.yaml:6: .*names no model"),
    "a deadline of nothing": (altered("200ms", "0ms"), "w.yaml:6: .*deadline is not more than 0"),
    "a priority in words": (altered("priority: 1", "priority: high"), "w.yaml:6: .*priority: not"),
    "a switch instead of a number": (altered("seed: 4", "seed: yes"), "w.yaml:1: .*seed: not"),
    "a calm that is busier than the burst": (
        altered(POISSON, BURSTY.replace("rate: 1,", "rate: 10,")),
        "w.yaml:4: .*bursts are not busier",
    ),
    "a phase that takes no time": (
        altered(POISSON, BURSTY.replace("mean: 2s", "mean: 0s")),
        "w.yaml:4: .*arrivals.burst: a phase does not last",
    ),
    "a file that is too large": ("#" * 2_000_000, "w.yaml: the workload file is too long"),
    "popularity of a recording": (
        altered(POISSON, RECORDED),
        "w.yaml:3: `zipf` says nothing of a recording",
    ),
    "a recording at no speed": (
        RECORDED.replace("r.csv", "r.csv, speed: 0"),
        "w.yaml:1: .*speed is not more than 0",
    ),
    "a recording of a model that is not listed": (
        RECORDED + "\nmodels: [{name: vgg19}]",
        "w.yaml:1: request 1 of a recording is for a model",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_workload_file_is_refused_with_its_line(case: str) -> None:
    text, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        parsed(text)


CSV = "time_s,model,deadline_s,priority\n0.1,vgg19,,\n0.30000000000000004,alexnet,0.5,-2\n"
LINES = """\
{"time_s": 0.1, "model": "vgg19"}

{"time_s": 0.30000000000000004, "model": "alexnet", "deadline_s": 0.5, "priority": -2}
"""


@pytest.mark.parametrize(("name", "text"), [("r.csv", CSV), ("r.jsonl", LINES)])
def test_a_recording_is_csv_or_json_lines(name: str, text: str) -> None:
    assert parse_recording(text, name) == REQUESTS


def test_columns_may_come_in_any_order_and_some_be_left_out() -> None:
    assert parse_recording("model,time_s\r\na,1\r\n", "R.CSV") == (
        RecordedRequest(time_s=1.0, model="a"),
    )


WRONG_RECORDINGS = {
    "empty": ("r.csv", "", "r.csv:1: .*other columns"),
    "no requests": ("r.csv", "time_s,model\n", "r.csv: the recording has no requests"),
    "an unknown column": ("r.csv", "time_s,model,color\n", "r.csv:1: .*other columns"),
    "a column twice": ("r.csv", "time_s,model,model\n", "r.csv:1: .*other columns"),
    "a missing cell": ("r.csv", "time_s,model\n1\n", "r.csv:2: .*another number of columns"),
    "a time in words": ("r.csv", "time_s,model\n1,a\nnoon,a\n", "r.csv:3: not a request"),
    "a time before the start": ("r.csv", "time_s,model\n-1,a\n", "r.csv:2: a time is not 0 s"),
    "no time": ("r.csv", "time_s,model\nnan,a\n", "r.csv:2: a time is not 0 s or more"),
    "an endless time": ("r.csv", "time_s,model\ninf,a\n", "r.csv:2: a time is not 0 s or more"),
    "a priority that is not whole": (
        "r.csv",
        "time_s,model,priority\n1,a,1.5\n",
        "r.csv:2: not a request",
    ),
    "a time that goes back": ("r.csv", "time_s,model\n2,a\n1,a\n", "r.csv:3: .*earlier than"),
    "a quote that is never closed": ("r.csv", 'time_s,model\n1,"a\n', "r.csv:2: not valid CSV"),
    "a line that is not JSON": ("r.jsonl", LINES + "{", "r.jsonl:4: a request is not valid"),
    "an unknown field": ("r.jsonl", '{"time": 1, "model": "a"}', "r.jsonl:1: a request is not"),
    "a deadline before its request": (
        "r.jsonl",
        '{"time_s": 1, "model": "a", "deadline_s": 0.5}',
        "r.jsonl:1: a deadline lies before",
    ),
    "lines without a request": ("r.jsonl", "\n\n", "r.jsonl: the recording has no requests"),
}


@pytest.mark.parametrize("case", WRONG_RECORDINGS)
def test_a_wrong_recording_is_refused_with_its_line(case: str) -> None:
    name, text, message = WRONG_RECORDINGS[case]
    with pytest.raises(InputError, match=message):
        parse_recording(text, name)


NAMES = st.text(min_size=1, max_size=8).filter(
    lambda name: name == name.strip() and name.isprintable()
)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    gaps=st.lists(st.floats(0, 1e6), min_size=1, max_size=20),
    names=st.lists(NAMES, min_size=1, max_size=3),
    late=st.one_of(st.none(), st.floats(0, 100)),
    priority=st.integers(-5, 5),
    name=st.sampled_from(["r.csv", "r.jsonl"]),
)
def test_any_requests_survive_a_recording_to_the_last_bit(
    gaps: list[float], names: list[str], late: float | None, priority: int, name: str
) -> None:
    now_s, requests = 0.0, []
    for number, gap_s in enumerate(gaps):
        now_s += gap_s
        requests.append(
            Request(
                number=number,
                model=names[number % len(names)],
                arrived_s=now_s,
                deadline_s=None if late is None else now_s + late,
                priority=priority,
            )
        )
    text = recording_text(recording(requests).requests, name)
    assert recording(requests).requests == parse_recording(text, name)


def test_a_recorded_workload_is_read_from_beside_its_file(tmp_path: Path) -> None:
    first = list(arrivals(parsed(GOOD)))
    for name in ("r.csv", "r.jsonl"):
        record(first, tmp_path / name)
        path = tmp_path / "w.yaml"
        path.write_text(RECORDED.replace("r.csv", name))
        assert list(arrivals(read_workload(path))) == first


def test_a_mistake_in_a_recording_is_named_with_the_recording(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text(RECORDED)
    with pytest.raises(InputError, match="cannot read the recording"):
        read_workload(tmp_path / "w.yaml")
    (tmp_path / "r.csv").write_text("time_s,model\n1,a\n0,a\n")
    with pytest.raises(InputError, match=r"r\.csv:3: a request is earlier"):
        read_workload(tmp_path / "w.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "workloads").glob("*.yaml")))
def test_the_examples_are_valid(path: Path) -> None:
    assert sum(1 for _ in arrivals(read_workload(path))) > 100


def test_the_published_schema_is_that_of_the_classes() -> None:
    path = ROOT / "docs" / "schemas" / "workload.schema.json"
    assert path.read_text() == schema_text(), (
        "run `vaultline simulate --schema > docs/schemas/workload.schema.json`"
    )


def test_the_examples_facts_are_those_that_schedulers_are_tested_with() -> None:
    data = (ROOT / "examples" / "workloads" / "facts.json").read_bytes()
    found = from_json(data, tuple[ModelFacts, ...], what="the example")
    assert {each.name: each for each in found} == six_models()
