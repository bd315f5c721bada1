"""A serving worker under any orders of a well-behaved host: nothing is lost, nothing leaks."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from server_cases import perceptron

from vaultline.attest.server_grant import ServerGrant
from vaultline.core.serving import (
    DoneReply,
    EvictCommand,
    FailedReply,
    InstallCommand,
    RemoveCommand,
)
from vaultline.enclave.simulated_quotes import SimulatedProvider
from vaultline.graph.engine import run_plain
from vaultline.testing.attestation import MEASUREMENT, devroot
from vaultline.testing.servermodels import (
    SealedModel,
    feeds_of,
    granted_bytes,
    make_grant,
    seal_groups,
)
from vaultline.testing.serverworker import ServerThread

CORES = 2
#: Widths of the layers, and the most requests of a run of each step group.
SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "one": ((30, 40, 20, 10), (1, 3, 2)),
    "two": ((50, 30, 60), (2, 4)),
    "three": ((64, 8), (4,)),
}
Key = tuple[int, int]


@cache
def sealed() -> tuple[SealedModel, ...]:
    folder, models = Path(mkdtemp()), []
    for name, (widths, frames) in SHAPES.items():
        model = perceptron(folder, name, *widths)
        groups = [(2 * number, 2 * number + 2) for number in range(len(frames))]
        models.append(seal_groups(model, groups, folder, name=name, frames=frames))
    return tuple(models)


def grants(spare: float) -> ServerGrant:
    """With room for all models and a share of all weights and of some messages."""
    models = sealed()
    grant = make_grant(models, memory_bytes=1, cores=CORES)
    memory = granted_bytes(grant) + CORES * sum(model.engine_bytes for model in models)
    weights = sum(model.kept_bytes(g) for model in models for g in range(len(model.stages)))
    return replace(grant, memory_bytes=memory + int(spare * (weights + 8192)))


@dataclass(slots=True)
class Host:
    """What a host knows of its worker; it never asks for what it knows to be impossible."""

    worker: ServerThread
    installed: set[int] = field(default_factory=set)
    waiting: dict[Key, list[int]] = field(default_factory=dict)
    kept: set[Key] = field(default_factory=set)
    #: By core: what it does, for which requests, and whether weights are to stay.
    running: dict[int, tuple[Key | int, list[int], bool]] = field(default_factory=dict)
    doomed: set[Key] = field(default_factory=set)
    submitted: int = 0
    answered: list[int] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)

    def busy(self, model: int) -> bool:
        keys = [what for what, _, _ in self.running.values()]
        return any(
            what == model or (not isinstance(what, int) and what[0] == model) for what in keys
        )

    def install(self, model: int, core: int) -> None:
        if model not in self.installed and core not in self.running and not self.busy(model):
            self.worker.tell(InstallCommand(core=core, model=model))
            self.running[core] = (model, [], False)

    def remove(self, model: int) -> None:
        if model in self.installed and not self.busy(model):
            self.worker.tell(RemoveCommand(model=model))
            self.installed.discard(model)
            self.kept = {key for key in self.kept if key[0] != model}
            for key in [key for key in self.waiting if key[0] == model]:
                self.failed += self.waiting.pop(key)

    def evict(self, key: Key) -> None:
        if key[0] in self.installed and key not in [what for what, _, _ in self.running.values()]:
            self.worker.tell(EvictCommand(model=key[0], group=key[1]))
            self.kept.discard(key)

    def run(self, key: Key, core: int, count: int, *, keep: bool) -> None:
        model, group = key
        if model not in self.installed or core in self.running:
            return
        stages = self.worker.models[model].stages
        count = min(count, stages[group].program.settings.frames_per_pass)
        inputs = []
        if group == 0:
            numbers = list(range(self.submitted, self.submitted + count))
            self.submitted += count
            inputs = [feeds_of(self.worker.models[model].model, number) for number in numbers]
        else:
            queue = self.waiting.get(key, [])
            numbers, queue[:] = queue[:count], queue[count:]
        if numbers:
            self.worker.begin(core, model, group, numbers, keep=keep, inputs=inputs)
            self.running[core] = (key, numbers, keep)

    def hear(self) -> None:
        """One reply."""
        reply = self.worker.reply()
        what, numbers, keep = self.running.pop(reply.core)
        done = isinstance(reply, DoneReply)
        if isinstance(what, int):
            self.installed |= {what} if done else set()
            return
        model, group = what
        if done:
            self.kept |= {what} if keep else set()
            if group == len(self.worker.models[model].stages) - 1:
                for number in numbers:
                    self.check(model, number)
                self.answered += numbers
            else:
                self.waiting.setdefault((model, group + 1), []).extend(numbers)
        else:
            assert isinstance(reply, FailedReply)
            assert reply.code == "BudgetExceededError"
            self.failed += numbers
            self.doomed.add(what)
        if what not in [other for other, _, _ in self.running.values()] and what in self.doomed:
            self.doomed.discard(what)
            self.kept.discard(what)

    def check(self, model: int, number: int) -> None:
        answer = self.worker.answer(model, number)
        plain = self.worker.models[model].model
        for name, right in run_plain(plain, feeds_of(plain, number)).items():
            np.testing.assert_allclose(answer.outputs[name], right, rtol=1e-4, atol=1e-5)

    def settle(self) -> None:
        """Hear everything, then compare what is held with what must be, to the byte."""
        while self.running:
            self.hear()
        models, ledger = self.worker.models, self.worker.server.ledger
        self.worker.wait_obeyed()
        carried = sum(
            len(queue) * models[model].layout(group).message_bytes
            for (model, group), queue in self.waiting.items()
        )
        held = dict(ledger.held)
        assert held["resident"] == sum(
            models[model].kept_bytes(group) for model, group in self.kept
        )
        assert held["engine"] == CORES * sum(models[model].engine_bytes for model in self.installed)
        rest = sum(held.values()) - held["resident"] - held["engine"]
        assert rest == granted_bytes(self.worker.grant) + carried
        assert held["tile"] == held["activation"] == 0


KEYS = [
    (model, group)
    for model, (_, frames) in enumerate(SHAPES.values())
    for group in range(len(frames))
]
EVENTS = st.one_of(
    st.tuples(st.just("install"), st.integers(0, 2), st.integers(0, CORES - 1)),
    st.tuples(st.just("remove"), st.integers(0, 2)),
    st.tuples(st.just("evict"), st.sampled_from(KEYS)),
    *[
        st.tuples(
            st.just("run"),
            st.sampled_from(KEYS),
            st.integers(0, CORES - 1),
            st.integers(1, 4),
            st.booleans(),
        )
    ]
    * 4,
    st.tuples(st.just("hear")),
    st.tuples(st.just("settle")),
)


def finish(host: Host) -> None:
    """Bring every request that is here to its end, one after the other."""
    for model, group in KEYS:
        while host.waiting.get((model, group)):
            host.run((model, group), 0, 4, keep=False)
            host.hear()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(events=st.lists(EVENTS, min_size=20, max_size=60), spare=st.sampled_from((0.0, 0.3, 2.0)))
def test_requests_are_answered_and_memory_is_accounted_for(
    events: list[tuple[object, ...]], spare: float
) -> None:
    provider = SimulatedProvider(devroot().platform, MEASUREMENT)
    with ServerThread(sealed(), grants(spare), provider) as worker:
        host = Host(worker)
        for model in range(len(SHAPES)):
            host.install(model, 0)
            host.hear()
        for what, *arguments in events:
            if what == "run":
                key, core, count, keep = arguments
                host.run(key, core, count, keep=keep)  # type: ignore[arg-type]
            elif what != "hear":
                getattr(host, str(what))(*arguments)
            elif host.running:
                host.hear()
        host.settle()
        finish(host)
        host.settle()
        assert sorted(host.answered + host.failed) == list(range(host.submitted))
        for model in tuple(host.installed):
            host.remove(model)
        host.settle()
        assert worker.end() is None
        assert worker.server.ledger.peak["resident"] <= worker.grant.memory_bytes
