"""A timeline as trace events, for Perfetto (https://ui.perfetto.dev) and chrome://tracing.

The format is the JSON object form of Google's "Trace Event Format": a process for each server, a
thread for each core, complete events for runs, counters for memory and queues, instants for what
takes no time, and flows that follow a request from group to group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, count
from typing import Any

from vaultline.core.serde import canonical_json
from vaultline.sched.events import Run
from vaultline.sched.facts import ServerFacts
from vaultline.sched.timeline import CoreSpan, Instant, Sample, Timeline

#: Requests whose way is drawn: with many more, viewers become slow, and arrows hide everything.
FLOWS_MAX = 2_000
_US = 1e6
TraceEvent = dict[str, Any]


def trace_json(timelines: Mapping[str, Timeline]) -> bytes:
    """A trace as a JSON document that Perfetto and chrome://tracing open.

    Args:
        timelines: by what their servers' names are to begin with; all on one axis of time.
    """
    events = list(trace_events(timelines))
    return canonical_json({"displayTimeUnit": "ms", "traceEvents": events})


def trace_events(timelines: Mapping[str, Timeline]) -> Iterator[TraceEvent]:
    """The events, in no particular order; times are microseconds since the first moment known."""
    samples = (sample for timeline in timelines.values() for sample in timeline.samples)
    zero_s = min((sample.now_s for sample in samples), default=0.0)
    numbers, flows = count(1), count(1)
    for label, timeline in timelines.items():
        pids = {name: next(numbers) for name in sorted(timeline.servers)}
        for name, pid in pids.items():
            title = f"{label}: {name}" if label else name
            yield from _names(timeline.servers[name], title, pid)
        events = chain(
            (_span(span, pids[span.server]) for span in timeline.spans),
            _flows(timeline, pids, flows),
            (_instant(instant, pids[instant.server]) for instant in timeline.instants),
            _counters(timeline, pids),
        )
        for event in events:
            yield {**event, "ts": (event["ts"] - zero_s) * _US}


def _names(server: ServerFacts, title: str, pid: int) -> Iterator[TraceEvent]:
    base = {"ph": "M", "pid": pid, "tid": 0, "ts": 0}
    yield {**base, "name": "process_name", "args": {"name": title}}
    yield {**base, "name": "process_sort_index", "args": {"sort_index": pid}}
    for core in range(server.cores):
        yield {**base, "tid": core, "name": "thread_name", "args": {"name": f"core {core}"}}


# In those below ``ts`` is in seconds still.


def _span(span: CoreSpan, pid: int) -> TraceEvent:
    run = span.run
    args: dict[str, Any] = {}
    name = f"install {run.model}"
    if isinstance(run, Run):
        name = f"{run.model}/{run.group}"
        args = {"requests": list(run.requests), "kept": run.keep, "streamed": run.streamed}
    if span.measured_s is not None:
        args |= {"measured ms": span.measured_s * 1e3, "decrypting ms": (span.load_s or 0.0) * 1e3}
    if span.failure:
        args["failure"] = span.failure
    return {
        "ph": "X",
        "pid": pid,
        "tid": run.core,
        "ts": span.started_s,
        "dur": (span.ended_s - span.started_s) * _US,
        "cat": "run" if isinstance(run, Run) else "install",
        "name": name,
        "args": args,
    }


def _instant(instant: Instant, pid: int) -> TraceEvent:
    return {
        "ph": "i",
        "s": "p",
        "pid": pid,
        "tid": 0,
        "ts": instant.now_s,
        "cat": instant.what,
        "name": f"{instant.what} {instant.of}",
        "args": {"detail": instant.detail} if instant.detail else {},
    }


def _flows(timeline: Timeline, pids: Mapping[str, int], ids: Iterator[int]) -> Iterator[TraceEvent]:
    """Of the first requests: from the middle of each run that took one to that of its next."""
    ways: dict[int, list[CoreSpan]] = {}
    for span, run in sorted(timeline.runs, key=lambda each: each[0].started_s):
        for request in run.requests:
            if request in ways or len(ways) < FLOWS_MAX:
                ways.setdefault(request, []).append(span)
    for request, spans in ways.items():
        flow = next(ids)
        for turn, span in enumerate(spans if len(spans) > 1 else ()):
            phase = "s" if turn == 0 else "f" if turn == len(spans) - 1 else "t"
            yield {
                "ph": phase,
                "id": flow,
                "pid": pids[span.server],
                "tid": span.run.core,
                "ts": (span.started_s + span.ended_s) / 2,
                "cat": "request",
                "name": f"request {request}",
                **({"bp": "e"} if phase == "f" else {}),
            }


def _counters(timeline: Timeline, pids: Mapping[str, int]) -> Iterator[TraceEvent]:
    """Memory by kind and queues by model, where they change; all series in each event."""
    kinds = sorted({kind for sample in timeline.samples for kind in sample.held})
    models = sorted({model for sample in timeline.samples for model in sample.queued})
    before: dict[str, Sample] = {}
    for sample in timeline.samples:
        last = before.get(sample.server)
        base = {"ph": "C", "pid": pids[sample.server], "tid": 0, "ts": sample.now_s}
        if last is None or last.held != sample.held:
            args = {kind: sample.held.get(kind, 0) for kind in kinds}
            yield {**base, "name": "memory, bytes", "args": args}
        if models and (last is None or last.queued != sample.queued):
            args = {model: sample.queued.get(model, 0) for model in models}
            yield {**base, "name": "waiting requests", "args": args}
        if last is None or last.running != sample.running:
            yield {**base, "name": "busy cores", "args": {"cores": sample.running}}
        before[sample.server] = sample
