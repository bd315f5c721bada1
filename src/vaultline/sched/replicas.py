"""Which servers have which models: models that grow hot gain replicas, cold ones lose them.

Pure: told of arrivals and of the balancer's views, asked from time to time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

from vaultline.core.errors import InputError
from vaultline.sched.balancer import Balancer, View
from vaultline.sched.facts import ModelFacts, ServerFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A server is to install a model, or to remove it."""

    server: str
    model: str
    there: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSettings:
    """When replicas come and go.

    Attributes:
        grow_at, shrink_at: of the cores of a model's servers, the part that its own requests
            take: more than the first, and it gains a server; less than the second with one
            server fewer, and it loses one. Twofold apart at least, so that neither change
            calls for the other.
        memory_s: how long ago a request may have come to count a third.
        hold_s: after a change of a model's replicas, before the next one; and how long a cluster
            is watched before the first.
        replicas_min: that every model keeps.
    """

    grow_at: float = 0.5
    shrink_at: float = 0.2
    memory_s: float = 10.0
    hold_s: float = 20.0
    replicas_min: int = 1

    def __post_init__(self) -> None:
        fine = 0 < 2 * self.shrink_at <= self.grow_at and min(self.memory_s, self.hold_s) > 0
        if not fine or self.replicas_min < 1:
            raise InputError(
                "replicas would come and go all the time",
                got=str(self),
                expected="shrink_at at most half of grow_at; times above 0; a replica at least",
            )


class ReplicaControl:
    """Decides which servers gain or lose which models.

    A model's load is the core time that its requests take a second, as if alone in full runs. A
    model gains the server that has room for it and least to do. If none has room, the coldest
    model of some server that can spare it is removed there first. Nothing changes for a model
    sooner than ``hold_s`` after its last change.
    """

    def __init__(self, balancer: Balancer, settings: ReplicaSettings | None = None) -> None:
        self._balancer = balancer
        self.settings = settings or ReplicaSettings()
        self._load: dict[str, tuple[float, float]] = {}
        self._changed_s: dict[str, float] = {}
        self._since_s: float | None = None

    def arrived(self, model: str, now_s: float) -> None:
        """A request has been submitted."""
        if self._since_s is None:
            self._since_s = now_s
        facts = self._balancer.models.get(model)
        if facts is not None:
            load = self._faded(model, now_s) + facts.batched_s / self.settings.memory_s
            self._load[model] = load, now_s

    def cores(self, model: str, now_s: float) -> float:
        """How many cores a model's requests keep busy, by what has come lately."""
        watched_s = now_s - (self._since_s if self._since_s is not None else now_s)
        seen = 1 - exp(-watched_s / self.settings.memory_s)  # of a steady stream, by now
        return self._faded(model, now_s) / max(seen, 0.1)

    def _faded(self, model: str, now_s: float) -> float:
        load, at_s = self._load.get(model, (0.0, now_s))
        return load * exp((at_s - now_s) / self.settings.memory_s)

    def decide(self, now_s: float) -> list[Change]:
        """What is to change now; the balancer and the servers have to be told."""
        settings = self.settings
        if self._since_s is None or now_s - self._since_s < settings.hold_s:
            return []
        changes: list[Change] = []
        for name in sorted(self._balancer.models):
            if now_s - self._changed_s.get(name, -settings.hold_s) < settings.hold_s:
                continue
            views = [view for view in self._balancer.with_model(name) if view.alive]
            load, cores = self.cores(name, now_s), sum(view.facts.cores for view in views)
            if load > settings.grow_at * cores or len(views) < settings.replicas_min:
                changes += self._grow(name, now_s, changes)
            elif len(views) > settings.replicas_min:
                changes += self._shrink(name, load, views, now_s)
        return changes

    def _grow(self, name: str, now_s: float, changes: Sequence[Change]) -> list[Change]:
        """A new server for a model, or room for it on one."""
        told = {change.server for change in changes}
        views = [
            view
            for view in self._balancer.views.values()
            if view.alive and name not in view.models and view.facts.name not in told
        ]
        views.sort(key=lambda view: (view.left_s(now_s), view.facts.name))
        model = self._balancer.models[name]
        for view in views:
            here = [self._balancer.models[each] for each in view.models]
            if spare_bytes(view.facts, [*here, model]) >= 0:
                return [self._change(view, name, now_s, there=True)]
        for view in views:
            cold = self._coldest(view, name, now_s)
            if cold is not None:
                return [self._change(view, cold, now_s, there=False)]
        return []

    def _coldest(self, view: View, name: str, now_s: float) -> str | None:
        """A model of a server without which there would be room for a hotter one, and that has
        other servers which are not busy with it."""
        settings, models = self.settings, self._balancer.models
        for each in sorted(view.models, key=lambda other: (self.cores(other, now_s), other)):
            load, rest = self.cores(each, now_s), len(self._balancer.with_model(each)) - 1
            held = now_s - self._changed_s.get(each, -settings.hold_s) < settings.hold_s
            others = [models[other] for other in view.models if other != each]
            spare = spare_bytes(view.facts, [*others, models[name]])
            cold = load <= settings.shrink_at * rest * view.facts.cores
            if rest >= settings.replicas_min and cold and not held and spare >= 0:
                return each
        return None

    def _shrink(self, name: str, load: float, views: Sequence[View], now_s: float) -> list[Change]:
        """One server fewer for a model, where there is most to do."""
        busiest = max(views, key=lambda view: (view.left_s(now_s), view.facts.name))
        cores = sum(view.facts.cores for view in views) - busiest.facts.cores
        if load >= self.settings.shrink_at * cores:
            return []
        return [self._change(busiest, name, now_s, there=False)]

    def _change(self, view: View, name: str, now_s: float, *, there: bool) -> Change:
        self._changed_s[name] = now_s
        return Change(server=view.facts.name, model=name, there=there)


def spare_bytes(facts: ServerFacts, models: Sequence[ModelFacts]) -> int:
    """What a server has left beside these models and the neediest run of one request."""
    fixed = facts.fixed_bytes + facts.cores * sum(model.fixed_bytes for model in models)
    return facts.memory_bytes - fixed - max((model.least_bytes for model in models), default=0)
