"""Timelines of servers, from simulations and from logs, and the trace events made of them."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest

from vaultline.core.errors import InputError
from vaultline.sched.events import Action, Answer, Arrived, Event, Evict, Failed, Finished, Request
from vaultline.sched.logs import read_logs
from vaultline.sched.policies import policy
from vaultline.sched.replay import (
    ActionEntry,
    EventEntry,
    LogEntry,
    LogHeader,
    RanEntry,
    decode,
    encode,
)
from vaultline.sched.server import Server
from vaultline.sched.timeline import Timeline
from vaultline.sched.trace import trace_events, trace_json
from vaultline.sim.cluster import Simulation, Timing
from vaultline.sim.fidelity import service_times
from vaultline.testing.serving import poisson, server, small_models

MODELS = small_models()
SERVERS = [server(f"s{k}", list(MODELS), mib=32, cores=1 + k) for k in range(2)]


def watched(name: str = "model-affinity") -> tuple[Timeline, list[LogEntry]]:
    """A simulation's timeline, and the log that its servers would have written."""
    timeline = Timeline()
    log: list[LogEntry] = [
        LogHeader(policy=name, servers=tuple(SERVERS), models=tuple(MODELS.values()))
    ]

    def observe(server: Server, event: Event, actions: Sequence[Action]) -> None:
        timeline.observe(server, event, actions)
        log.append(EventEntry(server=server.facts.name, event=event))
        log.extend(ActionEntry(server=server.facts.name, action=action) for action in actions)

    chosen = policy(name)
    simulation = Simulation(SERVERS, MODELS, chosen.chooser(), chosen.local, Timing(), observe)
    simulation.run(poisson(list(MODELS), rate=50.0, count=300, seed=3))
    timeline.close()
    return timeline, log


TIMELINE, LOG = watched()


def test_a_timeline_has_every_run_and_eviction_and_what_memory_is_held_for() -> None:
    runs = sum(totals.runs for totals in TIMELINE.totals.values())
    assert len(TIMELINE.spans) == runs > 300
    evictions = [each for each in TIMELINE.instants if each.what == "evict"]
    assert len(evictions) == sum(totals.evictions for totals in TIMELINE.totals.values()) > 0
    for sample in TIMELINE.samples:
        facts = TIMELINE.servers[sample.server]
        assert 0 < sum(sample.held.values()) <= facts.memory_bytes
        assert 0 <= sample.running <= facts.cores
    assert any(sample.queued for sample in TIMELINE.samples)


def test_spans_take_as_long_as_the_facts_say() -> None:
    for span, run in TIMELINE.runs:
        facts = MODELS[run.model].groups[run.group]
        expected_s = facts.seconds(len(run.requests), resident=not run.streamed)
        assert span.ended_s - span.started_s == pytest.approx(expected_s)


def test_a_run_that_fails_and_one_that_never_ends_are_marked() -> None:
    timeline, one = Timeline(), Server(SERVERS[1], MODELS, policy("least-loaded").local())

    def tell(event: Event) -> None:
        timeline.observe(one, event, one.handle(event))

    for number in range(2):
        request = Request(number=number, model="quick", arrived_s=0.0)
        tell(Arrived(now_s=0.5, request=request))
    tell(Failed(now_s=1.0, core=0, reason="out of luck"))
    timeline.close()
    assert [(span.failure, span.ended_s) for span in timeline.spans] == [
        ("out of luck", 1.0),
        ("never ended", 1.0),
    ]
    assert [each.detail for each in timeline.instants if each.what == "refuse"] == ["out of luck"]


# What https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU asks of each
# phase, beside name, ph, pid, tid and ts: fields, and a check of them.
PHASES: Mapping[str, Mapping[str, type | tuple[type, ...]]] = {
    "X": {"dur": (int, float), "cat": str, "args": dict},
    "C": {"args": dict},
    "i": {"s": str, "cat": str},
    "M": {"args": dict},
    "s": {"id": int, "cat": str},
    "t": {"id": int, "cat": str},
    "f": {"id": int, "cat": str, "bp": str},
}
METADATA = {"process_name": "name", "process_sort_index": "sort_index", "thread_name": "name"}


def check_trace(document: Mapping[str, Any]) -> None:
    """Raise AssertionError unless a document keeps to the trace event format."""
    assert document["displayTimeUnit"] in ("ms", "ns")
    for event in document["traceEvents"]:
        fields = PHASES[event["ph"]]
        wanted = {"name": str, "pid": int, "tid": int, "ts": (int, float), **fields}
        for field, kind in wanted.items():
            assert isinstance(event[field], kind), (field, event)  # type: ignore[arg-type]
        assert set(event) - set(wanted) <= {"ph", "args"}, event
        assert event["ts"] >= 0
        assert event.get("dur", 0) >= 0
        if event["ph"] == "M":
            assert METADATA[event["name"]] in event["args"]
        if event["ph"] == "C":
            assert event["args"]
            assert all(isinstance(value, int | float) for value in event["args"].values())
        if event["ph"] == "i":
            assert event["s"] in "gpt"
    _check_threads(document["traceEvents"])
    _check_flows(document["traceEvents"])


def _check_threads(events: Sequence[Mapping[str, Any]]) -> None:
    """Complete events of a thread lie one after another, on a thread that has a name."""
    named = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    threads: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            threads[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    assert set(threads) <= named
    for spans in threads.values():
        for (_, end), (start, _) in pairwise(sorted(spans)):
            assert start >= end - 1e-3  # in microseconds, rounded


def _check_flows(events: Sequence[Mapping[str, Any]]) -> None:
    """A flow starts once, ends once, steps between, and is inside of a complete event."""
    flows: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    spans: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for event in events:
        if event["ph"] in "stf":
            flows[event["id"]].append(event)
        elif event["ph"] == "X":
            spans[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for steps in flows.values():
        assert "".join(step["ph"] for step in steps) == "s" + "t" * (len(steps) - 2) + "f"
        assert len({step["name"] for step in steps}) == 1
        assert all(a["ts"] < b["ts"] for a, b in pairwise(steps))
        for step in steps:
            there = spans[step["pid"], step["tid"]]
            assert any(start <= step["ts"] <= end for start, end in there)


def test_a_trace_keeps_to_the_format() -> None:
    document = json.loads(trace_json({"": TIMELINE}))
    check_trace(document)
    counts = Counter(event["ph"] for event in document["traceEvents"])
    assert counts["X"] == len(TIMELINE.spans)
    assert set(counts) == {"X", "C", "i", "M", "s", "f"}
    processes = {e["args"]["name"] for e in document["traceEvents"] if e["name"] == "process_name"}
    assert processes == {"s0", "s1"}


BROKEN = {
    "a run without its length": lambda e: e.pop("dur"),
    "a run that overlaps the next": lambda e: e.update(dur=1e9),
    "a run on a core without a name": lambda e: e.update(tid=77),
    "an unknown field": lambda e: e.update(color="red"),
    "a time before the start": lambda e: e.update(ts=-1.0),
}


@pytest.mark.parametrize("case", BROKEN)
def test_the_check_of_traces_finds(case: str) -> None:
    document = json.loads(trace_json({"": TIMELINE}))
    BROKEN[case](next(each for each in document["traceEvents"] if each["ph"] == "X"))
    with pytest.raises((AssertionError, KeyError)):
        check_trace(document)


def test_policies_share_a_trace_and_not_their_processes() -> None:
    document = json.loads(trace_json({"one": TIMELINE, "two": watched("vaultline")[0]}))
    check_trace(document)
    names = [e["args"]["name"] for e in document["traceEvents"] if e["name"] == "process_name"]
    assert names == ["one: s0", "one: s1", "two: s0", "two: s1"]


def test_a_request_is_followed_through_its_groups() -> None:
    steps = [each for each in trace_events({"": TIMELINE}) if each["ph"] in "sf"]
    mid = [run for _, run in TIMELINE.runs if run.model == "mid" and run.group == 0]
    name = f"request {mid[0].requests[0]}"
    assert [each["ph"] for each in steps if each["name"] == name] == ["s", "f"]


def test_counters_add_up_to_what_servers_hold() -> None:
    held = [each for each in trace_events({"": TIMELINE}) if each["name"] == "memory, bytes"]
    assert {sum(each["args"].values()) for each in held} == {
        sum(sample.held.values()) for sample in TIMELINE.samples
    }


def test_a_log_gives_the_timeline_of_the_servers_that_wrote_it() -> None:
    lines = b"".join(encode(entry) for entry in LOG).splitlines(keepends=True)
    again = read_logs([("a.jsonl", decode(lines))])
    assert again.spans == TIMELINE.spans
    assert again.instants == TIMELINE.instants
    assert again.samples[-1] == TIMELINE.samples[-1]


def test_what_workers_measured_is_in_the_trace() -> None:
    last = max(k for k, e in enumerate(LOG) if isinstance(getattr(e, "event", None), Finished))
    end = LOG[last]
    assert isinstance(end, EventEntry)
    assert isinstance(end.event, Finished)
    ran = RanEntry(
        server=end.server, core=end.event.core, model="quick", group=0, requests=(1,),
        started_s=5.0, ended_s=5.25, load_s=0.125,
    )  # fmt: skip
    again = read_logs([("a", [*LOG[:last], ran, *LOG[last:]])])
    measured = [each for each in again.spans if each.measured_s is not None]
    assert [(each.ended_s, each.measured_s) for each in measured] == [(end.event.now_s, 0.25)]
    found = [e["args"] for e in trace_events({"": again}) if "measured ms" in e.get("args", {})]
    assert [(each["measured ms"], each["decrypting ms"]) for each in found] == [(250.0, 125.0)]
    times = service_times(again, MODELS)
    assert sum(each.command_s is not None for each in times.values()) == 1


def test_each_server_may_have_a_log_of_its_own() -> None:
    logs = [
        (name, [LOG[0], *(e for e in LOG[1:] if getattr(e, "server", "") == name)])
        for name in ("s0", "s1")
    ]
    again = read_logs(logs)
    assert sorted(again.spans, key=str) == sorted(TIMELINE.spans, key=str)
    with pytest.raises(InputError, match="another log"):
        read_logs([*logs, logs[0]])


def test_a_log_that_ends_early_leaves_runs_that_never_ended() -> None:
    cut = next(k for k, e in enumerate(LOG) if k > 99 and isinstance(e, ActionEntry)) + 1
    again = read_logs([("cut", LOG[:cut])])
    assert {span.failure for span in again.spans} >= {"", "never ended"}


def _first(kind: type[Action] | type[Event]) -> int:
    return next(
        k
        for k, entry in enumerate(LOG)
        if isinstance(getattr(entry, "action", getattr(entry, "event", None)), kind)
    )


WRONG_LOGS: dict[str, tuple[list[LogEntry], str]] = {
    "nothing": ([], "an empty event log"),
    "no header": (LOG[1:], "log:1: an event before the log's header"),
    "an action too few": (
        [entry for k, entry in enumerate(LOG) if k != _first(Evict)],
        "would not be",
    ),
    "an action too many": ([*LOG[: _first(Answer) + 1], LOG[_first(Answer)]], "would not be"),
    "two headers": ([LOG[0], *LOG], "log:2: a second header"),
    "time that goes back": ([*LOG[:9], LOG[1]], "log:10:"),
    "an end of what never began": (
        [LOG[0], EventEntry(server="s0", event=Finished(now_s=0.0, core=0))],
        "log:2: core 0 of server s0 is not running",
    ),
    "a policy that there is not": (
        [LogHeader(policy="luck", servers=(), models=())],
        "no policy is called 'luck'",
    ),
    "models that are not described": (
        [LogHeader(policy="vaultline", servers=tuple(SERVERS), models=())],
        "models that the log does not describe",
    ),
}


@pytest.mark.parametrize("case", WRONG_LOGS)
def test_a_wrong_log_is_refused(case: str) -> None:
    log, message = WRONG_LOGS[case]
    with pytest.raises(InputError, match=message):
        read_logs([("log", log)])
