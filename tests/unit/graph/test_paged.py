"""Paged programs: small steps whose pages fit the cache, and a reason where they can't."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from vaultline.core.errors import InfeasibleError
from vaultline.core.paged import (
    PAGE_BYTES,
    distinct_pages,
    page_count,
    pages_touched,
    step_pages,
    tensor_bytes,
)
from vaultline.core.program import StageProgram, StageSettings
from vaultline.cost.footprint import footprint
from vaultline.graph.compile import compile_segment
from vaultline.graph.model import Model, load_model
from vaultline.graph.zoo import build

MIB = 1 << 20


@cache
def squeezenet() -> Model:
    return load_model(build("squeezenet", Path(mkdtemp())))


def compiled(budget_bytes: int, *, frames: int = 1, **more: Any) -> StageProgram:
    how = StageSettings(
        stage=0,
        stages=1,
        threads=1,
        budget_bytes=budget_bytes,
        mode="paged",
        frames_per_pass=frames,
        queue_frames=2,
    )
    model = squeezenet()
    stage = compile_segment(model, 0, model.node_count, settings=how, step_bytes=MIB, **more)
    return stage.program


@pytest.mark.parametrize(
    "mib, frames", [(7, 1), (8, 1), (8, 2), (16, 1), (16, 2), (64, 1), (64, 2)]
)
def test_every_step_fits_the_cache_with_room_for_others(mib: int, frames: int) -> None:
    program = compiled(mib * MIB, frames=frames)
    capacity = footprint(program)["idle"] // PAGE_BYTES
    pages = step_pages(program)
    assert max(pages) <= capacity
    # One node may need more than its share; steps of several nodes keep to it, page ends apart.
    small = [count for count in pages if count <= capacity / 8 + 16]
    assert len(small) >= len(pages) - 6
    assert sum(footprint(program).values()) == mib * MIB


def test_every_weight_has_a_place_and_is_read_in_order() -> None:
    program = compiled(8 * MIB)
    assert all(weight.resident_at is not None for weight in program.weights)
    assert not program.prefetch
    reached = 0
    for step in program.steps:
        ranges = [
            pages
            for pages in pages_touched(program, step)
            if pages[1] <= page_count(program.resident_bytes)
        ]
        for first, end in ranges:
            assert first >= reached - 1
            reached = end
    assert reached == page_count(program.resident_bytes)


def test_prefetch_is_for_streamed_stages() -> None:
    assert not compiled(8 * MIB, prefetch=True).prefetch


def test_what_a_step_is_lent_is_whole_pages_of_its_tensors() -> None:
    program = compiled(8 * MIB, frames=2)
    for step, pages in zip(program.steps, step_pages(program), strict=True):
        assert step.activation_bytes == tensor_bytes(program, step)
        assert step.activation_bytes <= pages * PAGE_BYTES


def test_too_little_memory_names_the_node_that_needs_most() -> None:
    with pytest.raises(InfeasibleError) as caught:
        compiled(3 * MIB)
    assert "the tensors of node" in str(caught.value.expected)
    assert "Pool" in str(caught.value.expected)


def test_pages_are_counted_once() -> None:
    assert distinct_pages([]) == 0
    assert distinct_pages([(0, 4), (2, 6), (5, 6), (9, 10), (0, 4)]) == 7


def test_a_step_that_fits_by_bytes_and_not_by_pages_is_refused() -> None:
    """Just below the least budget that is accepted."""
    low, high = 3 * MIB, 8 * MIB
    while high - low > PAGE_BYTES:
        middle = (low + high) // 2
        try:
            compiled(middle)
            high = middle
        except InfeasibleError as error:
            low, refused = middle, error
    assert "paged" in refused.message
    assert "pages" in str(refused.got)
