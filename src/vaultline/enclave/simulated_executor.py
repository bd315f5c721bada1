"""Stages in more memory than is protected: the executor over a simulated page cache. Only simulated
enclaves load this."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from vaultline.core.control import BufferKind, StageMetrics
from vaultline.core.errors import MachineError
from vaultline.core.paged import pages_touched, step_pages
from vaultline.core.program import StageProgram
from vaultline.enclave.executor import Executor, FrameBuffer, WeightSource, _LoadedStep
from vaultline.enclave.ledger import Bytes, Ledger
from vaultline.enclave.simulated_epc import PageCache, WorkingSet, open_cache, working_set


class PagedExecutor(Executor):
    """A stage whose weights and tensors lie in the page cache's regions.

    Attributes:
        cache: by default one of its own, of all that the ledger has free.
    """

    def __init__(
        self,
        program: StageProgram,
        weights: WeightSource,
        ledger: Ledger,
        cache: PageCache | None = None,
    ) -> None:
        """Load a stage: all of its weights, through the cache.

        Raises:
            WorkingSetError: a step needs more pages at once than the cache has.
            BudgetExceededError: the ledger has too little.
            MachineError: the program is not one of a paged stage.
        """
        if any(weight.resident_at is None for weight in program.weights):
            raise MachineError("a paged stage decrypts no weight twice", remedy="seal it again")
        if cache is None:
            cache = open_cache(ledger, program.engine_bytes, program.settings.page_mode)
        self.cache = cache
        cache.check_room(max(step_pages(program), default=0))
        self._sets: dict[tuple[int, int, int], WorkingSet] = {}
        super().__init__(program, weights, ledger)

    @property
    def metrics(self) -> StageMetrics:
        """Memory, work and pages so far."""
        counts = self.cache.counts
        return replace(
            super().metrics, swapped_pages=counts.swapped, evicted_pages=counts.evictions
        )

    def _take(self, kind: BufferKind, size_bytes: int, what: str) -> Bytes:
        """A region of the cache, which the ledger holds already."""
        region = self.cache.region(size_bytes)
        if kind == "resident":
            self._weights = region
        else:
            self._tensors = region
        return region.data

    def _read_residents(self) -> None:
        """Each weight while its pages are held."""
        for index, weight in enumerate(self._program.weights):
            first, size = weight.resident_at or 0, weight.spec.nbytes
            if size:
                pages = self._weights.pages(first, first + size - 1)
                with self.cache.holding(working_set([pages])):
                    self._source.read_weight_into(index, self._resident[first : first + size].data)

    def _run_one(
        self, loaded: _LoadedStep, frame: int, before: FrameBuffer, after: FrameBuffer
    ) -> None:
        with self.cache.holding(self._working_set(loaded, frame, 1)):
            super()._run_one(loaded, frame, before, after)

    def _run_stacked(
        self, loaded: _LoadedStep, inputs: Sequence[FrameBuffer], outputs: Sequence[FrameBuffer]
    ) -> None:
        with self.cache.holding(self._working_set(loaded, 0, len(inputs))):
            super()._run_stacked(loaded, inputs, outputs)

    def _working_set(self, loaded: _LoadedStep, frame: int, rows: int) -> WorkingSet:
        key = (id(loaded), frame, rows)
        if key not in self._sets:
            self._sets[key] = working_set(
                pages_touched(
                    self._program,
                    loaded.step,
                    frame,
                    rows,
                    resident_page=self._weights.first_page,
                    workspace_page=self._tensors.first_page,
                )
            )
        return self._sets[key]
