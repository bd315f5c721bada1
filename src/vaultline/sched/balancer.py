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
#: How much it counts that a request delays others.
_OTHERS_SHARE = 0.25
#: Beyond this a higher priority changes nothing.
_PRIORITY_MAX = 10
#: How much more than the average a server may have to do and still be preferred for its weights.
_BOUND = 1.25


@dataclass(slots=True, eq=False)
class View:
    """A server as the balancer sees it.

    Attributes:
        models: for which requests may be sent to it.
        backlog_s: core time of all that it had to do at ``as_of_s``.
        held: requests that it was sent and that haven't ended, in that order: each with its place
            in that order and the core time that it was thought to cost.
        sent: how many it was sent in all.
        changes: how many times it was told to install or remove a model.
        turn: of the newest report.
    """

    facts: ServerFacts
    models: set[str]
    backlog_s: float = 0.0
    as_of_s: float = 0.0
    waiting: dict[str, int] = field(default_factory=dict)
    resident_s: dict[str, float] = field(default_factory=dict)
    held: dict[int, tuple[Request, int, float]] = field(default_factory=dict)
    sent: int = 0
    changes: int = 0
    turn: int = 0
    alive: bool = True

    def left_s(self, now_s: float) -> float:
        """Seconds until it has worked off what it has."""
        left_s = self.backlog_s / self.facts.cores - max(0.0, now_s - self.as_of_s)
        return left_s if left_s > 0 else 0.0


class Chooser(Protocol):
    """A balancing policy."""

    def choose(self, balancer: Balancer, request: Request, now_s: float) -> View | None:
        """The server for a request, or None if no server has its model."""


class Balancer:
    """Sends requests to servers, and sends again what a lost server held.

    A server's report may be old, and reports may be lost or come in any order. Each says how many
    requests the server had taken, which it takes in the order in which they are sent; so those
    that came later are counted on top. Nothing here is believed of a request but what
    :meth:`done`, :meth:`returned` and :meth:`lost` say.
    """

    def __init__(
        self,
        servers: Sequence[ServerFacts],
        models: Mapping[str, ModelFacts],
        chooser: Chooser,
    ) -> None:
        self.models = models
        self.views: dict[str, View] = {}
        self._chooser = chooser
        self._by_model: dict[str, list[View]] = {name: [] for name in models}
        self._sent: dict[int, View] = {}
        self._tried: dict[int, set[str]] = {}
        self._excluded: set[str] = set()
        for facts in servers:
            self.joined(facts)

    # Requests.

    def submit(self, request: Request, now_s: float) -> str | None:
        """The server that a request goes to; None: nobody can take it."""
        if request.number in self._sent:
            raise LocalProtocolError(f"request {request.number} was submitted twice")
        self._excluded = self._tried.get(request.number, set())
        view = self._chooser.choose(self, request, now_s)
        if view is None:
            self._tried.pop(request.number, None)
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
        self._tried.pop(number, None)
        return self._ended(number) is not None

    def returned(self, number: int, now_s: float) -> str | None:
        """A server refused a request that another may take: which one does, or None."""
        view = self._sent.get(number)
        request = self._ended(number)
        if view is None or request is None:
            return None
        self._tried.setdefault(number, set()).add(view.facts.name)
        return self.submit(request, now_s)

    def _ended(self, number: int) -> Request | None:
        view = self._sent.pop(number, None)
        if view is None:
            return None
        request, _, _ = view.held.pop(number)
        view.waiting[request.model] = max(0, view.waiting.get(request.model, 0) - 1)
        return request

    # Servers.

    def reported(self, report: Report, now_s: float) -> None:
        """Take a report that has come now. What it does not cover yet still counts."""
        view = self.views.get(report.server)
        if view is None or not view.alive or report.turn <= view.turn:
            return
        view.turn = report.turn
        view.backlog_s, view.as_of_s = max(0.0, report.backlog_s), now_s
        # Names that nobody serves say nothing: a host may make them up.
        view.waiting = {n: count for n, count in report.waiting.items() if n in self.models}
        for request, place, cost_s in reversed(view.held.values()):
            if place <= report.taken:
                break
            view.backlog_s += cost_s
            view.waiting[request.model] = view.waiting.get(request.model, 0) + 1
        view.resident_s = report.resident_s
        if report.models is not None and report.changes == view.changes:
            self._serves(view, report.models)

    def placed(self, server: str, model: str, *, there: bool) -> bool:
        """A server is told to install a model, or to remove it: from now on it may be sent
        requests for it, or none any more. False if it is gone, and need not be told."""
        view = self.views[server]
        if not view.alive:
            return False
        view.changes += 1
        self._serves(view, view.models | {model} if there else view.models - {model})
        return True

    def _serves(self, view: View, models: Iterable[str]) -> None:
        new = set(models) & self._by_model.keys()
        for name in sorted(view.models - new):
            self._by_model[name].remove(view)
        for name in sorted(new - view.models):
            self._by_model[name].append(view)
        view.models = new

    def joined(self, facts: ServerFacts) -> None:
        """A server is there from now on, under a name that none had before."""
        if facts.name in self.views:
            raise LocalProtocolError(f"a server {facts.name!r} has been there before")
        self.views[facts.name] = view = View(facts=facts, models=set())
        self._serves(view, facts.models)

    def lost(self, server: str, now_s: float) -> list[tuple[Request, str | None]]:
        """A server is gone: who takes over each request that it held, in the order of arrival."""
        view = self.views[server]
        view.alive = False
        self._serves(view, ())
        orphans = sorted((entry[0] for entry in view.held.values()), key=lambda each: each.number)
        view.held.clear()
        for request in orphans:
            self._sent.pop(request.number, None)
        return [(request, self.submit(request, now_s)) for request in orphans]

    # What choosers ask.

    def with_model(self, model: str) -> Sequence[View]:
        """Servers that are there and have a model, but for those that sent this request back."""
        views = self._by_model.get(model, [])
        if not self._excluded:
            return views
        return [view for view in views if view.facts.name not in self._excluded]

    def may_take(self, view: View, model: str) -> bool:
        """Whether a server is one of these."""
        return model in view.models and view.facts.name not in self._excluded

    def cost_s(self, view: View, model: str) -> float:
        """Core time that one more request of a model costs a server: less where others of it
        wait, with which it shares a run, and where its weights are."""
        facts, waiting = self.models[model], view.waiting.get(model, 0)
        saved_s = view.resident_s.get(model, 0.0)
        if not waiting:
            return max(facts.alone_s - saved_s, 0.0)
        if waiting >= facts.frames_max:  # runs are full whatever it does
            return max(facts.batched_s - saved_s / facts.frames_max, 0.0)
        return facts.marginal_s(waiting) + max(facts.decrypt_s - saved_s, 0.0) / (waiting + 1)


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
    """Where most of the model's weights are, or others of it wait, unless that server has a
    quarter more to do than the others on average (V. Mirrokni et al., "Consistent Hashing with
    Bounded Loads", 2018); else the least loaded one."""

    def choose(self, balancer: Balancer, request: Request, now_s: float) -> View | None:
        """By resident decryption time, then by backlog."""
        views = balancer.with_model(request.model)
        if not views:
            return None
        left_s = {id(view): view.left_s(now_s) for view in views}
        own_s = balancer.models[request.model].alone_s
        most_s = _BOUND * sum(left_s.values()) / len(views) + own_s
        return min(
            views,
            key=lambda view: (
                left_s[id(view)] > most_s,
                -max(
                    view.resident_s.get(request.model, 0.0),
                    float(view.waiting.get(request.model, 0) > 0),
                ),
                left_s[id(view)],
            ),
        )


class LeastPressed:
    """Memory and compute in balance: the server whose share of all work and whose share of all
    weights that are wanted are least, after Lasagna's global balancer (Y. Li et al., SoCC 2021)."""

    def choose(self, balancer: Balancer, request: Request, now_s: float) -> View | None:
        """By the sum of both shares, with the request."""
        views = balancer.with_model(request.model)
        if len(views) < 2:
            return views[0] if views else None
        work_s = [view.left_s(now_s) + balancer.cost_s(view, request.model) for view in views]
        wanted = [_wanted_share(balancer, view, request.model) for view in views]
        all_s, all_wanted = sum(work_s) or 1.0, sum(wanted) or 1.0
        scores = [
            own_s / all_s + own / all_wanted for own_s, own in zip(work_s, wanted, strict=True)
        ]
        return views[scores.index(min(scores))]


def _wanted_share(balancer: Balancer, view: View, model: str) -> float:
    """Weights of all models that wait at a server, and of one more, in parts of its memory."""
    names = {name for name, count in view.waiting.items() if count} | {model}
    wanted = sum(balancer.models[name].weight_bytes for name in names)
    return wanted / view.facts.memory_bytes


class Earliest:
    """The server that will be done with the request first, among those worth looking at.

    These are the servers that its model's last requests went to, where others of it wait or its
    weights are, and a few by a hash of its number, the less loaded of which keeps a hot model from
    staying where it is. What a request costs delays others as well, the more of them wait: so it
    goes where it has company or its weights are, if the difference is small.
    """

    def __init__(self, looked_at: int = 4) -> None:
        self._looked_at = looked_at
        self._recent: dict[str, list[View]] = {}

    def choose(self, balancer: Balancer, request: Request, now_s: float) -> View | None:
        """By backlog plus what the request adds to it."""
        views = balancer.with_model(request.model)
        if not views:
            return None
        recent = self._recent.get(request.model, ())
        looked_at = [view for view in recent if balancer.may_take(view, request.model)]
        looked_at += sampled(views, request, _SAMPLED)
        # A request of a higher priority by one waits for half of what is there, or so.
        ahead = 2.0 ** -max(0, min(request.priority, _PRIORITY_MAX))
        # The same number everywhere: only what company and weights save makes a difference, not
        # how many requests are worth a second here and there.
        others = sum(sum(view.waiting.values()) for view in looked_at) / len(looked_at)
        best, least_s = looked_at[0], float("inf")
        for view in looked_at:
            cost_s = balancer.cost_s(view, request.model) * (1 + _OTHERS_SHARE * others)
            done_s = view.left_s(now_s) * ahead + cost_s
            if done_s < least_s:
                best, least_s = view, done_s
        if not recent or recent[0] is not best:
            rest = [view for view in recent if view is not best and view.alive]
            self._recent[request.model] = [best, *rest][: self._looked_at]
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
