"""A timeline as trace events, for Perfetto (https://ui.perfetto.dev) and chrome://tracing.

The format is the JSON object form of Google's "Trace Event Format": a process for each server, a
thread for each core, complete events for runs, counters for memory and queues, instants for what
takes no time, and flows that follow a request from group to group.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from vaultline.core.serde import canonical_json
from vaultline.sched.facts import ServerFacts
from vaultline.sched.timeline import CoreSpan, Sample, Timeline

#: Requests whose way is drawn: with many more, viewers become slow, and arrows hide everything.
FLOWS_MAX = 2_000
_US = 1e6
TraceEvent = dict[str, Any]


def trace_json(timeline: Timeline, *, about: Mapping[str, Any] | None = None) -> bytes:
    """A trace as a JSON document that Perfetto and chrome://tracing open.

    Args:
        about: what the trace is of; shown as its metadata.
    """
    return canonical_json(
        {
            "displayTimeUnit": "ms",
            "otherData": dict(about or {}),
            "traceEvents": list(trace_events(timeline)),
        }
    )


def trace_events(timeline: Timeline) -> Iterator[TraceEvent]:
    """The events, in no particular order; times are microseconds."""
    numbers = {name: number for number, name in enumerate(sorted(timeline.servers), 1)}
    for name, pid in numbers.items():
        yield from _names(timeline.servers[name], pid)
    for span in timeline.spans:
        yield _run(span, numbers[span.server])
    yield from _flows(timeline, numbers)
    for instant in timeline.instants:
        yield {
            "ph": "i",
            "s": "p",
            "pid": numbers[instant.server],
            "tid": 0,
            "ts": instant.now_s * _US,
            "cat": instant.what,
            "name": f"{instant.what} {instant.of}",
            "args": {"detail": instant.detail} if instant.detail else {},
        }
    yield from _counters(timeline, numbers)


def _names(server: ServerFacts, pid: int) -> Iterator[TraceEvent]:
    base = {"ph": "M", "pid": pid, "tid": 0, "ts": 0}
    yield {**base, "name": "process_name", "args": {"name": server.name}}
    yield {**base, "name": "process_sort_index", "args": {"sort_index": pid}}
    for core in range(server.cores):
        yield {**base, "tid": core, "name": "thread_name", "args": {"name": f"core {core}"}}


def _run(span: CoreSpan, pid: int) -> TraceEvent:
    run = span.run
    args: dict[str, Any] = {
        "requests": list(run.requests),
        "kept": run.keep,
        "streamed": run.streamed,
    }
    if span.failure:
        args["failure"] = span.failure
    return {
        "ph": "X",
        "pid": pid,
        "tid": run.core,
        "ts": span.started_s * _US,
        "dur": (span.ended_s - span.started_s) * _US,
        "cat": "run",
        "name": f"{run.model}/{run.group}",
        "args": args,
    }


def _flows(timeline: Timeline, numbers: Mapping[str, int]) -> Iterator[TraceEvent]:
    """Of the first requests: from the middle of each run that took one to that of its next."""
    ways: dict[int, list[CoreSpan]] = defaultdict(list)
    for span in sorted(timeline.spans, key=lambda span: (span.started_s, span.server)):
        for request in span.run.requests:
            if request in ways or len(ways) < FLOWS_MAX:
                ways[request].append(span)
    for request, spans in ways.items():
        for turn, span in enumerate(spans if len(spans) > 1 else ()):
            phase = "s" if turn == 0 else "f" if turn == len(spans) - 1 else "t"
            yield {
                "ph": phase,
                "id": request,
                "pid": numbers[span.server],
                "tid": span.run.core,
                "ts": (span.started_s + span.ended_s) / 2 * _US,
                "cat": "request",
                "name": f"request {request}",
                **({"bp": "e"} if phase == "f" else {}),
            }


def _counters(timeline: Timeline, numbers: Mapping[str, int]) -> Iterator[TraceEvent]:
    """Memory by kind and queues by model, where they change; all series in each event."""
    kinds = sorted({kind for sample in timeline.samples for kind in sample.held})
    models = sorted({model for sample in timeline.samples for model in sample.queued})
    before: dict[str, Sample] = {}
    for sample in timeline.samples:
        last = before.get(sample.server)
        base = {"ph": "C", "pid": numbers[sample.server], "tid": 0, "ts": sample.now_s * _US}
        if last is None or last.held != sample.held:
            args = {kind: sample.held.get(kind, 0) for kind in kinds}
            yield {**base, "name": "memory, bytes", "args": args}
        if models and (last is None or last.queued != sample.queued):
            args = {model: sample.queued.get(model, 0) for model in models}
            yield {**base, "name": "waiting requests", "args": args}
        if last is None or last.running != sample.running:
            yield {**base, "name": "busy cores", "args": {"cores": sample.running}}
        before[sample.server] = sample
