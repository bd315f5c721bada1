"""Which address the host gives to whom: every pair that shares frames, and no other."""

from __future__ import annotations

from itertools import product

import pytest

from vaultline.core.control import ReadyLine
from vaultline.core.errors import InputError, RemoteProtocolError
from vaultline.core.hostline import LaunchRequest, LaunchWorker, Start
from vaultline.core.replicas import neighbours
from vaultline.host.wiring import data_addresses, next_addresses


def worker(stage: int, replica: int) -> LaunchWorker:
    return LaunchWorker(
        name=f"stage{stage}-{replica}",
        stage=stage,
        replica=replica,
        cores=(),
        vault="v",
        start=Start(provider="simulated", platform_file=None),
        busy_s_max=1.0,
    )


def request(*counts: int) -> LaunchRequest:
    return LaunchRequest(
        workers=tuple(worker(stage, k) for stage, count in enumerate(counts) for k in range(count)),
        transport="unix",
        results=tuple(f"owner<{k}" for k in range(counts[-1])),
    )


def all_ready(asked: LaunchRequest) -> tuple[ReadyLine, ...]:
    """Each address says whose it is and for whom: ``stage.target<source``."""
    lines = []
    for each in asked.workers:
        before = asked.replicas[each.stage - 1] if each.stage else 1
        sources = neighbours(each.replica, asked.replicas[each.stage], before)
        data = tuple(f"{each.stage}.{each.replica}<{source}" for source in sources)
        lines.append(ReadyLine(control="c", data=data, measurement="", hardening=()))
    return tuple(lines)


@pytest.mark.parametrize("counts", list(product((1, 2, 3, 4), repeat=3)))
def test_each_pair_is_connected_where_the_target_waits_for_that_source(
    counts: tuple[int, int, int],
) -> None:
    asked = request(*counts)
    assert asked.replicas == counts
    ready = all_ready(asked)
    for each, line, following in zip(
        asked.workers, ready, next_addresses(asked, ready), strict=True
    ):
        assert data_addresses(asked, each) == len(line.data)
        if each.stage == 2:
            assert following == (f"owner<{each.replica}",)
            continue
        targets = neighbours(each.replica, counts[each.stage], counts[each.stage + 1])
        assert following == tuple(f"{each.stage + 1}.{k}<{each.replica}" for k in targets)


def test_a_worker_that_listens_elsewhere_than_told_is_refused() -> None:
    asked = request(1, 2)
    first, second, third = all_ready(asked)
    wrong = ReadyLine(control="c", data=(), measurement="", hardening=())
    with pytest.raises(RemoteProtocolError, match="stage1-0"):
        next_addresses(asked, (first, wrong, third))
    assert len(next_addresses(asked, (first, second, third))) == 3


WRONG = {
    "no workers": ((), 1),
    "a stage is left out": (((0, 0), (2, 0)), 1),
    "a replica is left out": (((0, 0), (0, 2)), 2),
    "a replica twice": (((0, 0), (0, 0)), 2),
    "replicas in another order": (((0, 1), (0, 0)), 2),
    "stages in another order": (((1, 0), (0, 0)), 1),
    "too few places for results": (((0, 0), (0, 1)), 1),
    "too many places for results": (((0, 0),), 2),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_pipeline_is_refused(case: str) -> None:
    places, results = WRONG[case]
    with pytest.raises(InputError, match="not the workers of a pipeline"):
        LaunchRequest(
            workers=tuple(worker(*place) for place in places),
            transport="unix",
            results=tuple(f"owner<{k}" for k in range(results)),
        )
