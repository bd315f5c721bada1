"""What `bench lasagna` finds, and the figures that follow: pure, so that they can be tested."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vaultline.core.spread import Spread
from vaultline.serve.load import LoadSummary

PagedAs = Literal["sgx1", "crypto"]
#: Baseline whose servers are paged enclaves: what a runtime without bounded execution does.
PAGED_POLICY = "fifo"
OURS = "vaultline"
#: Of the throughput at saturation, where latencies are measured.
SHARE = 0.7
#: A policy that needs longer than this share of the load's length after its last arrival, or has
#: not answered at all, does not keep up.
_DRAIN_SHARE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A policy, and whether its servers page."""

    policy: str
    paged: PagedAs | None = None

    @property
    def name(self) -> str:
        """As in figures: ``fifo.sgx1``, ``vaultline``."""
        return self.policy if self.paged is None else f"{self.policy}.{self.paged}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What a run took of the machine, all servers together.

    Attributes:
        seconds: of the run.
        busy_s: by server, of its cores.
        served_s: by model, of all cores.
        gateway_cpu_s: processor time of gateway and load generator; hosts_cpu_s: of the hosts, that
            wait beside the workers; workers_cpu_s: of the workers.
    """

    seconds: float
    cores: int
    busy_s: Mapping[str, float]
    served_s: Mapping[str, float]
    runs: int
    loads: int
    evictions: int
    streamed_bytes: int
    swapped_pages: int
    gateway_cpu_s: float
    hosts_cpu_s: float
    workers_cpu_s: float

    @property
    def busy(self) -> float:
        """Share of all core time in which something ran."""
        return sum(self.busy_s.values()) / (self.cores * self.seconds) if self.seconds else 0.0

    @property
    def disturbed(self) -> float:
        """Share of the busy time in which neither workers nor hosts had their cores: who else ran
        there made this slower."""
        busy_s = sum(self.busy_s.values())
        spent_s = self.workers_cpu_s + self.hosts_cpu_s
        return max(0.0, 1.0 - spent_s / busy_s) if busy_s else 0.0

    @property
    def overhead(self) -> float:
        """Processor time of gateway and hosts, per second and core of the servers."""
        spent_s = self.gateway_cpu_s + self.hosts_cpu_s
        return spent_s / (self.cores * self.seconds) if self.seconds else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Saturated:
    """All requests at once, until the last of them is answered.

    Attributes:
        seconds: from the first submission to the last answer. The tail, in which one server has
            nothing left, is in it, the same way for every policy: a balancer that spreads badly is
            slower for it.
    """

    contender: Contender
    turn: int
    requests: int
    answered: int
    seconds: float
    use: Use

    @property
    def throughput(self) -> float:
        """Answers per second."""
        return self.answered / self.seconds

    @property
    def tail_free(self) -> float:
        """Answers per second if no core had ever been idle: the balancer's part taken out."""
        busy_s = sum(self.use.busy_s.values())
        return self.answered * self.use.cores / busy_s if busy_s else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """An open loop at a fixed rate.

    Attributes:
        rate_of: whose saturation the rate is a share of: ``vaultline`` or ``baseline``.
        window_s: from the first arrival to the last.
        latency: requests that still waited when the run was ended count as long as they had waited:
            where there are any, this is the least that it can be.
    """

    contender: Contender
    turn: int
    rate_of: str
    rate_per_s: float
    window_s: float
    summary: LoadSummary
    latency: Spread
    use: Use

    @property
    def drain_s(self) -> float:
        """From the last arrival to the last answer."""
        return max(0.0, self.summary.seconds - self.window_s)

    @property
    def keeps_up(self) -> bool:
        """Whether it was done soon after the last arrival."""
        return not self.summary.unanswered and self.drain_s <= max(
            1.0, _DRAIN_SHARE * self.window_s
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Killed:
    """One of the servers killed under load.

    Attributes:
        held: requests that it had when it died, and that others took over.
        recovery_s: from the kill to the answer of the last of those.
        noticed_s: from the kill until its requests were with others.
        lost: requests that were never answered; doubled: answered more than once.
        answers_s: when answers came, seconds from the start; ``killed_s`` likewise.
    """

    policy: str
    requests: int
    answered: int
    lost: int
    doubled: int
    held: int
    killed_s: float
    noticed_s: float
    recovery_s: float
    answers_s: tuple[float, ...]
    rate_per_s: float
    before: Spread | None
    after: Spread | None


@dataclass(slots=True, kw_only=True)
class LasagnaResult:
    """Everything that was measured.

    Attributes:
        batched: names of the baselines that run several requests of a model together.
        skipped: contenders that could not be run, and why.
        repeated: runs that failed once, and why.
    """

    batched: tuple[str, ...] = ()
    saturated: list[Saturated] = field(default_factory=list)
    offered: list[Offered] = field(default_factory=list)
    killed: Killed | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    repeated: list[str] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Contenders in the order in which they were first run."""
        return list(dict.fromkeys(each.contender.name for each in self.saturated))

    def throughput(self, name: str) -> float | None:
        """Median of the rounds."""
        return _median([e.throughput for e in self.saturated if e.contender.name == name])

    def tail_free(self, name: str) -> float | None:
        """Median of the rounds."""
        return _median([e.tail_free for e in self.saturated if e.contender.name == name])

    def latency(self, name: str, rate_of: str, which: str) -> float | None:
        """Median over the rounds of ``mean_s``, ``p50_s``, ``p95_s``, ..."""
        runs = self.runs(name, rate_of)
        return _median([float(getattr(each.latency, which)) for each in runs])

    def runs(self, name: str, rate_of: str) -> list[Offered]:
        """Of one contender at one rate."""
        return [e for e in self.offered if (e.contender.name, e.rate_of) == (name, rate_of)]

    def keeps_up(self, name: str, rate_of: str) -> bool:
        """In most rounds."""
        runs = self.runs(name, rate_of)
        return sum(each.keeps_up for each in runs) * 2 > len(runs)

    def baselines(self) -> list[str]:
        """On the same bounded executor."""
        bounded = (e.contender for e in self.saturated if e.contender.paged is None)
        return list(dict.fromkeys(each.name for each in bounded if each.policy != OURS))

    def best_baseline(self, names: Sequence[str] | None = None) -> str | None:
        """The one with the highest throughput."""
        measured = {
            name: rate
            for name in (self.baselines() if names is None else names)
            for rate in (self.throughput(name),)
            if rate is not None
        }
        return max(measured, key=lambda name: measured[name], default=None)


def figures(found: LasagnaResult) -> dict[str, float]:
    """The benchmark's figures by name."""
    made: dict[str, float] = {}
    for name in found.names():
        _add(made, f"throughput.{name}", found.throughput(name))
        _add(made, f"tail_free.{name}", found.tail_free(name))
    _gains(found, made)
    for rate_of in dict.fromkeys(each.rate_of for each in found.offered):
        _latencies(found, rate_of, made)
    if found.killed is not None:
        made["kill.recovery_s"] = found.killed.recovery_s
        made["kill.noticed_s"] = found.killed.noticed_s
        made["kill.held"] = float(found.killed.held)
        made["kill.lost"] = float(found.killed.lost)
        made["kill.doubled"] = float(found.killed.doubled)
    _add(made, "disturbed", _median([each.use.disturbed for each in found.saturated]))
    overheads = [each.use.overhead for each in found.saturated if each.contender.name == OURS]
    _add(made, "overhead_cores_share", _median(overheads))
    return made


def _gains(found: LasagnaResult, made: dict[str, float]) -> None:
    """Ours over the others', and which part is whose.

    ``executor_gain``: the paged baseline's policy, but on the bounded executor; ``policy_gain``:
    ours over that. ``throughput_vs_best_baseline`` is over the named policies, which run requests
    one by one or, as Lasagna, task by task; ``throughput_vs_best_batched_baseline`` over those
    with ordinary dynamic batching added.
    """
    ours, best = found.throughput(OURS), found.best_baseline()
    paged = {
        name: found.throughput(name)
        for name in found.names()
        if name.startswith(f"{PAGED_POLICY}.")
    }
    same = found.throughput(SAME_ON_BOUNDED)
    for name, rate in paged.items():
        mode = name.partition(".")[2]
        _add(made, f"throughput_vs_fifo.{mode}", _ratio(ours, rate))
        _add(made, f"executor_gain.{mode}", _ratio(same, rate))
    # The quicker of the paged ones: what we claim holds against both.
    quickest = max((rate for rate in paged.values() if rate is not None), default=None)
    _add(made, "throughput_vs_fifo", _ratio(ours, quickest))
    _add(made, "executor_gain", _ratio(same, quickest))
    _add(made, "policy_gain", _ratio(ours, same))
    if best is not None:
        free = [found.tail_free(name) for name in found.baselines()]
        best_free = max((rate for rate in free if rate is not None), default=None)
        _add(made, "tail_free_vs_best_baseline", _ratio(found.tail_free(OURS), best_free))
    names = found.baselines()
    single = found.best_baseline([name for name in names if name not in found.batched])
    batched = found.best_baseline([name for name in names if name in found.batched])
    for what, one in (("baseline", single), ("batched_baseline", batched)):
        if one is not None:
            _add(made, f"throughput_vs_best_{what}", _ratio(ours, found.throughput(one)))


#: First come, first served, servers in turn, on the bounded executor.
SAME_ON_BOUNDED = "round-robin"


def _latencies(found: LasagnaResult, rate_of: str, made: dict[str, float]) -> None:
    at = f"at_{rate_of}"
    for name in found.names():
        for which in ("mean_s", "p95_s"):
            _add(
                made, f"{which.removesuffix('_s')}_ms.{at}.{name}", _ms(found, name, rate_of, which)
            )
        if found.runs(name, rate_of):
            made[f"keeps_up.{at}.{name}"] = float(found.keeps_up(name, rate_of))
    for which in ("mean_s", "p95_s"):
        ours = found.latency(OURS, rate_of, which)
        theirs = [found.latency(name, rate_of, which) for name in found.baselines()]
        best = min((each for each in theirs if each is not None), default=None)
        part = "" if rate_of == OURS else f".{at}"
        _add(made, f"{which.removesuffix('_s')}_vs_best_baseline{part}", _ratio(ours, best))


def _ms(found: LasagnaResult, name: str, rate_of: str, which: str) -> float | None:
    seconds = found.latency(name, rate_of, which)
    return None if seconds is None else seconds * 1e3


def _add(made: dict[str, float], name: str, value: float | None) -> None:
    if value is not None:
        made[name] = value


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
