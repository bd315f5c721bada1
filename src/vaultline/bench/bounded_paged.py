"""What streaming replaces: the same model loaded whole into an enclave whose page cache swaps.

Frames run one by one, as an ordinary runtime runs them, which knows nothing of pages. In ``crypto``
mode the simulator's own bookkeeping is deducted: what is left is computing and the cipher's work,
less than any hardware can do. In ``sgx1`` mode each swapped page takes as long as published.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vaultline.bench.bounded_process import (
    BoundedProcess,
    MemoryUse,
    compile_bounded,
    seal_stage,
)
from vaultline.bench.bounded_ratio import max_relative_error
from vaultline.bench.bounded_worker import Pages, Timed
from vaultline.bench.noise import Array
from vaultline.core.errors import MachineError
from vaultline.core.program import PageMode
from vaultline.graph.structure import Model

PAGE_MODES: tuple[PageMode, ...] = ("sgx1", "crypto")


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedRun:
    """A model in one paged enclave.

    Attributes:
        seconds: of each frame, without what is deducted.
        bookkeeping_s: of each, which was deducted in ``crypto`` mode.
        pages: of the last frame.
    """

    model: str
    page_mode: PageMode
    budget_bytes: int
    seconds: tuple[float, ...]
    bookkeeping_s: tuple[float, ...]
    pages: Pages
    memory: MemoryUse
    max_relative_error: float

    @property
    def frame_s(self) -> float:
        """Median seconds of a frame."""
        return statistics.median(self.seconds)

    @property
    def page_s(self) -> float | None:
        """Measured seconds of a page that is swapped: the cipher's, and where all of it counts,
        that of its bookkeeping and waiting too."""
        if not self.pages.swapped:
            return None
        total_s = self.pages.cipher_s
        if self.page_mode == "sgx1":
            total_s += self.pages.bookkeeping_s + self.pages.spin_s
        return total_s / self.pages.swapped


def paged_run(
    name: str,
    model: Model,
    expected: Sequence[dict[str, Array]],
    budget_bytes: int,
    page_mode: PageMode,
    *,
    rounds: int,
    core: int,
) -> PagedRun:
    """Load a model whole and time single frames.

    Raises:
        InfeasibleError: a step touches more pages than the budget has.
    """
    stage = compile_bounded(model, budget_bytes, 1, mode="paged", page_mode=page_mode)
    with tempfile.TemporaryDirectory(prefix="vaultline-bench-") as folder:
        sealed = seal_stage(stage, Path(folder))
        del stage
        with BoundedProcess([sealed], budget_bytes, core) as process:
            process.run(1, 1)
            process.weigh()
            names = [spec.name for spec in sealed.output_specs]
            error = max_relative_error(names, process.outputs(1), expected)
            timed = [process.run(1, 1) for _ in range(rounds)]
            memory = process.memory()
    pages = _pages(timed[-1])
    deducted = [_pages(each).bookkeeping_s if page_mode == "crypto" else 0.0 for each in timed]
    return PagedRun(
        model=name,
        page_mode=page_mode,
        budget_bytes=budget_bytes,
        seconds=tuple(each.seconds - less for each, less in zip(timed, deducted, strict=True)),
        bookkeeping_s=tuple(deducted),
        pages=pages,
        memory=memory,
        max_relative_error=error,
    )


def _pages(timed: Timed) -> Pages:
    if timed.pages is None:
        raise MachineError("a paged stage doesn't say what its page cache did")
    return timed.pages
