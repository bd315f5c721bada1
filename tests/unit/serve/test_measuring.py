"""Measuring a prepared model: which runs there are, and what becomes of their times."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from vaultline.core.errors import InputError
from vaultline.core.limits import MIB
from vaultline.owner.keyfile import Kek
from vaultline.owner.prepare import counts, prepare
from vaultline.owner.served import ServedModel
from vaultline.sched.facts import GroupFacts, ModelFacts
from vaultline.serve.measuring import (
    PAGED_MEMORY_BYTES,
    WARM_ROUNDS,
    GroupTimes,
    Measured,
    _Plan,
    measure,
    on_core,
)

DIGITS = Path(__file__).parents[3] / "examples" / "digits" / "digits.onnx"
KEK = Kek(kid="kbs:///default/kek/one", key=bytes(32))


def group(frames: int, *, weights: int = 100, output: int = 50) -> GroupFacts:
    return GroupFacts(
        weight_bytes=weights,
        workspace_bytes=0,
        tile_bytes=0,
        output_bytes=output,
        run_s=tuple((count, 1.0) for count in counts(frames)),
        load_s=0.5,
    )


def served(*groups: GroupFacts, paged: bool = False) -> ServedModel:
    return ServedModel(
        name="m",
        vault="m.vault",
        keys="m.keys",
        model_digest="00",
        plan_digest=bytes(32),
        isa="portable",
        engine_version="1",
        inputs=(),
        outputs=(),
        groups=tuple((number, number + 1) for number in range(len(groups))),
        workspace_bytes=1000,
        facts=ModelFacts(name="m", groups=groups, fixed_bytes=10, input_bytes=60),
        paged=paged,
    )


class FakeWorker:
    """Refuses what a real worker would; every run takes its number of frames in seconds, and
    another half if weights have to be decrypted."""

    def __init__(self, model: ServedModel) -> None:
        self.groups = model.facts.groups
        self.installed = False
        self.installs = 0
        self.kept: set[int] = set()
        self.waiting: dict[int, int] = {}
        self.next = 0
        self.runs: Counter[tuple[int, int, bool]] = Counter()
        self.waited_s = 0.0

    def install(self) -> float:
        assert not self.installed
        self.installed = True
        self.installs += 1
        return float(self.installs)

    def remove(self) -> None:
        assert self.installed
        self.installed = False

    def evict(self, number: int) -> None:
        self.kept.remove(number)

    def new_requests(self, count: int) -> list[int]:
        self.next += count
        numbers = list(range(self.next - count, self.next))
        self.waiting.update(dict.fromkeys(numbers, 0))
        return numbers

    def run(self, number: int, requests: list[int], *, keep: bool = False) -> float:
        assert self.installed
        assert 1 <= len(requests) <= self.groups[number].frames_max
        for request in requests:
            assert self.waiting.pop(request) == number
            if number + 1 < len(self.groups):
                self.waiting[request] = number + 1
        loads = self.groups[number].weight_bytes > 0 and number not in self.kept
        if keep:
            self.kept.add(number)
        self.runs[number, len(requests), loads] += 1
        return len(requests) + (0.5 if loads else 0.0)


SHAPES = {
    "one group of one frame": (group(1),),
    "a tail of many frames": (group(1), group(2), group(16)),
    "a front of many frames": (group(6), group(1)),
    "a group without weights": (group(4, weights=0), group(2)),
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_number_of_frames_is_timed_in_every_round_both_ways(shape: str) -> None:
    model = served(*SHAPES[shape])
    worker = FakeWorker(model)
    found = _Plan(model, 3).run(worker, lambda *_: None)
    assert worker.installs == 3
    assert not worker.kept
    rounds = 3 + WARM_ROUNDS
    for number, (facts, times) in enumerate(zip(model.facts.groups, found.groups, strict=True)):
        sizes = counts(facts.frames_max)
        assert tuple(times.streamed) == sizes
        assert all(len(seconds) == 3 for seconds in times.streamed.values())
        if not facts.weight_bytes:
            assert not times.kept
            continue
        assert tuple(times.kept) == sizes
        assert len(times.loading) == 3
        for count in sizes:
            assert times.kept[count] == [count] * 3
            assert times.streamed[count] == [count + 0.5] * 3
            assert worker.runs[number, count, True] == rounds * (2 if count == 1 else 1)


def test_facts_are_medians_and_sizes_stay_as_they_are() -> None:
    model = served(group(2), group(1, weights=0))
    first = GroupTimes(
        streamed={1: [5.0, 2.5, 2.0], 2: [4.0, 4.6, 9.0]},
        kept={1: [2.0, 2.1, 9.0], 2: [1.0, 4.0, 5.0]},
        loading=[3.0],
    )
    second = GroupTimes(streamed={1: [0.3, 0.1, 0.2]})
    found = Measured(groups=(first, second), install_s=(3.0, 1.0, 2.0)).facts(model.facts)
    assert found.install_s == 2.0
    assert found.groups[0].run_s == ((1, 2.1), (2, 4.0))
    assert found.groups[0].load_s == pytest.approx(0.9)  # 3.0 with loading, 2.1 without
    assert found.groups[0].streamed_s == ((1, 2.5), (2, 4.6))
    assert (found.groups[1].run_s, found.groups[1].load_s) == (((1, 0.2),), 0.0)
    assert found.groups[0].weight_bytes == 100
    assert (found.fixed_bytes, found.input_bytes) == (10, 60)


def test_streaming_and_loading_never_save_time() -> None:
    """Where noise is larger than the load, the load is nothing."""
    times = GroupTimes(streamed={1: [1.0]}, kept={1: [1.5]}, loading=[1.2])
    facts = times.facts(group(1))
    assert facts.load_s == 0.0
    assert facts.seconds(1, resident=False) == facts.seconds(1, resident=True) == 1.5


def test_memory_has_room_for_all_weights_and_a_rounds_requests() -> None:
    plan = _Plan(served(group(1), group(16)), 1)
    requests = 2 * 31 + 1
    assert plan.memory_bytes >= 200 + requests * 60 + 1000 + 10
    assert _Plan(served(group(1), paged=True), 1).memory_bytes == PAGED_MEMORY_BYTES == 93 * MIB


def test_a_core_is_left_as_it_was_found() -> None:
    before = os.sched_getaffinity(0)
    with on_core(min(before)):
        assert os.sched_getaffinity(0) == {min(before)}
    assert os.sched_getaffinity(0) == before
    for core in (100_000, 1 << 40, -1):
        with pytest.raises(InputError, match="core"), on_core(core):
            pass
    assert os.sched_getaffinity(0) == before


def test_nothing_is_measured_in_no_rounds(tmp_path: Path) -> None:
    model = prepare(DIGITS, tmp_path, kek=KEK)
    trust = SimpleNamespace()
    with pytest.raises(InputError, match="nothing to measure"):
        measure(model, tmp_path, kek=KEK, trust=trust, rounds=0)
