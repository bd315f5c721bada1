"""What came of a workload under one policy: throughput, latencies, and what servers did with their
cores and memory. Real runs and simulated ones are summed up by the same functions."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Literal

from vaultline.core.serde import Struct
from vaultline.core.spread import Spread, spread
from vaultline.sched.events import Run
from vaultline.sched.facts import ServerFacts
from vaultline.sched.server import Totals
from vaultline.sched.timeline import CoreSpan, Sample, Timeline
from vaultline.sim.cluster import Outcome

#: Points of a series over time, which pictures are drawn from.
SERIES_POINTS = 240
#: After the point, of means over time.
_DIGITS = 6
#: With more servers only the series of all together is kept.
SERVERS_WITH_SERIES = 16


class Series(Struct, frozen=True):
    """A server or all of them over time: means over equal parts of a run.

    Attributes:
        seconds: where the parts begin, and the end of the last one.
    """

    seconds: tuple[float, ...]
    busy_cores: tuple[float, ...]
    queued: tuple[float, ...]
    held_bytes: Mapping[str, tuple[float, ...]]


class Happening(Struct, frozen=True):
    """Weights of a group that came to stay (``load``) or went (``evict``), or of all groups that a
    model (``remove``) or a server (``lost``) had here."""

    now_s: float
    what: Literal["load", "evict", "remove", "lost"]
    of: str


class ServerResult(Struct, frozen=True):
    """What one server did.

    Attributes:
        busy_share: of the time of all of its cores, from the first arrival to the last answer.
        requests_per_run: how many shared a run, on average.
        streamed_bytes: weights decrypted for runs, kept afterwards or not.
        loads: decrypted and kept.
        peak_held_bytes: all kinds together, as far as it was sampled.
        series: None where there are many servers.
    """

    name: str
    cores: int
    memory_bytes: int
    answered: int
    runs: int
    busy_share: float
    requests_per_run: float
    loads: int
    evictions: int
    streamed_bytes: int
    peak_held_bytes: int
    series: Series | None
    happened: tuple[Happening, ...]


class ModelResult(Struct, frozen=True):
    """What became of one model's requests; ``missed``: answered after their deadline."""

    name: str
    latency: Spread | None
    refused: int = 0
    missed: int = 0


class PolicyResult(Struct, frozen=True):
    """What came of one policy; ``latency`` is of answered requests, None where none was.

    Attributes:
        seconds: from the first arrival to the last answer.
        throughput_per_s: answered requests over that.
        refusals: how many for each reason.
        series: of all servers together.
        replica_changes: how often a server was to get a model or to give one up.
    """

    policy: str
    seconds: float
    answered: int
    throughput_per_s: float
    latency: Spread | None
    refused: int
    missed: int
    refusals: Mapping[str, int]
    models: tuple[ModelResult, ...]
    servers: tuple[ServerResult, ...]
    series: Series | None
    replica_changes: int = 0


def policy_result(
    policy: str, outcomes: Sequence[Outcome], timeline: Timeline, replica_changes: int = 0
) -> PolicyResult:
    """Sum up a run; every request has ended."""
    start_s = min((outcome.request.arrived_s for outcome in outcomes), default=0.0)
    end_s = max((outcome.ended_s for outcome in outcomes), default=0.0)
    answered = [outcome for outcome in outcomes if not outcome.reason]
    by_model: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_model[outcome.request.model].append(outcome)
    models = tuple(_model(name, by_model[name]) for name in sorted(by_model))
    seconds = end_s - start_s
    by_server = Counter(outcome.server for outcome in answered)
    servers, series = _servers(timeline, by_server, (start_s, end_s))
    return PolicyResult(
        policy=policy,
        seconds=seconds,
        answered=len(answered),
        throughput_per_s=len(answered) / seconds if seconds else 0.0,
        latency=spread(outcome.latency_s for outcome in answered),
        refused=len(outcomes) - len(answered),
        missed=sum(model.missed for model in models),
        refusals=Counter(outcome.reason for outcome in outcomes if outcome.reason),
        models=models,
        servers=servers,
        series=series,
        replica_changes=replica_changes,
    )


def _model(name: str, outcomes: Sequence[Outcome]) -> ModelResult:
    answered = [outcome for outcome in outcomes if not outcome.reason]
    return ModelResult(
        name=name,
        latency=spread(outcome.latency_s for outcome in answered),
        refused=len(outcomes) - len(answered),
        missed=sum(
            outcome.request.deadline_s is not None and outcome.ended_s > outcome.request.deadline_s
            for outcome in answered
        ),
    )


def _servers(
    timeline: Timeline, answered: Mapping[str, int], window: tuple[float, float]
) -> tuple[tuple[ServerResult, ...], Series]:
    samples: dict[str, list[Sample]] = defaultdict(list)
    spans: dict[str, list[CoreSpan]] = defaultdict(list)
    for sample in timeline.samples:
        samples[sample.server].append(sample)
    for span in timeline.spans:
        spans[span.server].append(span)
    over_time = {name: series_of(samples[name], spans[name], window) for name in timeline.servers}
    happened = happenings(timeline)
    few = len(timeline.servers) <= SERVERS_WITH_SERIES
    servers = tuple(
        _server(
            timeline.servers[name],
            timeline.totals[name],
            [span.run for span in spans[name] if isinstance(span.run, Run)],
            answered=answered.get(name, 0),
            seconds=window[1] - window[0],
            peak_bytes=max(sum(sample.held.values()) for sample in samples[name]),
            series=over_time[name] if few else None,
            happened=tuple(happened.get(name, ())),
        )
        for name in sorted(timeline.servers)
    )
    return servers, _sum(list(over_time.values()), _edges(window))


def _server(
    facts: ServerFacts,
    totals: Totals,
    runs: Sequence[Run],
    *,
    answered: int,
    seconds: float,
    peak_bytes: int,
    series: Series | None,
    happened: tuple[Happening, ...],
) -> ServerResult:
    shared = sum(len(run.requests) for run in runs)
    return ServerResult(
        name=facts.name,
        cores=facts.cores,
        memory_bytes=facts.memory_bytes,
        answered=answered,
        runs=len(runs),
        busy_share=totals.busy_s / seconds / facts.cores if seconds else 0.0,
        requests_per_run=shared / len(runs) if runs else 0.0,
        loads=totals.loads,
        evictions=totals.evictions,
        streamed_bytes=totals.streamed_bytes,
        peak_held_bytes=peak_bytes,
        series=series,
        happened=happened,
    )


def happenings(timeline: Timeline) -> dict[str, list[Happening]]:
    """What came and went at each server, in the order of the times."""
    found: dict[str, list[Happening]] = defaultdict(list)
    for each in timeline.instants:
        if each.what in ("evict", "remove", "lost"):
            found[each.server].append(Happening(now_s=each.now_s, what=each.what, of=each.of))
    for span, run in timeline.runs:
        if run.keep and run.streamed:
            of = f"{run.model}/{run.group}"
            found[span.server].append(Happening(now_s=span.started_s, what="load", of=of))
    for happened in found.values():  # stable: what is evicted for a load goes before it
        happened.sort(key=lambda each: each.now_s)
    return found


def series_of(
    samples: Sequence[Sample], spans: Sequence[CoreSpan], window: tuple[float, float]
) -> Series:
    """One server over time; ``samples`` in the order of their times.

    Args:
        spans: what its cores did: exactly, where there are few samples.
        window: first and last moment.
    """
    edges = _edges(window)
    changes = [(window[0], 0.0)]
    for span in spans:
        changes += [(span.started_s, 1.0), (span.ended_s, -1.0)]
    changes.sort()
    busy = list(accumulate(change for _, change in changes))
    times = [sample.now_s for sample in samples]
    kinds = sorted({kind for sample in samples for kind in sample.held})
    return Series(
        seconds=edges,
        busy_cores=means([now_s for now_s, _ in changes], busy, edges),
        queued=means(times, [float(sum(sample.queued.values())) for sample in samples], edges),
        held_bytes={
            kind: means(times, [float(s.held.get(kind, 0)) for s in samples], edges, digits=0)
            for kind in kinds
        },
    )


def _edges(window: tuple[float, float]) -> tuple[float, ...]:
    start_s, end_s = window
    points = SERIES_POINTS if end_s > start_s else 1
    return tuple(start_s + (end_s - start_s) * k / points for k in range(points + 1))


def _sum(parts: Sequence[Series], edges: tuple[float, ...]) -> Series:
    nothing = (0.0,) * (len(edges) - 1)
    kinds = sorted({kind for part in parts for kind in part.held_bytes})
    return Series(
        seconds=edges,
        busy_cores=_added([part.busy_cores for part in parts], nothing),
        queued=_added([part.queued for part in parts], nothing),
        held_bytes={
            kind: _added([part.held_bytes.get(kind, nothing) for part in parts], nothing)
            for kind in kinds
        },
    )


def _added(rows: Sequence[tuple[float, ...]], nothing: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(sum(column) for column in zip(*rows, strict=True)) if rows else nothing


def means(
    times: Sequence[float],
    values: Sequence[float],
    edges: Sequence[float],
    *,
    digits: int = _DIGITS,
) -> tuple[float, ...]:
    """Mean of a step function between each two edges.

    Args:
        times: rising, when it takes each of the values; before the first of them it is the first.
        digits: after the point: differences of large sums are no more precise.
    """
    if not times:
        return (0.0,) * (len(edges) - 1)
    steps = zip(values, pairwise(times), strict=False)
    areas = list(accumulate((value * (b - a) for value, (a, b) in steps), initial=0.0))

    def value_at(now_s: float) -> float:
        return values[max(0, bisect_right(times, now_s) - 1)]

    def area(now_s: float) -> float:
        at = max(0, bisect_right(times, now_s) - 1)
        return areas[at] + values[at] * (now_s - times[at])

    return tuple(
        round((area(b) - area(a)) / (b - a), digits) if b > a else value_at(a)
        for a, b in pairwise(edges)
    )
