"""The global balancer: which server gets a request. It knows servers by their reports, which may be
old, and by what it has sent them since."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from vaultline.core.errors import LocalProtocolError
from vaultline.sched.events import Request
from vaultline.sched.facts import ModelFacts, ServerFacts
from vaultline.sched.report import Report

#: Servers outside of a model's own that are looked at for each request.
_SAMPLED = 2


@dataclass(slots=True)
class View:
    """A server as the balancer sees it."""

    facts: ServerFacts
    models: set[str]
    backlog_s: float = 0.0
    as_of_s: float = 0.0
    waiting: dict[str, int] = field(default_factory=dict)
    resident_s: dict[str, float] = field(default_factory=dict)
    held: dict[int, tuple[Request, int, float]] = field(default_factory=dict)
    sent: int = 0
    turn: int = 0
    alive: bool = True

    def left_s(self, now_s: float) -> float:
        """Seconds until it has worked off what it has."""
        return max(0.0, self.backlog_s / self.facts.cores - max(0.0, now_s - self.as_of_s))


class Chooser(Protocol):
    """A balancing policy."""

    def choose(self, balancer: Balancer, request: Request, now_s: float) -> View | None:
        """The server for a request, or None if no server has its model."""


class Balancer:
    """Sends requests to servers, and sends again what a lost server held."""

    def __init__(
        self,
        servers: Sequence[ServerFacts],
        models: Mapping[str, ModelFacts],
        chooser: Chooser,
    ) -> None:
        self.models = models
        self.views = {each.name: View(facts=each, models=set(each.models)) for each in servers}
        self._chooser = chooser
        self._by_model: dict[str, list[View]] = {name: [] for name in models}
        for view in self.views.values():
            for name in view.facts.models:
                self._by_model[name].append(view)
        self._sent: dict[int, View] = {}

    def submit(self, request: Request, now_s: float) -> str | None:
        """The server that a request goes to; None: nobody can take it."""
        if request.number in self._sent:
            raise LocalProtocolError(f"request {request.number} was submitted twice")
        view = self._chooser.choose(self, request, now_s)
        if view is None:
            return None
        cost_s = self.cost_s(view, request.model)
        if view.as_of_s < now_s:  # what it did meanwhile, as far as we know
            view.backlog_s = view.left_s(now_s) * view.facts.cores
            view.as_of_s = now_s
        view.backlog_s += cost_s
        view.waiting[request.model] = view.waiting.get(request.model, 0) + 1
        view.sent += 1
        view.held[request.number] = (request, view.sent, cost_s)
        self._sent[request.number] = view
        return view.facts.name

    def done(self, number: int) -> bool:
        """A request was answered or refused; False if it had been already, or was never sent."""
        view = self._sent.pop(number, None)
        if view is None:
            return False
        request, _, _ = view.held.pop(number)
        view.waiting[request.model] = max(0, view.waiting.get(request.model, 0) - 1)
        return True

    def reported(self, report: Report, now_s: float) -> None:
        """Take a report that has come now. What it does not cover yet still counts."""
        view = self.views[report.server]
        if not view.alive or report.turn <= view.turn:
            return
        view.turn = report.turn
        later = [entry for entry in view.held.values() if entry[1] > report.taken]
        view.backlog_s = report.backlog_s + sum(cost_s for _, _, cost_s in later)
        view.as_of_s = now_s
        view.waiting = dict(report.waiting)
        for request, _, _ in later:
            view.waiting[request.model] = view.waiting.get(request.model, 0) + 1
        view.resident_s = dict(report.resident_s)

    def lost(self, server: str, now_s: float) -> list[tuple[Request, str | None]]:
        """A server is gone: who takes over each request that it held, in the order of arrival."""
        view = self.views[server]
        view.alive = False
        for name in view.models:
            self._by_model[name] = [each for each in self._by_model[name] if each is not view]
        orphans = sorted(view.held.values(), key=lambda entry: entry[0].number)
        view.held.clear()
        for request, _, _ in orphans:
            self._sent.pop(request.number, None)
        return [(request, self.submit(request, now_s)) for request, _, _ in orphans]

    def with_model(self, model: str) -> list[View]:
        """Servers that are there and have a model."""
        return self._by_model.get(model, [])

    def cost_s(self, view: View, model: str) -> float:
        """Core time that one more request of a model costs a server: less where others of it
        wait, with which it shares a run, and where its weights are."""
        facts, waiting = self.models[model], view.waiting.get(model, 0)
        saved_s = view.resident_s.get(model, 0.0)
        if not waiting:
            return max(facts.alone_s - saved_s, 0.0)
        return facts.marginal_s(waiting) + max(facts.load_s - saved_s, 0.0) / (waiting + 1)


class RoundRobin:
    """Each server in turn."""

    def __init__(self) -> None:
        self._next = 0

    def choose(self, balancer: Balancer, request: Request, now_s: float) -> View | None:
        """The next one that has the model."""
        views = balancer.with_model(request.model)
        if not views:
            return None
        self._next += 1
        return views[self._next % len(views)]


class LeastLoaded:
    """The server with the least work; looks at all of them."""

    def choose(self, balancer: Balancer, request: Request, now_s: float) -> View | None:
        """By seconds of backlog."""
        views = balancer.with_model(request.model)
        return min(views, key=lambda view: view.left_s(now_s), default=None)


class PowerOfTwo:
    """The less loaded one of two (M. Mitzenmacher, "The Power of Two Choices", 2001)."""

    def choose(self, balancer: Balancer, request: Request, now_s: float) -> View | None:
        """Two by a hash of the request's number: the same log gives the same choices."""
        views = balancer.with_model(request.model)
        return min(sampled(views, request, 2), key=lambda view: view.left_s(now_s), default=None)


class ModelAffinity:
    """Where most of the model's weights are; else the least loaded one."""

    def choose(self, balancer: Balancer, request: Request, now_s: float) -> View | None:
        """By resident decryption time, then by backlog."""
        return min(
            balancer.with_model(request.model),
            key=lambda view: (
                -max(
                    view.resident_s.get(request.model, 0.0),
                    float(view.waiting.get(request.model, 0) > 0),
                ),
                view.left_s(now_s),
            ),
            default=None,
        )


class Earliest:
    """The server that will be done with the request first, among those worth looking at: where
    others of its model wait or its weights are, and a few by a hash, the less loaded of which
    keeps a hot model from staying where it is."""

    def __init__(self, looked_at: int = 4) -> None:
        self._looked_at = looked_at
        self._recent: dict[str, list[View]] = {}

    def choose(self, balancer: Balancer, request: Request, now_s: float) -> View | None:
        """By backlog plus what the request adds to it."""
        views = balancer.with_model(request.model)
        if not views:
            return None
        recent = [view for view in self._recent.get(request.model, ()) if view.alive]
        looked_at = [*recent, *sampled(views, request, _SAMPLED)]
        best = min(
            looked_at,
            key=lambda view: view.left_s(now_s) + balancer.cost_s(view, request.model),
        )
        others = [view for view in recent if view is not best]
        self._recent[request.model] = [best, *others][: self._looked_at]
        return best


def sampled(views: Sequence[View], request: Request, count: int) -> Iterable[View]:
    """Some servers, spread by a hash of the request's number (SplitMix64's finaliser)."""
    if len(views) <= count:
        return views
    found = []
    for turn in range(count):
        word = (request.number * count + turn + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        word = (word ^ word >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        found.append(views[(word ^ word >> 31) % len(views)])
    return found
