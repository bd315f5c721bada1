"""Paged step groups of a server: all of them share one simulated page cache, see
``simulated_epc``. Only simulated enclaves load this."""

from __future__ import annotations

from collections.abc import Sequence

from vaultline.core.control import BufferKind
from vaultline.core.errors import MachineError
from vaultline.core.paged import PAGE_BYTES
from vaultline.core.program import PageMode
from vaultline.enclave.groups import GroupExecutor
from vaultline.enclave.ledger import Bytes, Ledger
from vaultline.enclave.simulated_epc import PageCache, Region, WorkingSetError
from vaultline.enclave.simulated_executor import PagedExecutor
from vaultline.enclave.vault import VaultSection


class PagedGroupExecutor(GroupExecutor, PagedExecutor):
    """One core's use of a paged group. The weights are in one region for all cores; each core has
    a region of its own for tensors."""

    def __init__(
        self,
        section: VaultSection,
        ledger: Ledger,
        cache: PageCache,
        first: PagedGroupExecutor | None = None,
    ) -> None:
        """``first``: of the same group, whose weights are used; without one they are read."""
        self._first = first
        self._own: list[Region] = []
        try:
            super().__init__(section.program, section, ledger, cache)
        except BaseException:
            self._forget()
            raise

    def _take(self, kind: BufferKind, size_bytes: int, what: str) -> Bytes:
        if kind == "resident" and self._first is not None:
            self._weights: Region = self._first._weights
            return self._weights.data
        data = super()._take(kind, size_bytes, what)
        self._own.append(self._weights if kind == "resident" else self._tensors)
        return data

    def _read_residents(self) -> None:
        if self._first is None:
            super()._read_residents()

    def close(self) -> None:
        """Forget the regions."""
        super().close()
        self._forget()

    def _forget(self) -> None:
        for region in self._own:
            self.cache.forget(region)
        self._own.clear()


def open_shared_cache(size_bytes: int, page_mode: PageMode) -> PageCache:
    """The page cache of a server, whose memory its ledger holds.

    Raises:
        WorkingSetError: it has no page.
    """
    if size_bytes < PAGE_BYTES:
        raise WorkingSetError("the grant has no memory for a page cache")
    return PageCache(size_bytes // PAGE_BYTES, page_mode=page_mode)


def paged_executors(
    section: VaultSection, ledger: Ledger, cache: PageCache, cores: int
) -> Sequence[PagedGroupExecutor]:
    """One for each core, of one group.

    Raises:
        MachineError: the group asks for pages of another cost than those before.
        WorkingSetError: it needs more pages at once than there are.
    """
    if section.program.settings.page_mode != cache.page_mode:
        raise MachineError("a server's paged models must agree on what a page costs")
    made = [PagedGroupExecutor(section, ledger, cache)]
    try:
        for _ in range(cores - 1):
            made.append(PagedGroupExecutor(section, ledger, cache, made[0]))
    except BaseException:
        for executor in made:
            executor.close()
        raise
    return made
