"""How `bench lasagna` goes about it: who is measured when, and what happens to one who can't be."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from vaultline.bench.lasagna import LasagnaRequest, bench_lasagna
from vaultline.bench.lasagna_results import Contender, LasagnaResult
from vaultline.bench.serving_runs import use_between
from vaultline.core.control import StageMetrics
from vaultline.core.errors import InfeasibleError, MachineError
from vaultline.sched.events import Request
from vaultline.sched.wire import ServerMetrics
from vaultline.serve.answers import Loss
from vaultline.serve.load import Frame
from vaultline.serve.status import GatewayStatus, ServerStatus

REQUEST = LasagnaRequest(
    models=("hot", "cold"),
    policies=("fifo", "round-robin", "least-loaded-batch", "vaultline"),
    requests=6,
    rounds=2,
    window_s=1e-9,
    kill_window_s=1e-9,
    patience_s=0.01,
)
INPUTS = {name: [[np.zeros(1)]] for name in REQUEST.models}


@dataclass
class FakeServing:
    """Answers at once; every request costs a second of a core, of its server in turn."""

    contender: Contender
    silent: bool = False
    refuses: bool = False
    got: list[Request] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)
    loses: bool = False
    killed_s: float = 0.0

    def submit(self, request: Request, frame: Frame) -> Future[Any]:
        self.got.append(request)
        future: Future[Any] = Future()
        if self.refuses:
            future.set_exception(MachineError("no"))
        elif not (self.silent and request.number >= 0):
            future.set_result("answer")
        return future

    def status(self, *, fresh: bool = True) -> GatewayStatus:
        busy = {name: float(sum(each.model == name for each in self.got)) for name in INPUTS}
        metrics = ServerMetrics(busy_s=busy, runs=len(self.got), loads=1)
        servers = tuple(
            ServerStatus(
                name=name,
                cores=1,
                memory_bytes=1,
                alive=name not in self.killed,
                in_flight=len(name),
                metrics=metrics,
            )
            for name in ("a", "bb")
        )
        loss = Loss(
            server="bb",
            code="",
            message="",
            heard_s=self.killed_s,
            lost_s=self.killed_s + 1.0,
            moved=3,
            recovered_s=self.killed_s + 2.5,
        )
        losing = self.loses and len(self.got) > 6
        return GatewayStatus(servers=servers, losses=(loss,) if self.killed or losing else ())

    def cpu_s(self) -> tuple[float, float, float]:
        return 0.1 * len(self.got), 0.2 * len(self.got), 0.0

    def kill(self, server: str) -> None:
        self.killed.append(server)
        self.killed_s = time.monotonic()


@dataclass
class FakeStarts:
    """Remembers who was started."""

    how: dict[str, dict[str, bool]] = field(default_factory=dict)
    infeasible: tuple[str, ...] = ()
    started: list[FakeServing] = field(default_factory=list)

    @contextmanager
    def __call__(self, contender: Contender) -> Iterator[FakeServing]:
        if contender.name in self.infeasible:
            raise InfeasibleError("does not fit")
        self.started.append(FakeServing(contender, **self.how.get(contender.name, {})))
        yield self.started[-1]


def measured(starts: FakeStarts, request: LasagnaRequest = REQUEST) -> LasagnaResult:
    told: list[tuple[int, int]] = []
    found = bench_lasagna(
        request, starts, INPUTS, lambda _, done, total: told.append((done, total))
    )
    assert told == sorted(told)
    return found


def test_all_contenders_take_turns_forth_and_back_and_paged_ones_less_often() -> None:
    starts = FakeStarts()
    measured(starts)
    names = [each.contender.name for each in starts.started]
    bounded = ["round-robin", "least-loaded-batch", "vaultline"]
    assert names[:5] == ["fifo.sgx1", "fifo.crypto", *bounded]
    assert names[5:8] == bounded[::-1]
    assert names[-1] == "vaultline", "with a server killed"
    assert len(names) == 5 + 3 + 2 * 5 + 1


def test_all_see_the_same_requests() -> None:
    starts = FakeStarts()
    measured(starts)
    seen = {
        tuple(each.model for each in serving.got if each.number >= 0)
        for serving in starts.started[:8]
    }
    assert len(seen) == 1
    assert len(seen.pop()) == REQUEST.requests


def test_every_workload_has_the_mix_of_the_one_that_saturates_and_exactly_its_rate() -> None:
    request = LasagnaRequest(requests=50)
    once = [each.model for each in request.workload(1.0, 50)]
    found = request.workload(20.0, 125)
    assert [each.model for each in found] == (once * 3)[:125]
    assert 125 / found[-1].arrived_s == pytest.approx(20.0)
    assert all(a.arrived_s < b.arrived_s for a, b in pairwise(found))
    faster = request.workload(40.0, 125)
    assert [each.arrived_s * 2 for each in faster] == pytest.approx([e.arrived_s for e in found])


def test_every_model_runs_before_anything_is_measured() -> None:
    starts = FakeStarts()
    found = measured(starts)
    first = starts.started[0].got[:6]
    assert [each.model for each in first] == ["hot", "cold"] * 3
    assert all(each.use.runs == 2 * REQUEST.requests for each in found.saturated), "two servers"


def test_a_baseline_that_cannot_run_is_skipped_with_its_reason() -> None:
    found = measured(FakeStarts(infeasible=("round-robin",)))
    assert "does not fit" in found.skipped["round-robin"]
    assert "round-robin" not in found.names()
    assert "vaultline" in found.names()


def test_ours_has_to_run() -> None:
    with pytest.raises(InfeasibleError):
        measured(FakeStarts(infeasible=("vaultline",)))


def test_servers_that_do_not_answer_are_an_error() -> None:
    with pytest.raises(MachineError, match="does not answer"):
        measured(FakeStarts(how={"vaultline": {"refuses": True}}))


def test_a_run_in_which_a_server_is_lost_is_not_taken_and_repeated_once() -> None:
    class LosesOnce(FakeStarts):
        def __call__(self, contender: Contender) -> Any:
            self.how = {"round-robin": {"loses": len(self.started) == 2}}
            return super().__call__(contender)

    starts = LosesOnce()
    found = measured(starts)
    assert [each.contender.name for each in starts.started[2:4]] == ["round-robin"] * 2
    assert ["round-robin, all at once" in text for text in found.repeated] == [True]
    assert found.skipped == {}
    assert sum(each.contender.name == "round-robin" for each in found.saturated) == 2


def test_who_keeps_losing_servers_is_skipped() -> None:
    found = measured(FakeStarts(how={"round-robin": {"loses": True}}))
    assert "was lost in a run" in found.skipped["round-robin"]
    assert "round-robin" not in found.names()


def test_who_still_waits_counts_as_long_as_it_has_waited() -> None:
    request = LasagnaRequest(
        models=REQUEST.models, policies=("vaultline",), requests=4, rounds=1, patience_s=0.02
    )

    class SilentLater(FakeStarts):
        def __call__(self, contender: Contender) -> Any:
            self.how = {"vaultline": {"silent": len(self.started) == 1}}
            return super().__call__(contender)

    request = replace(request, window_s=1e-9, kill_window_s=1e-9)
    found = measured(SilentLater(), request)
    (offered,) = found.offered
    assert offered.summary.unanswered == offered.summary.sent == 2
    assert offered.latency.mean_s >= 0.02
    assert not offered.keeps_up


def test_the_fullest_server_is_killed_and_nothing_is_lost() -> None:
    starts = FakeStarts()
    found = measured(starts)
    assert starts.started[-1].killed == ["bb"]
    killed = found.killed
    assert killed is not None
    assert (killed.lost, killed.doubled, killed.held) == (0, 0, 3)
    assert killed.noticed_s == pytest.approx(1.0, abs=0.1)
    assert killed.recovery_s == pytest.approx(2.5, abs=0.1)


def test_use_is_what_changed_between_two_reports() -> None:
    def status(runs: int, busy_s: float, streamed: int) -> GatewayStatus:
        metrics = ServerMetrics(
            runs=runs, busy_s={"m": busy_s}, worker=StageMetrics(streamed_bytes=streamed)
        )
        return GatewayStatus(
            servers=(ServerStatus(name="a", cores=2, memory_bytes=1, metrics=metrics),)
        )

    use = use_between(status(3, 1.0, 100), status(10, 5.0, 700), 4.0, (0.4, 0.2, 3.0))
    assert (use.runs, use.streamed_bytes, use.served_s) == (7, 600, {"m": 4.0})
    assert use.busy == pytest.approx(0.5)
    assert use.overhead == pytest.approx(0.6 / 8)
