"""What a simulation can't know of a real run, from the event logs of its servers.

Everything is a duration, so the clocks of gateway and servers need not agree.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping

from vaultline.core.errors import InputError
from vaultline.core.serde import Struct
from vaultline.sched.events import Answer, Arrived, Run
from vaultline.sched.facts import ModelFacts
from vaultline.sched.replay import ActionEntry, EventEntry, LogEntry
from vaultline.sched.timeline import Timeline


class ServiceTime(Struct, frozen=True):
    """Measured over expected seconds of a step group's runs.

    Attributes:
        median: of the runs' ratios.
        total: of all runs' seconds together.
        command_s: what a run takes between the decision and its end besides, in seconds: the
            command's way to the enclave and back. None where the log has no measured runs.
    """

    runs: int
    median: float
    total: float
    command_s: float | None


def measured_hop_s(latencies_s: Mapping[int, float], logs: Iterable[Iterable[LogEntry]]) -> float:
    """What a request spends outside of its server, one way.

    Half the mean of what is left of a latency without the time from the request's arrival at its
    server to the decision that answers it.

    Args:
        latencies_s: of answered requests, as clients saw them, by the gateway's numbers.

    Raises:
        InputError: none of the requests stands in the logs.
    """
    inside_s: dict[int, float] = {}
    for log in logs:
        inside_s.update(_inside_s(log))
    outside_s = [
        latency_s - inside_s[number]
        for number, latency_s in latencies_s.items()
        if number in inside_s
    ]
    if not outside_s:
        raise InputError("the event logs are not of this run: they have none of its requests")
    return max(0.0, statistics.fmean(outside_s) / 2)


def expected_s(run: Run, models: Mapping[str, ModelFacts]) -> float:
    """What the facts say of a run."""
    group = models[run.model].groups[run.group]
    return group.seconds(len(run.requests), resident=not run.streamed, keep=run.keep)


def service_times(timeline: Timeline, models: Mapping[str, ModelFacts]) -> dict[str, ServiceTime]:
    """How long runs took against what facts say, by step group."""
    pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    commands: dict[str, list[float]] = defaultdict(list)
    for span, run in timeline.runs:
        of, facts_s = f"{run.model}/{run.group}", expected_s(run, models)
        if span.failure or not facts_s:
            continue
        real_s = span.ended_s - span.started_s
        if span.measured_s is not None:
            commands[of].append(real_s - span.measured_s)
            real_s = span.measured_s
        pairs[of].append((real_s, facts_s))
    return {
        of: ServiceTime(
            runs=len(found),
            median=statistics.median(real_s / facts_s for real_s, facts_s in found),
            total=sum(real_s for real_s, _ in found) / sum(facts_s for _, facts_s in found),
            command_s=statistics.median(commands[of]) if of in commands else None,
        )
        for of, found in sorted(pairs.items())
    }


def _inside_s(log: Iterable[LogEntry]) -> dict[int, float]:
    """Seconds that each answered request was at a server."""
    arrived_s: dict[int, float] = {}
    found: dict[int, float] = {}
    now_s = 0.0
    for entry in log:
        if isinstance(entry, EventEntry):
            now_s = entry.event.now_s
            if isinstance(entry.event, Arrived):
                arrived_s[entry.event.request.number] = now_s
        elif isinstance(entry, ActionEntry) and isinstance(entry.action, Answer):
            number = entry.action.request
            if number in arrived_s:
                found[number] = now_s - arrived_s[number]
    return found
