"""A server's decisions carried out: what worker and gateway are told, and a replay of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultline.core.control import StageMetrics
from vaultline.core.errors import RemoteProtocolError
from vaultline.core.serving import (
    DoneReply,
    EvictCommand,
    FailedReply,
    HostCommand,
    InstallCommand,
    RemoveCommand,
    RunCommand,
)
from vaultline.host.driver import Buffer, ServerDriver, replay
from vaultline.sched.events import Action
from vaultline.sched.facts import ModelFacts
from vaultline.sched.policies import policy
from vaultline.sched.replay import (
    ActionEntry,
    EventEntry,
    LogEntry,
    RanEntry,
    decode,
    encode,
)
from vaultline.sched.server import Server
from vaultline.sched.wire import (
    AnsweredMessage,
    DrainedMessage,
    DrainMessage,
    GatewayMessage,
    HostedModel,
    HostMessage,
    InstallMessage,
    RefusedRequestMessage,
    RemoveMessage,
    ReportedMessage,
    SubmitMessage,
)
from vaultline.testing.serving import group, model, server

MODELS = (
    model("one", group(4.0)),
    model("two", group(6.0), group(8.0, output_mib=0.1)),
    model("big", group(14.0), group(10.0)),
)
NAMES = tuple(each.name for each in MODELS)


def hosted(facts: ModelFacts) -> HostedModel:
    return HostedModel(facts=facts, vault=facts.name, request_bytes=10, answer_bytes=5)


class Stand:
    """A driver between a worker and a gateway that only take notes; the worker is told when to be
    done."""

    def __init__(
        self,
        policy_name: str = "vaultline",
        *,
        cores: int = 1,
        mib: float = 32,
        held_max: int = 1000,
        here: Sequence[str] = NAMES,
    ) -> None:
        facts = server("s", here, cores=cores, mib=mib)
        by_name = {each.name: each for each in MODELS}
        self.server = Server(facts, by_name, policy(policy_name).local())
        self.commands: list[tuple[HostCommand, tuple[bytes, ...]]] = []
        self.said: list[tuple[HostMessage, tuple[bytes, ...]]] = []
        self.log: list[LogEntry] = []
        self.driver = ServerDriver(
            self.server,
            [hosted(each) for each in MODELS],
            self._to_worker,
            self._to_gateway,
            self.log.append,
            held_bytes_max=held_max,
        )
        self.busy: dict[int, InstallCommand | RunCommand] = {}
        self.now_s = 0.0
        self.replays = False

    def _to_worker(self, command: HostCommand, sealed: Sequence[Buffer]) -> None:
        self.commands.append((command, tuple(map(bytes, sealed))))
        if isinstance(command, InstallCommand | RunCommand):
            assert self.replays or command.core not in self.busy
            self.busy[command.core] = command

    def _to_gateway(self, message: HostMessage, sealed: Sequence[Buffer]) -> None:
        self.said.append((message, tuple(map(bytes, sealed))))

    def later(self, seconds: float = 0.01) -> float:
        self.now_s += seconds
        return self.now_s

    def hear(self, message: GatewayMessage) -> None:
        sizes = self.driver.request_sizes(message)
        payloads = [str(message.number).encode().ljust(size, b".") for size in sizes]  # type: ignore[union-attr]
        self.driver.heard(message, payloads, self.later())

    def submit(self, number: int, name: str, deadline_s: float | None = None) -> None:
        self.hear(SubmitMessage(number=number, model=name, deadline_in_s=deadline_s))

    def done(self, core: int = 0) -> None:
        command = self.busy.pop(core)
        count = 0
        if isinstance(command, RunCommand):
            last = command.group + 1 == len(MODELS[command.model].groups)
            count = len(command.requests) if last else 0
        reply = DoneReply(
            core=core, answers=count, seconds=0.005, load_s=0.001, metrics=StageMetrics(passes=7)
        )
        assert len(self.driver.answer_sizes(reply)) == count
        requests = command.requests if isinstance(command, RunCommand) else ()
        answers = [f"a{number}".encode() for number in requests[:count]]
        self.driver.replied(reply, answers, self.later())

    def installed(self) -> Stand:
        self.driver.install(self.later())
        while self.busy:
            self.done(next(iter(self.busy)))
        assert self.driver.installed
        return self

    def finish(self) -> None:
        while self.busy:
            self.done(next(iter(self.busy)))

    def answered(self) -> dict[int, bytes]:
        return {
            message.number: sealed[0]
            for message, sealed in self.said
            if isinstance(message, AnsweredMessage)
        }

    def refused(self) -> dict[int, str]:
        return {
            message.number: message.reason
            for message, _ in self.said
            if isinstance(message, RefusedRequestMessage)
        }


def test_every_model_is_installed_once_by_cores_that_have_nothing_to_do() -> None:
    stand = Stand(cores=2, mib=64)
    stand.driver.install(0.0)
    assert sorted(stand.busy) == [0, 1]
    assert not stand.driver.installed
    stand.finish()
    assert stand.driver.installed
    installs = [command for command, _ in stand.commands]
    assert sorted(each.model for each in installs if isinstance(each, InstallCommand)) == [0, 1, 2]


def test_a_model_that_comes_later_is_installed_once_for_all_cores_and_goes_when_idle() -> None:
    stand = Stand(cores=2, mib=64, here=["one"]).installed()
    stand.submit(1, "one")
    stand.hear(InstallMessage(model="two"))
    assert stand.busy.pop(1) == InstallCommand(core=1, model=1)
    stand.driver.replied(_done(1), (), stand.later())
    stand.submit(2, "two")
    stand.finish()
    while replies := stand.driver.own_replies():  # the other core has nothing to do
        for reply in replies:
            stand.driver.replied(reply, (), stand.later())
    stand.finish()
    assert sorted(stand.answered()) == [1, 2]
    installs = [each for each, _ in stand.commands if isinstance(each, InstallCommand)]
    assert [each.model for each in installs] == [0, 1]
    stand.hear(RemoveMessage(model="two"))
    assert stand.commands[-1] == (RemoveCommand(model=1), ())
    stand.submit(3, "two")
    (refused,) = [m for m, _ in stand.said if isinstance(m, RefusedRequestMessage)]
    assert (refused.number, refused.elsewhere) == (3, True)


def _done(core: int) -> DoneReply:
    return DoneReply(core=core, answers=0, seconds=0.0, load_s=0.0, metrics=StageMetrics())


def test_a_worker_that_can_t_install_is_of_no_use() -> None:
    stand = Stand()
    stand.driver.install(0.0)
    with pytest.raises(RemoteProtocolError, match="can't install"):
        stand.driver.replied(FailedReply(core=0, code="X", message="no"), (), 1.0)


def test_a_request_waits_sealed_and_enters_with_its_first_run() -> None:
    stand = Stand().installed()
    stand.submit(7, "two")
    command, sealed = stand.commands[-1]
    assert isinstance(command, RunCommand)
    assert (command.model, command.group, command.requests) == (1, 0, (7,))
    assert sealed == (b"7.........",)
    stand.done()
    command, sealed = stand.commands[-1]
    assert isinstance(command, RunCommand)
    assert (command.group, command.requests, sealed) == (1, (7,), ())
    stand.done()
    assert stand.answered() == {7: b"a7"}


def test_what_is_evicted_is_told_before_the_run_that_needs_the_room() -> None:
    stand = Stand(mib=34).installed()
    for number, name in enumerate(["one", "two", "big"] * 6):
        stand.submit(number, name)
        stand.finish()
    kinds = [type(command) for command, _ in stand.commands]
    assert EvictCommand in kinds
    position = kinds.index(EvictCommand)
    assert RunCommand in kinds[position:]
    assert sorted(stand.answered()) == list(range(18))


def test_a_run_that_fails_ends_its_requests_with_the_reason() -> None:
    stand = Stand().installed()
    stand.submit(1, "one")
    stand.busy.clear()
    reply = FailedReply(core=0, code="RequestTamperedError", message="altered")
    assert stand.driver.answer_sizes(reply) == ()
    stand.driver.replied(reply, (), stand.later())
    assert stand.refused() == {1: "RequestTamperedError: altered"}
    stand.submit(2, "one")
    stand.finish()
    assert list(stand.answered()) == [2]


def test_a_deadline_counts_from_the_arrival() -> None:
    stand = Stand().installed()
    stand.submit(1, "one", deadline_s=1e-4)
    assert "deadline" in stand.refused()[1]
    stand.submit(2, "one", deadline_s=10.0)
    stand.finish()
    assert list(stand.answered()) == [2]


def test_a_flood_is_refused_with_a_reason_and_reports_count_it() -> None:
    stand = Stand(held_max=25).installed()
    for number in range(5):  # the first one runs at once; two wait
        stand.submit(number, "one")
    assert set(stand.refused()) == {3, 4}
    assert "wait already" in stand.refused()[3]
    report = stand.driver.report()
    assert isinstance(report, ReportedMessage)
    assert report.report.taken == 5
    assert report.metrics.refused == 2
    stand.finish()
    stand.submit(9, "one")
    stand.finish()
    assert sorted(stand.answered()) == [0, 1, 2, 9]


def test_draining_finishes_what_is_here_and_says_so_once() -> None:
    stand = Stand().installed()
    stand.submit(1, "two")
    stand.hear(DrainMessage())
    stand.submit(2, "one")
    assert "shutting down" in stand.refused()[2]
    assert not stand.driver.drained
    stand.finish()
    stand.hear(DrainMessage())
    said = [type(message) for message, _ in stand.said]
    assert said.count(DrainedMessage) == 1
    assert said[-2:] == [ReportedMessage, DrainedMessage]
    assert stand.driver.drained
    assert list(stand.answered()) == [1]


def test_metrics_are_the_server_s_and_the_worker_s() -> None:
    stand = Stand().installed()
    stand.submit(1, "one")
    stand.submit(2, "one")
    metrics = stand.driver.report().metrics
    assert metrics.queued == {"one": 1}
    assert sum(metrics.held_bytes.values()) <= stand.server.facts.memory_bytes
    stand.finish()
    metrics = stand.driver.report().metrics
    assert (metrics.runs, metrics.answered, metrics.worker.passes) == (2, 2, 7)
    assert metrics.busy_s["one"] > 0


def test_a_worker_s_clock_starts_with_a_command() -> None:
    stand = Stand().installed()
    assert stand.driver.oldest_s(stand.now_s) == 0
    stand.submit(1, "one")
    assert stand.driver.oldest_s(stand.now_s + 3) == pytest.approx(3)
    stand.finish()
    assert stand.driver.oldest_s(stand.now_s + 3) == 0


@pytest.mark.parametrize(
    "case",
    [
        "the gateway names a model that there is not",
        "the gateway sends a request twice",
        "the worker answers without a command",
        "the worker announces too few answers",
    ],
)
def test_a_peer_that_breaks_the_protocol_is_named(case: str) -> None:
    stand = Stand().installed()
    done = DoneReply(core=0, answers=0, seconds=0.0, load_s=0.0, metrics=StageMetrics())
    with pytest.raises(RemoteProtocolError):
        if "model" in case:
            stand.submit(1, "nobody")
        elif "twice" in case:
            stand.submit(1, "one")
            stand.submit(1, "one")
        elif "without" in case:
            stand.driver.answer_sizes(done)
        else:
            stand.submit(1, "one")
            stand.driver.answer_sizes(done)


STEPS = st.lists(
    st.one_of(st.sampled_from(["one", "two", "big"]), st.sampled_from([0, 1, 2]), st.just("drain")),
    max_size=60,
)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(STEPS, st.sampled_from(["vaultline", "fifo", "model-affinity-batch"]), st.integers(1, 2))
def test_every_request_ends_once_and_a_replay_of_the_log_decides_the_same(
    steps: list[str | int], name: str, cores: int
) -> None:
    stand = Stand(name, cores=cores, mib=48).installed()
    sent = 0
    for step in steps:
        if step == "drain":
            stand.hear(DrainMessage())
        elif isinstance(step, str):
            stand.submit(sent, step)
            sent += 1
        elif step in stand.busy:
            stand.done(step)
    stand.finish()
    ends = sorted([*stand.answered(), *stand.refused()])
    assert ends == list(range(sent))
    assert len(stand.said) == sent + 2 * stand.driver.drained

    entries = list(decode(b"".join(map(encode, stand.log)).splitlines()))
    again = Stand(name, cores=cores, mib=48)
    again.replays = True
    events = [entry.event for entry in entries if isinstance(entry, EventEntry)]
    actions = replay(again.driver, again.server, events)
    logged: list[Action] = [each.action for each in entries if isinstance(each, ActionEntry)]
    assert [action for some in actions for action in some] == logged
    runs = [each for each in entries if isinstance(each, RanEntry)]
    assert len(runs) == sum(isinstance(command, RunCommand) for command, _ in stand.commands)
