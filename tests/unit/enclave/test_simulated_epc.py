"""The page cache against a naive model of it, and stages on top of it against those in memory."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from vaultline.bench.stage_bench import InMemoryWeights
from vaultline.core.errors import InfeasibleError, MachineError
from vaultline.core.paged import PAGE_BYTES, SGX1_PAGE_S, pages_touched, step_pages
from vaultline.core.program import StageProgram, StageSettings
from vaultline.cost.footprint import footprint
from vaultline.enclave.executor import Executor, PagedRefusedError
from vaultline.enclave.gramine_quotes import GramineProvider
from vaultline.enclave.ledger import Ledger
from vaultline.enclave.pipeline import StageBuffers
from vaultline.enclave.simulated_epc import (
    SCAN_PAGES,
    PageCache,
    PageCounts,
    PageTamperedError,
    WorkingSetError,
    open_cache,
    working_set,
)
from vaultline.enclave.simulated_executor import PagedExecutor
from vaultline.enclave.simulated_quotes import SimulatedProvider
from vaultline.enclave.stage import executor_type
from vaultline.graph.compile import CompiledStage, compile_segment
from vaultline.graph.model import Model, load_model
from vaultline.graph.zoo import build

DIGITS = Path(__file__).parents[3] / "examples" / "digits" / "digits.onnx"
MIB = 1 << 20


@dataclass(slots=True)
class Naive:
    """What the page cache is to do, page by page, on plain lists and sets."""

    capacity: int
    queue: list[int] = field(default_factory=list)
    used: set[int] = field(default_factory=set)
    evicted: set[int] = field(default_factory=set)
    counts: PageCounts = field(default_factory=PageCounts)

    def step(self, ranges: Iterable[tuple[int, int]]) -> None:
        held: set[int] = set()
        for first, end in ranges:
            held |= set(range(first, end))
            for page in range(first, end):
                if page not in self.queue:
                    self._load(page, held)
            self.used |= set(range(first, end))

    def _load(self, page: int, held: set[int]) -> None:
        while len(self.queue) == self.capacity:
            self._reclaim(held)
        if page in self.evicted:
            self.counts.swapped += 1
        else:
            self.counts.fresh += 1
        self.queue.append(page)

    def _reclaim(self, held: set[int]) -> None:
        self.counts.scans += 1
        batch, self.queue = self.queue[:SCAN_PAGES], self.queue[SCAN_PAGES:]
        for page in batch:
            if page in held or page in self.used:
                self.used -= {page} - held
                self.queue.append(page)
            else:
                self.evicted.add(page)
                self.counts.evictions += 1


touches = st.lists(st.tuples(st.integers(0, 99), st.integers(1, 24), st.booleans()), max_size=60)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(capacity=st.integers(24, 110), sequence=touches, cut=st.integers(1, 99))
def test_counts_and_contents_are_those_of_a_naive_model(
    capacity: int, sequence: list[tuple[int, int, bool]], cut: int
) -> None:
    """Two regions of 100 pages together; what is not present is destroyed."""
    pages = PageCache(capacity, wipe=True)
    regions = [pages.region(cut * PAGE_BYTES), pages.region((100 - cut) * PAGE_BYTES)]
    naive, known = Naive(capacity), np.zeros(100, np.uint8)
    random = np.random.default_rng(0)
    for first, length, writes in sequence:
        region, start = (regions[0], 0) if first < cut else (regions[1], cut)
        end = min(first + length, start + len(region.data) // PAGE_BYTES)
        last_byte = (end - start) * PAGE_BYTES - 1
        pages.touch(region, (first - start) * PAGE_BYTES, last_byte)
        naive.step([(first, end)])
        part = region.data.reshape(-1, PAGE_BYTES)[first - start : end - start]
        assert np.array_equal(part, np.repeat(known[first:end, None], PAGE_BYTES, axis=1))
        if writes:
            known[first:end] = random.integers(0, 256, end - first)
            part[:] = known[first:end, None]
        assert pages.counts == naive.counts
    assert pages.counts.loads - pages.counts.evictions == len(naive.queue) <= capacity


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_what_a_step_has_touched_stays_while_it_runs(data: st.DataObject) -> None:
    pages, naive = PageCache(32, wipe=True), Naive(32)
    region = pages.region(80 * PAGE_BYTES)
    numbered = region.data.reshape(-1, PAGE_BYTES)
    one = st.tuples(st.integers(0, 79), st.integers(1, 6)).map(lambda x: (x[0], min(80, sum(x))))
    for ranges in data.draw(st.lists(st.lists(one, min_size=1, max_size=5), max_size=12)):
        wanted = working_set(ranges)
        assert wanted.pages == len({page for first, end in ranges for page in range(first, end)})
        with pages.holding(wanted):
            for first, end in ranges:
                assert not (numbered[first:end] == 0xFF).any()
        naive.step(ranges)
        assert pages.counts == naive.counts


def filled(pages: PageCache) -> Any:
    """A region of twice the cache's size, each page with its number in it."""
    region = pages.region(2 * pages.capacity_pages * PAGE_BYTES)
    for page in range(2 * pages.capacity_pages):
        pages.touch(region, page * PAGE_BYTES, page * PAGE_BYTES)
        region.data[page * PAGE_BYTES] = page + 1
    return region


def sealed(region: Any, page: int) -> Any:
    return region.outside.reshape(-1, PAGE_BYTES + 16)[page]


def rolled_back(pages: PageCache, region: Any) -> None:
    older = sealed(region, 0).copy()
    for page in [*range(64), *range(1, 64)]:
        pages.touch(region, page * PAGE_BYTES, page * PAGE_BYTES)
    assert not np.array_equal(sealed(region, 0), older)
    sealed(region, 0)[:] = older


def swapped(pages: PageCache, region: Any) -> None:
    sealed(region, 0)[:], sealed(region, 1)[:] = sealed(region, 1).copy(), sealed(region, 0).copy()


def flip(place: int) -> Any:
    def change(pages: PageCache, region: Any) -> None:
        sealed(region, 0)[place] ^= 1

    return change


TAMPERING = {
    "a changed byte": flip(100),
    "a changed tag": flip(-1),
    "an older version of the page": rolled_back,
    "another page in its place": swapped,
}


@pytest.mark.parametrize("change", TAMPERING.values(), ids=TAMPERING.keys())
def test_an_evicted_page_that_was_altered_is_refused(change: Any) -> None:
    pages = PageCache(32)
    region = filled(pages)
    change(pages, region)
    with pytest.raises(PageTamperedError, match="altered") as caught:
        pages.touch(region, 0, 0)
    assert caught.value.remedy
    assert pages._held == 0
    pages.touch(region, 40 * PAGE_BYTES, 40 * PAGE_BYTES)
    assert region.data[40 * PAGE_BYTES] == 41


def test_no_page_is_outside_in_the_clear_and_no_nonce_repeats() -> None:
    pages = PageCache(16)
    region = pages.region(32 * PAGE_BYTES)
    seen = set()
    for page in [*range(32), *range(32)]:
        pages.touch(region, page * PAGE_BYTES, page * PAGE_BYTES)
        region.data.reshape(-1, PAGE_BYTES)[page] = 7
        seen |= {nonce for nonce in pages._nonces if nonce}
    assert len(seen) == pages.counts.evictions > 32
    outside = {bytes(sealed(region, page)) for page in range(16)}
    assert len(outside) == 16
    assert not any(bytes([7] * 16) in text for text in outside)


def test_more_pages_than_there_are_is_an_error_and_changes_nothing() -> None:
    pages = PageCache(16)
    region = pages.region(17 * PAGE_BYTES)
    with pytest.raises(WorkingSetError, match="more pages at once") as caught:
        pages.touch(region, 0, 17 * PAGE_BYTES - 1)
    assert isinstance(caught.value, InfeasibleError)
    assert "16 pages" in str(caught.value.got)
    assert "17" in str(caught.value.expected)
    assert pages.counts == PageCounts()
    for first, last in ((-1, 0), (2, 1), (0, 17 * PAGE_BYTES)):
        with pytest.raises(IndexError):
            pages.touch(region, first, last)
    pages.touch(region, 0, 16 * PAGE_BYTES - 1)
    assert pages.counts.fresh == 16


def test_the_mode_changes_the_time_and_no_count() -> None:
    found = {}
    for mode in ("crypto", "sgx1"):
        pages = PageCache(32, page_mode=mode)
        region = filled(pages)
        for page in range(64):
            pages.touch(region, page * PAGE_BYTES, page * PAGE_BYTES)
        found[mode] = pages
    crypto, sgx1 = found["crypto"], found["sgx1"]
    assert crypto.counts == sgx1.counts
    assert crypto.counts.swapped == 64
    assert crypto.times.spin_s == 0 < crypto.times.cipher_s
    taken = sgx1.times.cipher_s + sgx1.times.bookkeeping_s + sgx1.times.spin_s
    assert taken >= 64 * SGX1_PAGE_S


def test_threads_wait_for_pages_that_another_holds() -> None:
    """Each needs more than half of the cache: they take turns and see their own bytes."""
    pages = PageCache(24, wipe=True)
    wrong: list[int] = []

    def work(number: int) -> None:
        region = pages.region(16 * PAGE_BYTES)
        wanted = working_set([region.pages(0, 16 * PAGE_BYTES - 1)])
        for turn in range(30):
            with pages.holding(wanted):
                if turn and not (region.data == number + turn - 1).all():
                    wrong.append(number)
                region.data[:] = number + turn

    threads = [threading.Thread(target=work, args=(100 * n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


@cache
def model(name: str) -> Model:
    return load_model(DIGITS if name == "digits" else build(name, Path(mkdtemp())))


def compiled(
    name: str, mode: Any = "paged", *, frames: int = 1, budget_bytes: int = 1 << 34, **more: Any
) -> CompiledStage:
    how = StageSettings(
        stage=0,
        stages=1,
        threads=1,
        budget_bytes=budget_bytes,
        mode=mode,
        frames_per_pass=frames,
        queue_frames=2,
    )
    of = model(name)
    return compile_segment(of, 0, of.node_count, settings=how, step_bytes=MIB // 4, **more)


def least_budget(name: str, frames: int = 1) -> int:
    """The smallest budget that the compiler accepts, found by halving."""
    low, high = 0, 64 * MIB
    while high - low > 4096:
        middle = (low + high) // 2
        try:
            compiled(name, frames=frames, budget_bytes=middle)
            high = middle
        except InfeasibleError:
            low = middle
    return high


class Running:
    """A stage with buffers for one pass, and frames in them."""

    def __init__(
        self, stage: CompiledStage, pages: PageCache | None = None, *, wipe: bool = False
    ) -> None:
        program = stage.program
        self.program = program
        self.ledger = Ledger(program.settings.budget_bytes)
        buffers = StageBuffers(program, self.ledger)
        weights = InMemoryWeights(stage)
        self.executor: Executor
        if program.settings.mode == "paged":
            if pages is None:
                pages = open_cache(self.ledger, program.engine_bytes, wipe=wipe)
            else:
                self.ledger.reserve("idle", pages.capacity_pages * PAGE_BYTES, "the page cache")
            self.executor = PagedExecutor(program, weights, self.ledger, pages)
        else:
            self.executor = Executor(program, weights, self.ledger)
        count = program.settings.frames_per_pass
        self.inputs, self.outputs = buffers.inputs[:count], buffers.outputs[:count]
        random = np.random.default_rng(1)
        for buffer in self.inputs:
            for part, spec in zip(buffer.parts, buffer.layout.specs, strict=True):
                part[:] = random.random(spec.shape, np.float32).reshape(-1).view(np.uint8)

    def run(self, frames: int | None = None) -> list[bytes]:
        list(self.executor.run_pass(self.inputs[:frames], self.outputs[:frames]))
        return [part.tobytes() for buffer in self.outputs[:frames] for part in buffer.parts]

    @property
    def pages(self) -> PageCache:
        assert isinstance(self.executor, PagedExecutor)
        return self.executor.cache


def replayed(program: StageProgram, capacity: int, passes: int, frames: int) -> list[PageCounts]:
    """Counts after loading and after each pass, by the naive model."""
    naive = Naive(capacity)
    for weight in program.weights:
        assert weight.resident_at is not None
        first, end = weight.resident_at, weight.resident_at + weight.spec.nbytes
        naive.step([(first // PAGE_BYTES, -(-end // PAGE_BYTES))])
    found = [copy(naive.counts)]
    for _ in range(passes):
        for step in program.steps:
            if step.stackable and frames > 1:
                naive.step(pages_touched(program, step, 0, frames))
                continue
            for frame in range(frames):
                naive.step(pages_touched(program, step, frame))
        found.append(copy(naive.counts))
    return found


CASES = [("digits", 1), ("digits", 3), ("squeezenet", 1), ("squeezenet", 2)]


@pytest.mark.parametrize("name, frames", CASES)
def test_a_paged_stage_computes_what_one_in_memory_does(name: str, frames: int) -> None:
    """In the least memory that it can have, with every page destroyed that is not present."""
    budget = least_budget(name, frames) + 64 * 1024
    paged = Running(compiled(name, frames=frames, budget_bytes=budget), wipe=True)
    native = Running(compiled(name, "resident", frames=frames))
    for buffer, other in zip(paged.inputs, native.inputs, strict=True):
        assert np.array_equal(buffer.parts[0], other.parts[0])
    counts = [copy(paged.pages.counts)]
    for _ in range(3):
        found, expected = paged.run(), native.run()
        for ours, theirs in zip(found, expected, strict=True):
            values = [np.frombuffer(data, np.float32) for data in (ours, theirs)]
            np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-6)
        counts.append(copy(paged.pages.counts))
    program = paged.program
    assert counts == replayed(program, paged.pages.capacity_pages, 3, frames)
    if name == "squeezenet":
        assert counts[-1].swapped > counts[-2].swapped > 0
    assert paged.ledger.held == footprint(program)
    assert paged.ledger.free_bytes == 0
    assert max(step_pages(program)) <= paged.pages.capacity_pages


def test_fewer_frames_than_a_pass_may_have_run_as_well() -> None:
    budget = least_budget("digits", 3) + 4096
    paged = Running(compiled("digits", frames=3, budget_bytes=budget), wipe=True)
    three = paged.run()
    for frames in (1, 2):
        for ours, theirs in zip(paged.run(frames), three, strict=False):
            values = [np.frombuffer(data, np.float32) for data in (ours, theirs)]
            np.testing.assert_allclose(*values, rtol=1e-5, atol=1e-6)


def test_two_stages_share_one_cache() -> None:
    stage = compiled("digits")
    alone = Running(stage, PageCache(10_000))
    alone.run()
    needed = alone.pages.counts.fresh
    for capacity, evicts in ((2 * needed, False), (needed + 64, True)):
        pages = PageCache(capacity, wipe=True)
        first, second = Running(stage, pages), Running(stage, pages)
        expected = Running(compiled("digits", "resident")).run()
        for _ in range(3):
            for running in (first, second):
                for ours, theirs in zip(running.run(), expected, strict=True):
                    values = [np.frombuffer(data, np.float32) for data in (ours, theirs)]
                    np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-6)
        assert (pages.counts.swapped > 0) is evicts


def test_everything_fits_and_nothing_is_swapped() -> None:
    paged = Running(compiled("digits", budget_bytes=64 * MIB))
    paged.run()
    before = copy(paged.pages.counts)
    paged.run()
    assert paged.pages.counts.since(before) == PageCounts()


def test_a_tampered_page_ends_the_stage_without_an_output() -> None:
    paged = Running(compiled("squeezenet", budget_bytes=least_budget("squeezenet") + 4096))
    paged.run()
    executor = paged.executor
    assert isinstance(executor, PagedExecutor)
    executor._weights.outside[::64] ^= 1
    with pytest.raises(PageTamperedError):
        paged.run()
    assert paged.ledger.held == footprint(paged.program)


def test_a_step_that_does_not_fit_is_refused_when_it_is_loaded() -> None:
    stage = compiled("digits")
    with pytest.raises(WorkingSetError):
        Running(stage, PageCache(max(step_pages(stage.program)) - 1))
    tight = replace(stage.program.settings, budget_bytes=1)
    ledger = Ledger(1)
    with pytest.raises(WorkingSetError, match="page cache"):
        PagedExecutor(replace(stage.program, settings=tight), InMemoryWeights(stage), ledger)


def test_a_streamed_weight_has_no_place_in_a_paged_stage() -> None:
    program = compiled("digits").program
    weights = tuple(replace(weight, resident_at=None) for weight in program.weights[:1])
    broken = replace(
        program,
        weights=(*weights, *program.weights[1:]),
        workspace_bytes=program.workspace_bytes + program.resident_bytes,
    )
    with pytest.raises(MachineError, match="paged"):
        PagedExecutor(broken, InMemoryWeights(compiled("digits")), Ledger(1 << 34))


def test_only_simulated_enclaves_page() -> None:
    paged = compiled("digits", budget_bytes=64 * MIB)
    with pytest.raises(PagedRefusedError, match="simulated") as caught:
        executor_type(paged.program, GramineProvider())
    assert caught.value.got == "sgx"
    assert caught.value.exit_code == 1
    simulated = object.__new__(SimulatedProvider)
    made = executor_type(paged.program, simulated)
    assert made is PagedExecutor
    made(paged.program, InMemoryWeights(paged), Ledger(64 * MIB))
    for provider in (simulated, GramineProvider()):
        assert executor_type(compiled("digits", "resident").program, provider) is Executor


def test_a_worker_loads_the_page_cache_only_when_a_stage_asks() -> None:
    program = """
import sys
import vaultline.enclave.__main__
late = ("simulated_epc", "simulated_executor", "core.paged")
print([name for name in sys.modules if name.endswith(late)])
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.strip() == "[]"
