"""The open loop: when requests leave, what counts as latency, and what a summary says of it."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from vaultline.core.errors import InputError, PeerError, RefusedError
from vaultline.sched.events import Request
from vaultline.serve.load import Frame, OpenLoop, Sent, summarize

FRAMES = {"m": [[np.zeros(1)], [np.ones(1)]], "n": [[np.zeros(2)]]}


@dataclass
class FakeClock:
    """Time passes only while somebody sleeps or works."""

    time_s: float = 100.0

    def now_s(self) -> float:
        return self.time_s

    def sleep(self, seconds: float) -> None:
        self.time_s += seconds


@dataclass
class FakeServer:
    """Answers the request before, when the next one comes: so answers overlap with sending."""

    clock: FakeClock
    takes_s: float = 0.0
    ends: dict[int, Exception] = field(default_factory=dict)
    never: frozenset[int] = frozenset()
    got: list[tuple[float, int, Frame]] = field(default_factory=list)

    def submit(self, request: Request, frame: Frame) -> Future[Any]:
        self.clock.time_s += self.takes_s
        self.got.append((self.clock.time_s - 100.0, request.number, frame))
        future: Future[Any] = Future()
        error = self.ends.get(request.number)
        if request.number not in self.never:
            future.set_exception(error) if error else future.set_result("answer")
        return future


def requests(*times: float, deadline_s: float | None = None) -> list[Request]:
    return [
        Request(number=number, model="m", arrived_s=time, deadline_s=deadline_s)
        for number, time in enumerate(times)
    ]


def ran(server: FakeServer, asked: list[Request], patience_s: float = 0.0) -> list[Sent]:
    return OpenLoop(server.submit, FRAMES, server.clock).run(asked, patience_s=patience_s)


def test_each_request_leaves_when_it_is_due_with_inputs_in_turn() -> None:
    server = FakeServer(FakeClock())
    sent = ran(server, requests(0.5, 1.0, 1.25))
    assert [(when_s, number) for when_s, number, _ in server.got] == [(0.5, 0), (1.0, 1), (1.25, 2)]
    assert [frame[0][0] for _, _, frame in server.got] == [0, 1, 0]
    assert all(each.answered and each.late_s == 0 for each in sent)


def test_a_late_generator_makes_latencies_longer_and_says_so() -> None:
    server = FakeServer(FakeClock(), takes_s=1.0)  # sending itself blocks
    sent = ran(server, requests(0.0, 0.1, 0.2))
    assert [each.latency_s for each in sent] == pytest.approx([1.0, 1.9, 2.8])
    summary = summarize(sent)
    assert summary.lagging
    assert summary.late is not None
    assert summary.late.max_s == pytest.approx(1.8)


def test_a_generator_in_time_does_not_lag() -> None:
    assert not summarize(ran(FakeServer(FakeClock()), requests(0.0, 0.1, 0.2))).lagging


def test_all_at_once_is_no_rate_that_could_be_missed() -> None:
    summary = summarize(ran(FakeServer(FakeClock(), takes_s=0.5), requests(0.0, 0.0, 0.0)))
    assert (summary.offered_per_s, summary.lagging) == (0.0, False)
    assert summary.achieved_per_s == pytest.approx(3 / 1.5)


def test_refused_failed_and_unanswered_are_told_apart() -> None:
    ends = {0: RefusedError("too late"), 1: PeerError("all servers are lost")}
    server = FakeServer(FakeClock(), ends=ends, never=frozenset({2}))
    sent = ran(server, requests(0.0, 1.0, 2.0, 3.0))
    summary = summarize(sent)
    assert (summary.answered, summary.refused, summary.failed, summary.unanswered) == (1, 1, 1, 1)
    assert summary.reasons == {"too late": 1, "all servers are lost": 1}
    assert sent[2].latency_s is None
    assert summary.all is not None
    assert summary.all.count == 1, "latencies are of answers"


def test_an_answer_after_its_deadline_is_missed() -> None:
    server = FakeServer(FakeClock(), takes_s=1.0)
    summary = summarize(ran(server, requests(0.0, 0.0, 0.0, deadline_s=2.5)))
    assert (summary.answered, summary.missed) == (3, 1)


def test_an_unknown_model_is_refused_before_anything_is_sent() -> None:
    server = FakeServer(FakeClock())
    with pytest.raises(InputError, match="not served"):
        ran(server, [Request(number=0, model="zzz", arrived_s=0.0)])
    assert not server.got
