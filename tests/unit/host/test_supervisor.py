"""When a worker counts as dead or stuck."""

from __future__ import annotations

from vaultline.core.control import BeatLine, FailedLine, ReadyLine, StageMetrics
from vaultline.core.hostline import START_ELSEWHERE_S_MAX, START_S_MAX, LaunchWorker, Start
from vaultline.host.supervisor import FOLLOWING_S, SILENCE_S_MAX, Supervisor


def worker(name: str) -> LaunchWorker:
    return LaunchWorker(
        name=name,
        stage=0,
        cores=(),
        vault="v",
        start=Start(provider="simulated", platform_file=None),
        busy_s_max=2.0,
    )


def two(now_s: float = 100.0) -> Supervisor:
    return Supervisor((worker("a"), worker("b")), now_s)


READY = ReadyLine(control="unix:/c", data=("unix:/d",), measurement="00", hardening=())


def beat(busy_s: float = 0.0, frames: int = 0) -> BeatLine:
    return BeatLine(busy_s=busy_s, frames=frames)


def test_endpoints_are_known_once_all_listen() -> None:
    watch = two()
    watch.heard(0, READY, 101.0)
    assert watch.ready is None
    watch.heard(1, READY, 101.0)
    assert watch.ready == (READY, READY)


def test_workers_that_beat_are_fine() -> None:
    watch = two()
    for stage in (0, 1):
        watch.heard(stage, beat(0.5, frames=stage), 101.0)
    assert watch.lost(101.0 + SILENCE_S_MAX) is None
    assert watch.frames == (0, 1)


def test_what_each_worker_said_last_of_its_memory_is_kept() -> None:
    watch = two()
    assert watch.metrics == (StageMetrics(), StageMetrics())
    for passes in (1, 2):
        metrics = StageMetrics(budget_bytes=100, held_bytes={"tile": 40}, passes=passes)
        watch.heard(1, BeatLine(busy_s=0.0, frames=passes, metrics=metrics), 101.0)
    watch.exited(1, 0)
    assert watch.metrics == (StageMetrics(), metrics)


def test_silence_is_noticed_within_two_seconds() -> None:
    watch = two()
    watch.heard(0, beat(), 101.0)
    watch.heard(1, beat(), 102.0)
    lost = watch.lost(103.0)
    assert lost is not None
    assert (lost.worker, lost.code) == (0, "WorkerStuck")


def test_a_pass_that_takes_too_long_is_stuck_though_it_beats() -> None:
    watch = two()
    watch.heard(1, beat(busy_s=2.1), 101.0)
    lost = watch.lost(101.0)
    assert lost is not None
    assert (lost.worker, lost.code) == (1, "WorkerStuck")


def test_a_worker_that_never_starts_is_given_up() -> None:
    assert two().lost(100.0 + START_S_MAX) is None
    lost = two().lost(101.0 + START_S_MAX)
    assert lost is not None
    assert "did not start" in lost.message


def test_the_killed_worker_is_named_not_the_neighbour_that_noticed() -> None:
    watch = two()
    watch.heard(0, FailedLine(code="ConnectionLostError", message="the next hop hung up"), 101.0)
    watch.exited(0, 4)
    watch.exited(1, -9)
    lost = watch.lost(101.0)
    assert lost is not None
    assert (lost.worker, lost.code) == (1, "WorkerKilled")


def test_a_lost_neighbour_is_waited_for_before_the_one_that_noticed_is_blamed() -> None:
    watch = two()
    watch.heard(0, FailedLine(code="ConnectionLostError", message="the next hop hung up"), 101.0)
    watch.exited(0, 4)
    assert watch.lost(101.0) is None
    lost = watch.lost(101.1 + FOLLOWING_S)
    assert lost is not None
    assert (lost.worker, lost.code) == (0, "ConnectionLostError")


def test_a_worker_that_says_why_is_quoted() -> None:
    watch = two()
    watch.heard(1, FailedLine(code="VaultTamperedError", message="tampered"), 101.0)
    watch.exited(1, 1)
    lost = watch.lost(101.0)
    assert lost is not None
    assert (lost.worker, lost.code, lost.message) == (1, "VaultTamperedError", "tampered")


def test_a_run_is_finished_when_all_have_exited_cleanly() -> None:
    watch = two()
    watch.heard(0, READY, 100.0)
    watch.heard(1, READY, 100.0)
    watch.exited(0, 0)
    assert not watch.finished
    watch.exited(1, 0)
    assert watch.finished
    assert watch.lost(1e9) is None


def test_a_worker_that_ends_before_it_listens_is_lost_whatever_its_code() -> None:
    watch = two()
    watch.exited(0, 0)
    watch.exited(1, 0)
    assert not watch.finished
    lost = watch.lost(100.5)
    assert lost is not None
    assert lost.code == "WorkerDied"


def test_a_worker_under_gramine_may_take_longer_to_start() -> None:
    start = Start(provider="gramine", gramine="/opt/worker")
    slow = LaunchWorker(name="a", stage=0, cores=(), vault="v", start=start, busy_s_max=2.0)
    watch = Supervisor((slow,), 100.0)
    assert watch.lost(101.0 + START_S_MAX) is None
    assert watch.lost(101.0 + START_ELSEWHERE_S_MAX) is not None
