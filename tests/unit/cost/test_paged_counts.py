"""What the planner says of paging, held against the pages that a paged stage really swaps."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest

from vaultline.bench.profiling import ProfileRequest, profile_model
from vaultline.bench.stage_bench import InMemoryWeights
from vaultline.core.limits import MIB
from vaultline.core.profile import ModelProfile
from vaultline.cost.paging import PAGE_BYTES, touched_pages, working_set_pages
from vaultline.enclave.ledger import Ledger
from vaultline.enclave.pipeline import StageBuffers
from vaultline.enclave.simulated_executor import PagedExecutor
from vaultline.graph.model import Model, load_model
from vaultline.graph.zoo import build
from vaultline.owner.deploy import compile_stages
from vaultline.planner import PlanRequest
from vaultline.planner.baselines import price
from vaultline.testing.planning import cluster, device


@cache
def known(name: str) -> tuple[Model, ModelProfile]:
    model = load_model(build(name, Path(mkdtemp())))
    return model, profile_model(model, ProfileRequest(repeats=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """Pages per frame: predicted by the planner from a profile, and in a stage that was run.

    Attributes:
        bound: N of the equations, for the compiled program.
        touched: no cache swaps more.
        weights: pages of weights.
    """

    predicted: int
    swapped: int
    evicted: int
    bound: int
    touched: int
    weights: int
    capacity: int


def counted(name: str, memory_bytes: int) -> Counted:
    """The plan of ``one-enclave``, compiled and run until its counts are those of any frame."""
    model, profile = known(name)
    small = cluster(device("a", memory_bytes=memory_bytes))
    found = price("one-enclave", profile, small, PlanRequest(), page_mode="crypto")
    assert found.plan is not None
    assert found.paged
    (stage,) = compile_stages(model, found.plan)
    program = stage.program
    ledger = Ledger(memory_bytes)
    buffers = StageBuffers(program, ledger)
    executor = PagedExecutor(program, InMemoryWeights(stage), ledger)
    for _ in range(3):
        before = copy(executor.cache.counts)
        list(executor.run_pass(buffers.inputs[:1], buffers.outputs[:1]))
    pages = executor.cache.counts.since(before)
    assert pages.fresh == 0
    return Counted(
        predicted=int(found.note.split()[1].replace(",", "")),
        swapped=pages.swapped,
        evicted=pages.evictions,
        bound=working_set_pages(program),
        touched=touched_pages(program),
        weights=-(-program.resident_bytes // PAGE_BYTES),
        capacity=executor.cache.capacity_pages,
    )


def check(found: Counted) -> None:
    """What holds for every network and every cache."""
    assert found.swapped <= found.touched
    assert abs(found.swapped - found.evicted) <= 16
    # A profile's blocks know less of what tensors share a place: it says more, never less.
    assert found.bound <= found.predicted <= 1.5 * found.bound


@pytest.mark.parametrize("mib", [7, 8, 9])
def test_a_small_network_of_which_activations_are_half(mib: int) -> None:
    """Each weight's page is used once a frame, the others are used by one layer after another and
    mostly stay: fewer than N, except where the cache is as large as the largest step."""
    found = counted("squeezenet", mib * MIB)
    check(found)
    assert 0.75 * found.bound < found.swapped < 1.1 * found.bound
    if mib > 7:
        assert found.swapped < found.bound


def test_a_network_that_fits_is_not_paged() -> None:
    """Neither predicted to swap nor run on a page cache: its weights stay."""
    model, profile = known("squeezenet")
    small = cluster(device("a", memory_bytes=12 * MIB))
    found = price("one-enclave", profile, small, PlanRequest(), page_mode="crypto")
    assert found.plan is not None
    assert not found.paged
    (stage,) = compile_stages(model, found.plan)
    assert stage.program.settings.mode == "resident"


@pytest.mark.full
@pytest.mark.parametrize("mib", [48, 93, 225])
def test_a_network_that_is_nearly_all_weights_swaps_its_working_set(mib: int) -> None:
    """A cycle, as the equations say: every page, on every frame, however many there is room for."""
    found = counted("alexnet", mib * MIB)
    check(found)
    assert found.swapped == pytest.approx(found.bound, rel=1e-3)
    # The planner allows for gaps between buffers of the workspace.
    assert found.predicted == pytest.approx(found.swapped, rel=0.03)
