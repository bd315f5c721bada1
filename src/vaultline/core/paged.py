"""Pages of a paged stage: which of them each step touches. Used where page caches are simulated,
and by the compiler and the equations of cost; never by a stage that runs in real memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vaultline.core.program import StageProgram, Step

#: Of SGX and of every processor that it runs on.
PAGE_BYTES = 4096
#: An EPC fault, eviction and reload of a page: about 40,000 cycles (M. Taassori, A. Shafiee and
#: R. Balasubramonian, "VAULT", ASPLOS 2018), which are 11 us at the 3.8 GHz of a Xeon E-2276G.
SGX1_PAGE_S = 11e-6

#: Bytes ``[first, end)`` of a buffer of the stage.
ByteRange = tuple[int, int]
#: Pages ``[first, end)``.
PageRange = tuple[int, int]


def page_count(size_bytes: int) -> int:
    """Pages that a buffer of this size takes."""
    return -(-size_bytes // PAGE_BYTES)


def weights_touched(program: StageProgram, step: Step) -> list[ByteRange]:
    """Parts of the resident buffer that a step reads, in the order in which it names them."""
    found: dict[ByteRange, None] = {}
    for each in step.weights:
        weight = program.weights[each.weight]
        if weight.resident_at is not None:
            found[weight.resident_at, weight.resident_at + weight.spec.nbytes] = None
    return list(found)


def tensors_touched(
    program: StageProgram, tensors: Iterable[int], frame: int, rows: int
) -> Iterator[ByteRange]:
    """Parts of the workspace in which ``rows`` frames of some tensors are, from ``frame`` on.

    One frame's tensors of a hop are in its message and not in the workspace.
    """
    edge = {*program.inputs, *program.outputs} if rows == 1 else set()
    for tensor in tensors:
        place, size = program.places[tensor], program.tensors[tensor].nbytes
        if place.frames and tensor not in edge:
            first = place.offset + (frame * size if place.frames > 1 else 0)
            yield first, first + rows * size


def pages_touched(
    program: StageProgram,
    step: Step,
    frame: int = 0,
    rows: int = 1,
    *,
    resident_page: int = 0,
    workspace_page: int | None = None,
) -> tuple[PageRange, ...]:
    """Pages that a step touches: what it is fed, its weights, what it makes, in this order; ranges
    that continue each other as one.

    Args:
        resident_page: the first page of the resident buffer; ``workspace_page``: of the workspace,
            by default the one after.
    """
    if workspace_page is None:
        workspace_page = resident_page + page_count(program.resident_bytes)
    feeds, fetches = ((index for _, index in names) for names in (step.feeds, step.fetches))
    parts = [
        *_pages(tensors_touched(program, feeds, frame, rows), workspace_page),
        *_pages(weights_touched(program, step), resident_page),
        *_pages(tensors_touched(program, fetches, frame, rows), workspace_page),
    ]
    merged: list[PageRange] = []
    for first, end in parts:
        if merged and merged[-1][0] <= first <= merged[-1][1]:
            first, end = merged[-1][0], max(end, merged.pop()[1])
        merged.append((first, end))
    return tuple(dict.fromkeys(merged))


def distinct_pages(ranges: Iterable[PageRange]) -> int:
    """Pages in some ranges, each counted once however many of them it is in."""
    count = reached = 0
    for first, end in sorted(ranges):
        count += max(0, end - max(first, reached))
        reached = max(reached, end)
    return count


def tensor_bytes(program: StageProgram, step: Step) -> int:
    """Bytes of the workspace's pages that must be there at once while a step runs."""
    frames = program.settings.frames_per_pass if step.stackable else 1
    tensors = [index for _, index in (*step.feeds, *step.fetches)]
    return PAGE_BYTES * distinct_pages(_pages(tensors_touched(program, tensors, 0, frames), 0))


def step_pages(program: StageProgram) -> tuple[int, ...]:
    """Per step, the pages that must be there at once while it runs."""
    frames = program.settings.frames_per_pass
    return tuple(
        distinct_pages(pages_touched(program, step, 0, frames if step.stackable else 1))
        for step in program.steps
    )


def _pages(parts: Iterable[ByteRange], first_page: int) -> Iterator[PageRange]:
    for first, end in parts:
        if first < end:
            yield first_page + first // PAGE_BYTES, first_page + page_count(end)
