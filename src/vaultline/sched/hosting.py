"""Which models a server has, gets and gives up, and the memory that each of these takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from vaultline.core.errors import LocalProtocolError
from vaultline.sched.events import Action, Decline, Install, Remove
from vaultline.sched.facts import ModelFacts, ServerFacts
from vaultline.sched.holdings import Holdings


@dataclass(slots=True)
class _Hosted:
    """A model that is here, or will be.

    Attributes:
        requests: that wait or run.
        since_s: when one ended last, or when the first one came.
        missing: cores that have yet to install it.
        busy: cores that install it now.
        begun: its memory is held.
        leaving: it goes when it has no requests any more.
        failed: some core could not install it.
    """

    facts: ModelFacts
    requests: int = 0
    since_s: float = 0.0
    missing: set[int] = field(default_factory=set)
    busy: set[int] = field(default_factory=set)
    begun: bool = True
    leaving: bool = False
    failed: bool = False


class Hosting:
    """The models of one server.

    A model is installed on every core, one after another or at once, each for ``install_s``. Its
    memory is held as soon as the first core begins; until then it is *pledged*: no request
    begins that would take it, so that enough is free once those that have begun are through.

    Attributes:
        models: here, or wanted.
        pending: of these, those that some core has yet to begin to install, the oldest first.
        most: what the neediest run of one request takes.
        reserve: what a request of any model may come to carry.
        changes: how many times this server was told to install or remove a model.
    """

    def __init__(
        self, facts: ServerFacts, catalogue: Mapping[str, ModelFacts], memory: Holdings
    ) -> None:
        self._facts, self._catalogue, self._memory = facts, catalogue, memory
        self.models = {name: catalogue[name] for name in facts.models}
        self._hosted = {name: _Hosted(model) for name, model in self.models.items()}
        self.pending: dict[str, None] = {}
        self._cores: dict[int, tuple[str, float]] = {}
        self._leaving: set[str] = set()
        self.changes = 0
        memory.fixed += sum(self._fixed_bytes(model) for model in self.models.values())
        self.most = self.reserve = 0
        self._serving: tuple[str, ...] | None = None
        self._changed()

    # What is asked.

    def names(self) -> Iterable[str]:
        """Models that are here or wanted."""
        return self.models

    def here(self, name: str) -> bool:
        """Whether a model's groups can be run."""
        hosted = self._hosted[name]
        return not (hosted.missing or hosted.busy)

    def takes(self, name: str) -> bool:
        """Whether requests for a model may come: it is here or will be, and is not to go."""
        hosted = self._hosted.get(name)
        return hosted is not None and not hosted.leaving

    def fixed_bytes(self) -> int:
        """Held for all models."""
        hosted = self._hosted.values()
        return sum(self._fixed_bytes(each.facts) for each in hosted if each.begun)

    def requests(self, name: str) -> int:
        """How many requests of a model wait or run."""
        return self._hosted[name].requests

    def since_s(self, name: str) -> float:
        """Since when a model that has requests has answered none."""
        return self._hosted[name].since_s

    def serving(self) -> tuple[str, ...]:
        """Models for which requests may come."""
        if self._serving is None:
            self._serving = tuple(name for name in self.models if self.takes(name))
        return self._serving

    @property
    def busy(self) -> bool:
        """Whether something is being installed, or will be."""
        return bool(self._cores or self.pending)

    def busy_with(self, core: int) -> str | None:
        """The model that a core installs."""
        found = self._cores.get(core)
        return found[0] if found else None

    def left_s(self, now_s: float) -> float:
        """Core time that installations will take."""
        if not self.busy:
            return 0.0
        left_s = sum(
            max(0.0, started_s + self.models[name].install_s - now_s)
            for name, started_s in self._cores.values()
        )
        for name in self.pending:
            left_s += len(self._hosted[name].missing) * self.models[name].install_s
        return left_s

    def room_to_begin(self, *, urgent: bool) -> int:
        """Bytes that may be promised to requests that begin, so that all that have begun can go
        on, one at a time at least; what urgent ones may need is kept free by the others."""
        memory = self._memory
        taken = memory.fixed + memory.pledged + memory.promised + self.most
        return memory.memory - taken - (0 if urgent else self.reserve)

    def missing_bytes(self, core: int) -> int | None:
        """What has to be evicted before a core may begin with the oldest pending model; None if
        this core has done so already, or if others have to end first."""
        hosted = self._hosted[next(iter(self.pending))]
        if core not in hosted.missing:
            return None
        if hosted.begun:
            return 0
        memory, more = self._memory, self._fixed_bytes(hosted.facts)
        if memory.fixed + more + memory.promised + self.most > memory.memory:
            return None
        return more - memory.free

    # What happens.

    def entered(self, name: str, now_s: float) -> None:
        """A request has come."""
        hosted = self._hosted[name]
        if not hosted.requests:
            hosted.since_s = now_s
        hosted.requests += 1

    def left(self, name: str, count: int, now_s: float | None) -> None:
        """Requests have ended; without a time, before they began."""
        hosted = self._hosted[name]
        hosted.requests -= count
        if now_s is not None:
            hosted.since_s = now_s

    def wanted(self, name: str, draining: bool) -> list[Action]:
        """A model is to be here from now on."""
        self.changes += 1
        hosted = self._hosted.get(name)
        if hosted is not None and not hosted.failed:
            hosted.leaving = False
            self._leaving.discard(name)
            self._serving = None
            return []
        reason = self._against(name, draining)
        if reason is not None:
            return [Decline(model=name, reason=reason)]
        model = self._catalogue[name]
        missing = set(range(self._facts.cores))
        self._hosted[name] = _Hosted(model, missing=missing, begun=False)
        self.models[name] = model
        self.pending[name] = None
        self._memory.pledged += self._fixed_bytes(model)
        self._changed()
        return []

    def _against(self, name: str, draining: bool) -> str | None:
        if name not in self._catalogue:
            return "this server was not granted the model"
        if draining:
            return "the server is shutting down"
        if name in self._hosted:
            return "it could not be installed, and some cores are still busy with it"
        model, memory = self._catalogue[name], self._memory
        most = max(self.most, model.least_bytes)
        needed = memory.fixed + memory.pledged + self._fixed_bytes(model) + most
        if needed > memory.memory:
            return f"it takes {needed - memory.memory:,} bytes more than the server has"
        return None

    def unwanted(self, name: str) -> None:
        """A model is to go once none of its requests is left."""
        self.changes += 1
        if name in self._hosted:
            self._hosted[name].leaving = True
            self._leaving.add(name)
            self._serving = None

    def begin(self, core: int, now_s: float) -> Install:
        """A core begins with the oldest pending model."""
        name = next(iter(self.pending))
        hosted = self._hosted[name]
        if not hosted.begun:
            hosted.begun = True
            self._memory.pledged -= self._fixed_bytes(hosted.facts)
            self._memory.fixed += self._fixed_bytes(hosted.facts)
        hosted.missing.discard(core)
        hosted.busy.add(core)
        if not hosted.missing:
            del self.pending[name]
        self._cores[core] = name, now_s
        return Install(core=core, model=name)

    def installed(self, core: int, now_s: float) -> None:
        """A core is through with an installation."""
        name, _ = self._cores.pop(core)
        hosted = self._hosted[name]
        hosted.busy.discard(core)
        hosted.since_s = now_s

    def failed(self, core: int, reason: str) -> tuple[str, list[Action]]:
        """A core could not install a model: it goes as soon as no core is busy with it."""
        name, _ = self._cores.pop(core)
        hosted = self._hosted[name]
        hosted.busy.discard(core)
        hosted.missing.clear()
        first = not hosted.failed
        hosted.failed = hosted.leaving = True
        self._leaving.add(name)
        self.pending.pop(name, None)
        self._serving = None
        return name, [Decline(model=name, reason=reason)] if first else []

    def done_for(self, *, draining: bool) -> list[str]:
        """Models that can go now."""
        if not self._leaving and not (draining and self.pending):
            return []
        found = [name for name in self._leaving if self._may_go(name)]
        if draining:
            found += [name for name in self.pending if self._may_go(name) and name not in found]
        return sorted(found)

    def _may_go(self, name: str) -> bool:
        hosted = self._hosted[name]
        return not hosted.requests and not hosted.busy

    def forget(self, name: str) -> list[Action]:
        """A model is gone."""
        hosted = self._hosted[name]
        if not self._may_go(name):
            raise LocalProtocolError(f"model {name} can't go: it is in use")
        if hosted.begun:
            self._memory.fixed -= self._fixed_bytes(hosted.facts)
        else:
            self._memory.pledged -= self._fixed_bytes(hosted.facts)
        del self._hosted[name], self.models[name]
        self.pending.pop(name, None)
        self._leaving.discard(name)
        self._changed()
        return [Remove(model=name)] if hosted.begun else []

    def _fixed_bytes(self, model: ModelFacts) -> int:
        return self._facts.cores * model.fixed_bytes

    def _changed(self) -> None:
        models = self.models.values()
        self.most = max((model.least_bytes for model in models), default=0)
        self.reserve = max((model.carried_bytes for model in models), default=0)
        self._serving = None
