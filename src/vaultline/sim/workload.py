"""Workloads: which requests arrive when, in seconds. Seeded: the same workload gives the same
requests everywhere. The file that people write is ``sim.workload_file``.

All randomness is uniform numbers of :class:`random.Random`, whose sequence for a seed is promised
not to change; times and models are drawn from two streams, so that other models come at the same
times.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice, takewhile
from math import inf, isfinite, log1p
from random import Random

from msgspec.structs import replace

from vaultline.core.errors import InputError
from vaultline.core.serde import Struct
from vaultline.sched.events import Request

#: Requests of one workload: a hundred of the largest simulated ones.
REQUESTS_MAX = 10_000_000
#: Requests a second, and seconds, that are meant: more is a mistake in a unit.
RATE_MAX, DURATION_S_MAX = 1e7, 1e8


class WorkloadModel(Struct, frozen=True):
    """A model that requests come for.

    Attributes:
        weight: its share of the requests is this over the sum of all weights.
        deadline_s: after arrival, or None.
        priority: of each of its requests; higher ones go first.
    """

    name: str
    weight: float = 1.0
    deadline_s: float | None = None
    priority: int = 0

    def __post_init__(self) -> None:
        if not self.name:
            raise InputError("a model of a workload has no name")
        if not (isfinite(self.weight) and self.weight >= 0):
            raise InputError("a model's weight is not 0 or more", got=str(self.weight))
        if self.deadline_s is not None and not 0 < self.deadline_s < DURATION_S_MAX:
            raise InputError("a deadline is not more than 0 s", got=f"{self.deadline_s} s")


class Poisson(Struct, frozen=True, tag="poisson", tag_field="kind"):
    """Independent requests, ``rate`` a second on average."""

    rate: float

    def __post_init__(self) -> None:
        _check_rate(self.rate, least=None)


class Phase(Struct, frozen=True):
    """A state of bursty arrivals: so many requests a second, for ``mean_s`` on average."""

    rate: float
    mean_s: float

    def __post_init__(self) -> None:
        _check_rate(self.rate, least=0.0)
        if not 0 < self.mean_s < DURATION_S_MAX:
            raise InputError("a phase does not last more than 0 s", got=f"{self.mean_s} s")


class Bursty(Struct, frozen=True, tag="bursty", tag_field="kind"):
    """Two states that alternate, Poisson arrivals in each, exponential durations: a
    Markov-modulated Poisson process (W. Fischer and K. Meier-Hellstern, "The MMPP cookbook", 1993).
    """

    burst: Phase
    calm: Phase

    def __post_init__(self) -> None:
        if self.burst.rate <= self.calm.rate:
            raise InputError(
                "bursts are not busier than what lies between them",
                got=f"{self.burst.rate} and {self.calm.rate} requests a second",
            )


class RecordedRequest(Struct, frozen=True, omit_defaults=True):
    """A request of a recording.

    Attributes:
        time_s: since the recording began.
        deadline_s: on the same clock; None: what the workload says of the model.
        priority: None: what the workload says of the model.
    """

    time_s: float
    model: str
    deadline_s: float | None = None
    priority: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.time_s < DURATION_S_MAX:
            raise InputError("a time is not 0 s or more", got=f"{self.time_s} s")
        if self.deadline_s is not None and not self.time_s <= self.deadline_s < inf:
            raise InputError(
                "a deadline lies before the request's arrival",
                got=f"deadline {self.deadline_s} s, arrival {self.time_s} s",
            )


class Recorded(Struct, frozen=True, tag="recorded", tag_field="kind"):
    """Requests that came once, in the order of their times."""

    requests: tuple[RecordedRequest, ...]


Arrivals = Poisson | Bursty | Recorded


class Workload(Struct, frozen=True):
    """Requests for some models.

    Attributes:
        models: most popular first where popularity follows Zipf's law.
        duration_s: requests that would come later don't; None: ``count`` alone ends it.
        count: of requests; None: ``duration_s`` alone ends it.
        rotate_s: so often the models change places: each takes the weight of the one before it, the
            first that of the last. None: never.
    """

    models: tuple[WorkloadModel, ...]
    arrivals: Arrivals
    seed: int = 0
    duration_s: float | None = None
    count: int | None = None
    rotate_s: float | None = None

    def __post_init__(self) -> None:
        names = [model.name for model in self.models]
        if len(set(names)) < len(names):
            raise InputError("a workload names a model twice", got=", ".join(names))
        if isinstance(self.arrivals, Recorded):
            _check_recorded(self.arrivals.requests, names)
            return
        if not sum(model.weight for model in self.models):
            raise InputError("no model of a workload has a weight", got=", ".join(names) or "none")
        if self.duration_s is None and self.count is None:
            raise InputError("nothing ends the workload", expected="a duration or a count")
        if self.expected_count > REQUESTS_MAX:
            raise InputError(
                "a workload has too many requests",
                got=f"about {self.expected_count:.0f}",
                expected=f"at most {REQUESTS_MAX}",
            )

    @property
    def rate(self) -> float:
        """Requests a second, on average; 0 if all come at once."""
        match self.arrivals:
            case Poisson(rate=rate):
                return rate
            case Bursty(burst=burst, calm=calm):
                total_s = burst.mean_s + calm.mean_s
                return (burst.rate * burst.mean_s + calm.rate * calm.mean_s) / total_s
            case Recorded(requests=requests):
                last_s = requests[-1].time_s if requests else 0.0
                return len(requests) / last_s if last_s else 0.0

    @property
    def expected_count(self) -> float:
        """Requests, about as many as will come."""
        most = inf if self.count is None else self.count
        if isinstance(self.arrivals, Recorded):
            return min(most, len(self.arrivals.requests))
        return min(most, inf if self.duration_s is None else self.rate * self.duration_s)

    def faster(self, factor: float) -> Workload:
        """The same requests ``factor`` times as fast: for the rate at which servers saturate.

        Deadlines stay as long after arrival as they are.
        """
        if not 0 < factor < inf:
            raise InputError("a workload can't be so much faster", got=str(factor))
        if factor == 1:  # exactly the same: times are not rounded
            return self
        match self.arrivals:
            case Poisson(rate=rate):
                arrivals: Arrivals = Poisson(rate=rate * factor)
            case Bursty(burst=burst, calm=calm):
                arrivals = Bursty(
                    burst=_faster_phase(burst, factor), calm=_faster_phase(calm, factor)
                )
            case Recorded(requests=requests):
                arrivals = Recorded(requests=tuple(_sooner(each, factor) for each in requests))
        duration_s = None if self.duration_s is None else self.duration_s / factor
        rotate_s = None if self.rotate_s is None else self.rotate_s / factor
        return replace(self, arrivals=arrivals, duration_s=duration_s, rotate_s=rotate_s)


def zipf_weights(count: int, exponent: float) -> list[float]:
    """Weights of ``count`` models by rank: 1 / rank ** exponent (Zipf's law)."""
    return [1 / (rank + 1) ** exponent for rank in range(count)]


def arrivals(workload: Workload) -> Iterator[Request]:
    """All requests of a workload, numbered from 0 in the order of their arrival."""
    if isinstance(workload.arrivals, Recorded):
        found = _recorded(workload, workload.arrivals)
    else:
        found = _drawn(workload, workload.arrivals)
    if workload.duration_s is not None:
        end_s = workload.duration_s
        found = takewhile(lambda request: request.arrived_s < end_s, found)
    return islice(found, workload.count)


def recording(requests: Sequence[Request]) -> Recorded:
    """Requests as a recording that gives exactly them again."""
    return Recorded(
        requests=tuple(
            RecordedRequest(
                time_s=request.arrived_s,
                model=request.model,
                deadline_s=request.deadline_s,
                priority=request.priority,
            )
            for request in requests
        )
    )


def _recorded(workload: Workload, source: Recorded) -> Iterator[Request]:
    models = {model.name: model for model in workload.models}
    for number, each in enumerate(source.requests):
        model = models[each.model]
        deadline_s = each.deadline_s
        if deadline_s is None and model.deadline_s is not None:
            deadline_s = each.time_s + model.deadline_s
        yield Request(
            number=number,
            model=each.model,
            arrived_s=each.time_s,
            deadline_s=deadline_s,
            priority=model.priority if each.priority is None else each.priority,
        )


def _drawn(workload: Workload, source: Poisson | Bursty) -> Iterator[Request]:
    chance = Random(f"models {workload.seed}")
    bounds = list(accumulate(model.weight for model in workload.models))
    last = max(rank for rank, model in enumerate(workload.models) if model.weight)
    for number, now_s in enumerate(_times(source, Random(f"times {workload.seed}"))):
        rank = min(bisect_right(bounds, chance.random() * bounds[-1]), last)
        turn = int(now_s / workload.rotate_s) if workload.rotate_s else 0
        model = workload.models[(rank + turn) % len(workload.models)]
        yield Request(
            number=number,
            model=model.name,
            arrived_s=now_s,
            deadline_s=None if model.deadline_s is None else now_s + model.deadline_s,
            priority=model.priority,
        )


def _times(source: Poisson | Bursty, chance: Random) -> Iterator[float]:
    return _poisson(source, chance) if isinstance(source, Poisson) else _bursty(source, chance)


def _poisson(source: Poisson, chance: Random) -> Iterator[float]:
    now_s = 0.0
    while True:
        now_s += _exponential(chance, 1 / source.rate)
        yield now_s


def _bursty(source: Bursty, chance: Random) -> Iterator[float]:
    """Starts as likely in a state as the process is in it in the long run."""
    total_s = source.burst.mean_s + source.calm.mean_s
    here, there = source.burst, source.calm
    if chance.random() * total_s >= source.burst.mean_s:
        here, there = there, here
    start_s = 0.0
    while True:
        end_s = start_s + _exponential(chance, here.mean_s)
        now_s = start_s
        while here.rate:
            now_s += _exponential(chance, 1 / here.rate)
            if now_s >= end_s:  # the next state forgets it: exponential gaps have no memory
                break
            yield now_s
        start_s, here, there = end_s, there, here


def _exponential(chance: Random, mean_s: float) -> float:
    return -mean_s * log1p(-chance.random())


def _faster_phase(phase: Phase, factor: float) -> Phase:
    return Phase(rate=phase.rate * factor, mean_s=phase.mean_s / factor)


def _sooner(request: RecordedRequest, factor: float) -> RecordedRequest:
    time_s = request.time_s / factor
    if request.deadline_s is None:
        return replace(request, time_s=time_s)
    return replace(request, time_s=time_s, deadline_s=time_s + request.deadline_s - request.time_s)


def _check_rate(rate: float, *, least: float | None) -> None:
    enough = rate > 0 if least is None else rate >= least
    if not (enough and rate <= RATE_MAX):
        raise InputError(
            "not a rate of arrivals",
            got=f"{rate} requests a second",
            expected=f"{'more than 0' if least is None else '0 or more'}, at most {RATE_MAX:.0f}",
        )


def _check_recorded(requests: Sequence[RecordedRequest], names: Sequence[str]) -> None:
    known, before_s = set(names), 0.0
    for number, request in enumerate(requests):
        if request.model not in known:
            raise InputError(
                f"request {number} of a recording is for a model that the workload does not name",
                got=request.model,
                expected=", ".join(names),
            )
        if request.time_s < before_s:
            raise InputError(
                f"request {number} of a recording is earlier than the one before it",
                got=f"{request.time_s} s after {before_s} s",
            )
        before_s = request.time_s
